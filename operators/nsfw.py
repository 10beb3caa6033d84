"""How likely a picture is pornographic, or merely suggestive."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from infra.pixels import Pixels, pictures_of
from infra.schema import column
from operators import mobilenets
from operators.fixed_batches import run_fixed

_COLUMNS = {"nsfw": ("hentai", "porn"), "nsfw_sexy": ("sexy",)}


@dataclass(frozen=True)
class Nsfw:
    """Write ``nsfw`` and ``nsfw_sexy``, two probabilities by the MobileNet v2 of nsfwjs.

    ``weights`` is the path of its file, which does not come with the project: see
    operators/weights/README.md. The network shares out 1 among drawing, hentai, neutral, porn and
    sexy. ``nsfw`` is the sum of hentai and porn: everyday photographs stay below 0.1. ``nsfw_sexy``
    is no more than a hint: 3 of 54 everyday photographs are above 0.5 (a seated woman, a bottle of
    wine, a baseball player), so send what it finds to a second look, not to the bin.

    The whole picture is squeezed into the network's square, uncropped and without smoothing, as
    nsfwjs does it. Raises ValueError (from ``identity``) for a missing or a foreign file.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            column("nsfw", pa.float32(), "0..1", "probability of pornography, drawn or not"),
            column("nsfw_sexy", pa.float32(), "0..1", "probability of a suggestive picture"),
        ],
    )
    version: ClassVar[int] = 1
    not_in_output: ClassVar[tuple[str, ...]] = ("weights",)  # their hash is the identity

    weights: str
    batch_rows: int = 16
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("`weights` is empty: see operators/weights/README.md for the file")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows is {self.batch_rows}: choose at least 1")

    @property
    def identity(self) -> str:
        """Hash of the weights the scores depend on."""
        mobilenets.check_nsfw(self.weights)
        return mobilenets.file_hash(self.weights)

    def __call__(self, batch: pa.Table) -> pa.Table:
        shares = run_fixed(
            pictures_of(batch), _as_input, self._classify, self.batch_rows, self.device
        )
        for name, classes in _COLUMNS.items():
            rows = [mobilenets.NSFW_CLASSES.index(kind) for kind in classes]
            # The shares' rounding must not lead out of 0..1.
            scores = [None if p is None else min(1.0, float(p[rows].sum())) for p in shares]
            batch = batch.append_column(self.writes.field(name), pa.array(scores, pa.float32()))
        return batch

    def __getstate__(self) -> dict[str, Any]:
        # The loaded network stays in this process: a copy loads its own.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _network(self) -> mobilenets.MobileNetNsfw:
        return mobilenets.load_nsfw(self.weights, self.device)

    def _classify(self, images: Tensor) -> Tensor:
        shares: Tensor = self._network(images)
        return shares


def _as_input(rgb: Pixels) -> Tensor:
    square = cv2.resize(rgb, (224, 224), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(np.asarray(square, np.float32)).permute(2, 0, 1) / 255.0
