"""How pleasing people would find a picture: a mean rating between 1 and 10."""

import re
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from infra.pixels import Pixels, pictures_of
from infra.schema import column
from operators import mobilenets, open_clip_model
from operators.fixed_batches import run_fixed

_NIMA = "nima_mobilenet_fp16.safetensors"


@dataclass(frozen=True)
class Aesthetics:
    """Write ``aesthetic``, the mean rating the model expects.

    Backend ``nima`` (the default, its weights come with the project): MobileNet trained on the
    ratings of AVA; photographs score 3.5 to 6.5. It was trained on pictures shrunk by taking single
    pixels, and blur lowers its scores: so it reads them the same way here.

    Backend ``open_clip``: an image tower (``model`` and ``pretrained``, see `open_clip_model`) with
    a LAION head over its L2-normalised features, from the file ``head``: the linear one
    (LAION-AI/aesthetic-predictor) or the improved multi-layer one
    (christophschuhmann/improved-aesthetic-predictor), told apart by the tensors in the file.

    Raises ValueError for settings that name no loadable weights.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [column("aesthetic", pa.float32(), "1..10", "mean aesthetic rating the model expects")],
    )
    version: ClassVar[int] = 1

    backend: Literal["nima", "open_clip"] = "nima"
    model: str = ""
    pretrained: str = ""
    head: str = ""
    batch_rows: int = 16
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.backend not in ("nima", "open_clip"):
            raise ValueError(f"backend is {self.backend!r}: choose nima or open_clip")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows is {self.batch_rows}: choose at least 1")
        if self.backend == "open_clip" and not (self.model and self.head):
            raise ValueError("backend open_clip needs `model` and `head`, a LAION head's path")

    @property
    def identity(self) -> str:
        """Hash or published name of the weights the scores depend on."""
        if self.backend == "nima":
            return mobilenets.file_hash(mobilenets.WEIGHTS / _NIMA)
        tower = open_clip_model.identity(self.model, self.pretrained)
        return f"{tower} {mobilenets.file_hash(_existing(self.head))}"

    def __call__(self, batch: pa.Table) -> pa.Table:
        rate = self._rate_nima if self.backend == "nima" else self._rate_open_clip
        prepare = _as_nima_input if self.backend == "nima" else self._prepare_open_clip
        outputs = run_fixed(pictures_of(batch), prepare, rate, self.batch_rows, self.device)
        scores = [None if output is None else float(output) for output in outputs]
        return batch.append_column(self.writes.field("aesthetic"), pa.array(scores, pa.float32()))

    def __getstate__(self) -> dict[str, Any]:
        # Loaded networks stay in this process: a copy loads its own.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _nima(self) -> mobilenets.MobileNetNima:
        return mobilenets.load(mobilenets.MobileNetNima(), _NIMA, self.device)

    @cached_property
    def _open_clip(self) -> tuple[open_clip_model.OpenClip, nn.Module]:
        head = load_head(self.head).to(self.device)
        return open_clip_model.load(self.model, self.pretrained, self.device), head

    def _rate_nima(self, images: Tensor) -> Tensor:
        shares: Tensor = self._nima(images)
        return shares @ torch.arange(1.0, 11.0, device=shares.device)

    def _prepare_open_clip(self, rgb: Pixels) -> Tensor:
        return self._open_clip[0].prepare(rgb)

    def _rate_open_clip(self, images: Tensor) -> Tensor:
        tower, head = self._open_clip
        features = tower.encode_images(images)
        takes = next(head.parameters()).shape[1]
        if features.shape[1] != takes:
            raise ValueError(
                f"head {self.head} takes {takes} features, {self.model} gives {features.shape[1]}: "
                "choose the head made for this tower"
            )
        ratings: Tensor = head(features)
        return ratings[:, 0]


def load_head(path: str) -> nn.Sequential:
    """A LAION aesthetic head: linear layers without activations between them, [n, d] -> [n, 1].

    Takes ``weight``/``bias`` (the linear head) or ``layers.<i>.weight``/``bias`` (the multi-layer
    one, whose dropouts do nothing after training). Raises ValueError for a file of another kind.
    """
    file = _existing(path)
    if file.suffix == ".safetensors":
        tensors = load_file(file)
    else:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    weights = [name for name in tensors if re.fullmatch(r"(layers\.\d+\.)?weight", name)]
    weights.sort(key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])
    layers = []
    for name in weights:
        weight = tensors[name].float()
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        bias = tensors[f"{name.removesuffix('weight')}bias"].float()
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    if not layers or layers[-1].out_features != 1:
        raise ValueError(f"{path} is no LAION aesthetic head: it holds {', '.join(tensors)}")
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"head {path} does not exist: check the path")
    return Path(path)


def _as_nima_input(rgb: Pixels) -> Tensor:
    # Nearest-pixel shrinking to a square, as the network was trained (idealo's and Keras' loader).
    square = cv2.resize(rgb, (224, 224), interpolation=cv2.INTER_NEAREST_EXACT)
    return torch.from_numpy(np.asarray(square, np.float32)).permute(2, 0, 1) / 127.5 - 1.0
