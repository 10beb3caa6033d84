"""Image operators on clips: they run over the frames, and a clip gets one value of each column."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from infra.schema import ERROR_TYPE, IMAGE_TYPE, column
from operators.given_scores import given_numbers
from operators.image_features import ImageFeatures

_SKIPPED = {"stage": "frames", "type": "not_needed", "message": "the clip failed or has a score"}


class ImageOperator(Protocol):
    """An operator that scores pictures: `operators.clarity`, `operators.topics`, ..."""

    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def writes(self) -> pa.Schema: ...
    def __call__(self, batch: pa.Table, /) -> pa.Table: ...


@dataclass(frozen=True)
class FrameTower:
    """Write the features of each frame of a clip by an image tower, a list of vectors.

    It runs once, before all `FrameScores` whose operators stand on the same tower.
    """

    reads: ClassVar[tuple[str, ...]] = ("frames", "error")
    version: ClassVar[int] = 1

    tower: ImageFeatures

    @property
    def column(self) -> str:
        """The name of the column, by which `pipelines.phase` knows that it is not to be stored."""
        return f"features:frames:{self.tower.column.removeprefix('features:')}"

    @property
    def writes(self) -> pa.Schema:
        (vector,) = self.tower.writes
        meaning = f"of each frame: {vector.metadata[b'meaning'].decode()}"
        return pa.schema([column(self.column, pa.list_(vector.type), "", meaning)])

    def __call__(self, batch: pa.Table) -> pa.Table:
        flat, rows = _flattened(batch, [False] * len(batch))
        vectors = self.tower(flat)[self.tower.column].combine_chunks()
        counts = Counter(rows)
        ends = accumulate((counts[row] for row in range(len(batch))), initial=0)
        lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), vectors)
        return batch.append_column(self.writes.field(0), lists)


@dataclass(frozen=True)
class FrameScores:
    """Write the columns of ``operator``, which scores pictures, for clips with ``frames``.

    A number is the mean over the clip's frames. Of a text with a number beside it (a topic and its
    score) it is the text with the greatest sum of numbers, and the number is the mean over the
    frames that have it. Anything else (a hash, a count, an embedding) is that of the middle frame.
    Frames that could not be decoded have no part; a clip without any has nulls.

    ``given`` names a key of ``metadata``, for operators that write one number: where it says a
    number, that is the score, and the clip's frames are not looked at.

    Raises ValueError for an operator that reads more than a picture, and for a ``given`` that could
    fill several columns.
    """

    version: ClassVar[int] = 1

    operator: ImageOperator
    given: str | None = None

    def __post_init__(self) -> None:
        name = type(self.operator).__name__
        tower = getattr(self.operator, "tower", None)
        known = {"image", "error", *((tower.column,) if tower else ())}
        if unknown := [read for read in self.operator.reads if read not in known]:
            raise ValueError(f"{name} reads `{unknown[0]}`: choose an operator of pictures alone")
        if self.given == "":
            raise ValueError("given is empty: name a key of the metadata, or leave it out")
        if self.given and [pa.types.is_floating(f.type) for f in self.operator.writes] != [True]:
            written = ", ".join(self.operator.writes.names)
            raise ValueError(f"{name} writes {written}: `given` can only stand for one number")

    @property
    def tower(self) -> FrameTower | None:
        """The image tower on frames that the operator stands on, to run before this one."""
        tower = getattr(self.operator, "tower", None)
        return None if tower is None else FrameTower(tower)

    @property
    def reads(self) -> tuple[str, ...]:
        needed = ("frames", *((self.tower.column,) if self.tower else ()))
        return (*needed, *(("metadata",) if self.given else ()), "error")

    @property
    def writes(self) -> pa.Schema:
        return pa.schema(
            [
                column(
                    field.name,
                    field.type,
                    field.metadata[b"unit"].decode(),
                    f"{field.metadata[b'meaning'].decode()}; over a clip's frames",
                )
                for field in self.operator.writes
            ]
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        told = given_numbers(batch, self.given) if self.given else [None] * len(batch)
        flat, rows = _flattened(batch, [number is not None for number in told])
        if self.tower is not None:
            features = pa.chunked_array(
                [chunk.flatten() for chunk in batch[self.tower.column].chunks],
                self.tower.writes.field(0).type.value_type,
            )
            flat = flat.append_column(self.tower.tower.column, features)
        scored = self.operator(flat)
        values = {name: scored[name].to_pylist() for name in self.operator.writes.names}
        frames: dict[int, list[int]] = defaultdict(list)
        for i, row in enumerate(rows):
            frames[row].append(i)
        clips = [self._whole(values, frames[row]) for row in range(len(batch))]
        for field in self.writes:
            whole = [
                clip[field.name] if number is None else number
                for clip, number in zip(clips, told, strict=True)
            ]
            batch = batch.append_column(field, pa.array(whole, field.type))
        return batch

    def _whole(self, values: Mapping[str, list[Any]], frames: Sequence[int]) -> dict[str, Any]:
        """A clip's value of each column, from those of its frames."""
        numbers = [f.name for f in self.operator.writes if pa.types.is_floating(f.type)]
        texts = [f.name for f in self.operator.writes if pa.types.is_string(f.type)]
        if len(texts) == len(numbers) == 1:
            frames = _of_best_text(values[texts[0]], values[numbers[0]], frames)
        whole: dict[str, Any] = {}
        for name, column_ in values.items():
            known = [column_[i] for i in frames if column_[i] is not None]
            if not known:
                whole[name] = None
            else:
                whole[name] = sum(known) / len(known) if name in numbers else known[len(known) // 2]
        return whole


def _of_best_text(
    texts: Sequence[str | None], numbers: Sequence[float | None], frames: Sequence[int]
) -> list[int]:
    """The frames with the text of the greatest sum; of equals the more frequent, the earlier."""
    having: dict[str, list[int]] = defaultdict(list)
    for i in frames:
        if (text := texts[i]) is not None:
            having[text].append(i)

    def weight(text: str) -> tuple[float, int]:
        # A negative score speaks no less for a text that many frames have.
        return sum(max(numbers[i] or 0.0, 0.0) for i in having[text]), len(having[text])

    return having[max(having, key=weight)] if having else []


def _flattened(batch: pa.Table, skipped: Sequence[bool]) -> tuple[pa.Table, list[int]]:
    """All frames of a batch as rows with ``image`` and ``error``, and each one's clip.

    Pixels are not copied. Frames of failed and of ``skipped`` clips have an error.
    """
    leaves_out = [
        failed or skips
        for failed, skips in zip(batch["error"].is_valid().to_pylist(), skipped, strict=True)
    ]
    rows: list[int] = []
    first = 0
    images, errors = [], []
    for chunk in batch["frames"].chunks:
        frames = chunk.flatten()
        here = [first + i for i in pc.list_parent_indices(chunk).to_pylist()]
        images.append(frames.field("image"))
        told = zip(frames.field("error").to_pylist(), here, strict=True)
        errors += [_SKIPPED if leaves_out[row] else error for error, row in told]
        rows += here
        first += len(chunk)
    columns = {"image": pa.chunked_array(images, IMAGE_TYPE), "error": pa.array(errors, ERROR_TYPE)}
    return pa.table(columns), rows
