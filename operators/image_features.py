"""Features of pictures by an image tower, encoded once for all operators that need them.

An aesthetic head, zero-shot topics and caption similarity may stand on one tower: the tower is then
an operator of its own, and they read its column. The column lives inside a phase only.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.pixels import pictures_of
from infra.schema import column
from operators import open_clip_model
from operators.fixed_batches import run_fixed

Features = NDArray[np.float32]


@dataclass(frozen=True)
class ImageFeatures:
    """Write L2-normalised features by the image tower ``model`` (see `open_clip_model`).

    Operators with the same five settings share one such tower: compare their ``tower``. With
    ``precision`` bf16 the network computes in half the bits (many times as fast on a GPU) and its
    features are normalised in fp32. Pictures go through the tower ``batch_rows`` at a time; fewer
    at the end of a micro-batch are filled up, so let it divide the stage's rows.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "error")
    version: ClassVar[int] = 1

    model: str
    pretrained: str = ""
    batch_rows: int = 16
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("`model` is empty: see operators/open_clip_model.py for its forms")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows is {self.batch_rows}: choose at least 1")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}: choose fp32 or bf16")

    @property
    def column(self) -> str:
        """The name of the column: all that its bits depend on. `pipelines.phase` drops it."""
        tower = f"{self.model}/{self.pretrained}" if self.pretrained else self.model
        return f"features:{tower}:{self.device}:{self.precision}:{self.batch_rows}"

    @property
    def writes(self) -> pa.Schema:
        meaning = f"L2-normalised image features of {self.model}"
        return pa.schema([column(self.column, pa.list_(pa.float32()), "", meaning)])

    @property
    def identity(self) -> str:
        """Hash or published name of the weights the features depend on."""
        return open_clip_model.identity(self.model, self.pretrained)

    def __call__(self, batch: pa.Table) -> pa.Table:
        pictures = pictures_of(batch)
        if all(picture is None for picture in pictures):
            features: list[Features | None] = [None] * len(pictures)
        else:
            tower = self.open_clip
            features = run_fixed(
                pictures, tower.prepare, tower.encode_images, self.batch_rows, self.device
            )
        return batch.append_column(self.writes.field(0), to_lists(features, pa.float32()))

    def __getstate__(self) -> dict[str, Any]:
        # The loaded model stays in this process: a copy loads its own.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def open_clip(self) -> open_clip_model.OpenClip:
        """The model, loaded once per process however many operators stand on it."""
        return open_clip_model.load(self.model, self.pretrained, self.device, self.precision)


def features_of(batch: pa.Table, tower: ImageFeatures) -> list[Features | None]:
    """A tower's features [d] of each row; None for rows that have failed or have no picture."""
    failed = batch.column("error").is_valid().to_pylist()
    rows: list[Features | None] = []
    for chunk in batch.column(tower.column).chunks:
        values = chunk.values.to_numpy()
        offsets = chunk.offsets.to_numpy()
        for i, valid in enumerate(chunk.is_valid().to_pylist()):
            rows.append(values[offsets[i] : offsets[i + 1]] if valid else None)
    return [None if bad else row for bad, row in zip(failed, rows, strict=True)]


def to_lists(rows: list[Features | None], type_: pa.DataType) -> pa.ListArray:
    """Vectors as an Arrow list array of ``type_``; None becomes null."""
    present = [row for row in rows if row is not None]
    flat = np.concatenate(present) if present else np.empty(0, np.float32)
    lengths = [0 if row is None else len(row) for row in rows]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    missing = pa.array([row is None for row in rows], pa.bool_())
    values = pa.array(flat.astype(type_.to_pandas_dtype()), type_)
    return pa.ListArray.from_arrays(offsets, values, mask=missing)
