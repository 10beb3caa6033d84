"""One vector per picture, near that of its altered copies: for semantic duplicates."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from infra.pixels import Pixels, pictures_of
from infra.schema import column
from operators import mobilenets
from operators.fixed_batches import run_fixed
from operators.image_features import ImageFeatures, features_of, to_lists

_CARRIED = "efficientnet_lite0_fp16.safetensors"
_SIDE = 224


@dataclass(frozen=True)
class ImageEmbedding:
    """Write ``embedding``, L2-normalised: compare by cosine (dot product) within one backend.

    Backend ``carried`` (the default, its weights come with the project): the square roots of
    EfficientNet-Lite0's 1,280 pooled features (channels fire rarely and strongly; R. Arandjelović
    and A. Zisserman, "Three things everyone should know to improve object retrieval", CVPR 2012)
    of the whole picture, squeezed into a square. Copies that are re-encoded, resized, cropped by up
    to 30%, mirrored or recoloured have a cosine above 0.85 to the original, different photographs
    one of 0.3 to 0.75.

    Backend ``open_clip``: the features of an image tower (``model`` and ``pretrained``, see
    `open_clip_model`), read from the column of ``tower``, an operator to run before this one.

    Stored in half precision: cosines are good to three decimals.
    """

    writes: ClassVar[pa.Schema] = pa.schema(
        [column("embedding", pa.list_(pa.float16()), "", "L2-normalised; cosine tells likeness")],
    )
    version: ClassVar[int] = 1

    backend: Literal["carried", "open_clip"] = "carried"
    model: str = ""
    pretrained: str = ""
    batch_rows: int = 16
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the tower

    def __post_init__(self) -> None:
        if self.backend not in ("carried", "open_clip"):
            raise ValueError(f"backend is {self.backend!r}: choose carried or open_clip")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows is {self.batch_rows}: choose at least 1")
        _ = self.tower  # its checks are ours

    @property
    def tower(self) -> ImageFeatures | None:
        """The image tower whose features are the embedding."""
        if self.backend == "carried":
            return None
        return ImageFeatures(
            self.model, self.pretrained, self.batch_rows, self.device, self.precision
        )

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.tower.column if self.tower else "image", "error")

    @property
    def identity(self) -> str:
        """Hash or published name of the weights the embedding depends on."""
        if self.tower is not None:
            return self.tower.identity
        return mobilenets.file_hash(mobilenets.WEIGHTS / _CARRIED)

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.tower is not None:
            rows = features_of(batch, self.tower)
        else:
            pictures = pictures_of(batch)
            rows = run_fixed(pictures, _as_input, self._embed, self.batch_rows, self.device)
        return batch.append_column(self.writes.field(0), to_lists(rows, pa.float16()))

    def __getstate__(self) -> dict[str, Any]:
        # The loaded network stays in this process: a copy loads its own.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _network(self) -> mobilenets.EfficientNetLite0:
        return mobilenets.load(mobilenets.EfficientNetLite0(), _CARRIED, self.device)

    def _embed(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self._network.features(images).sqrt(), dim=-1)


def _as_input(rgb: Pixels) -> Tensor:
    # Squeezed, not cut: what a crop loses at the sides would be lost twice.
    reduces = min(rgb.shape[:2]) >= _SIDE
    method = cv2.INTER_AREA if reduces else cv2.INTER_CUBIC
    square = cv2.resize(rgb, (_SIDE, _SIDE), interpolation=method)
    return (torch.from_numpy(np.asarray(square, np.float32)).permute(2, 0, 1) - 127.0) / 128.0
