"""How pleasing people would find a picture: a mean rating between 1 and 10."""

import pickle
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
from operators import mobilenets
from operators.fixed_batches import run_fixed
from operators.image_features import ImageFeatures, features_of

_NIMA = "nima_mobilenet_fp16.safetensors"


@dataclass(frozen=True)
class Aesthetics:
    """Write ``aesthetic``, the mean rating the model expects.

    Backend ``nima`` (the default, its weights come with the project): MobileNet trained on the
    ratings of AVA; photographs score 3.5 to 6.5. It was trained on pictures shrunk by taking single
    pixels, and blur lowers its scores: so it reads them the same way here.

    Backend ``open_clip``: a LAION head over the L2-normalised features of an image tower
    (``model`` and ``pretrained``, see `open_clip_model`), from the file ``head``: the linear one
    (LAION-AI/aesthetic-predictor) or the improved multi-layer one
    (christophschuhmann/improved-aesthetic-predictor), told apart by the tensors in the file. Both
    are made for ViT-L-14-quickgelu of OpenAI, the linear one also for ViT-B-32 and ViT-B-16. The
    features are read from the column of ``tower``, an operator to run before this one.

    Raises ValueError for settings that name no loadable weights.
    """

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
    precision: Literal["fp32", "bf16"] = "fp32"  # of the tower

    def __post_init__(self) -> None:
        if self.backend not in ("nima", "open_clip"):
            raise ValueError(f"backend is {self.backend!r}: choose nima or open_clip")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows is {self.batch_rows}: choose at least 1")
        if self.backend == "open_clip" and not (self.model and self.head):
            raise ValueError("backend open_clip needs `model` and `head`, a LAION head's path")

    @property
    def tower(self) -> ImageFeatures | None:
        """The image tower whose features the head takes."""
        if self.backend == "nima":
            return None
        return ImageFeatures(
            self.model, self.pretrained, self.batch_rows, self.device, self.precision
        )

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.tower.column if self.tower else "image", "error")

    @property
    def identity(self) -> str:
        """Hash or published name of the weights the scores depend on."""
        if self.tower is None:
            return mobilenets.file_hash(mobilenets.WEIGHTS / _NIMA)
        self._check_head()
        return f"{self.tower.identity} {mobilenets.file_hash(_existing(self.head))}"

    def _check_head(self) -> None:
        """Raises ValueError for a file that is no head, or a head for other features."""
        import open_clip

        takes = next(load_head(self.head).parameters()).shape[1]
        gives = (open_clip.get_model_config(self.model) or {}).get("embed_dim", takes)
        if takes != gives:
            raise ValueError(
                f"{self.head} takes features of {takes} numbers, {self.model} gives {gives}: "
                "choose the head that was made for this tower"
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows, device = self.batch_rows, self.device
        if self.tower is None:
            outputs = run_fixed(pictures_of(batch), _as_nima_input, self._rate_nima, rows, device)
        else:
            features = features_of(batch, self.tower)
            outputs = run_fixed(features, torch.tensor, self._rate_features, rows, device)
        scores = [None if output is None else float(output) for output in outputs]
        return batch.append_column(self.writes.field("aesthetic"), pa.array(scores, pa.float32()))

    def __getstate__(self) -> dict[str, Any]:
        # Loaded networks stay in this process: a copy loads its own.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _nima(self) -> mobilenets.MobileNetNima:
        return mobilenets.load(mobilenets.MobileNetNima(), _NIMA, self.device)

    @cached_property
    def _head(self) -> nn.Sequential:
        return load_head(self.head).to(self.device)

    def _rate_nima(self, images: Tensor) -> Tensor:
        shares: Tensor = self._nima(images)
        return shares @ torch.arange(1.0, 11.0, device=shares.device)

    def _rate_features(self, features: Tensor) -> Tensor:
        takes = next(self._head.parameters()).shape[1]
        if features.shape[1] != takes:
            raise ValueError(
                f"head {self.head} takes {takes} features, {self.model} gives {features.shape[1]}: "
                "choose the head made for this tower"
            )
        ratings: Tensor = self._head(features)
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
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} is no file of PyTorch weights: {reason}") from None
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
