"""How long segments are, many at once, and the counts of any range of them.

`infra.layout.count` as prefix sums: what a range of segments costs as a document of its own takes
the same few additions however long the range is.
"""

from collections import abc
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.schedules import MAX_SCALES, SCHEDULES
from infra.segments import Segment, Text, count_alone, count_image

Int64 = NDArray[np.int64]

_NAMES = ("kind", "role", "loss", "text_ids", "schedule", "num_scales")
SEGMENT_COLUMNS = [f"segments.list.element.{name}" for name in _NAMES]
"""Parquet columns of the tokens that `measure_rows` needs; codes, nearly all bytes, are not read.

Text ids are, for their number: Parquet has lengths of lists only in the lists themselves.
"""


@dataclass(frozen=True, eq=False)
class Measures:
    """Per segment: tokens, positions that predict it if something stands before it, pairs within
    it, whether it is an image."""

    num_tokens: Int64
    num_loss: Int64
    num_pairs: Int64
    is_image: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.num_tokens)

    @cached_property
    def tokens_before(self) -> Int64:
        """[n + 1]: tokens of all segments before each, and of all."""
        return _before(self.num_tokens)

    @cached_property
    def _sums(self) -> tuple[Int64, Int64, Int64]:
        return tuple(map(_before, (self.num_loss, self.num_pairs, self.num_tokens**2)))  # type: ignore[return-value]

    @cached_property
    def _unpredicted(self) -> tuple[Int64, Int64]:
        """[n + 1] each: the first segment with tokens from each on (n for none), and how many of
        its predictions fall away where nothing stands before it."""
        full = np.flatnonzero(self.num_tokens)
        following = np.append(full, len(self))[np.searchsorted(full, np.arange(len(self) + 1))]
        return following, np.append(self.num_loss > 0, False).astype(np.int64)[following]

    def count(self, start: Int64, stop: Int64) -> Int64:
        """Counts [n, 3] of the documents of segments [start, stop), one for each pair."""
        loss, pairs, squares = (sums[stop] - sums[start] for sums in self._sums)
        tokens = self.tokens_before[stop] - self.tokens_before[start]
        # Every position sees its segment, as counted, and all segments before it.
        pairs = pairs + (tokens**2 - squares) // 2
        following, lost = self._unpredicted
        # Nothing stands before a document's first token to predict it.
        loss = loss - np.where(following[start] < stop, lost[start], 0)
        return np.stack([tokens, loss, pairs], axis=-1)


def measure(segments: abc.Sequence[Segment]) -> Measures:
    """The measures of one document."""
    counts = np.array([count_alone(segment) for segment in segments], np.int64).reshape(-1, 3)
    is_image = np.array([not isinstance(segment, Text) for segment in segments], bool)
    num_tokens, num_loss, num_pairs = counts.T
    return Measures(num_tokens, num_loss, num_pairs, is_image)


def measure_rows(segments: pa.ListArray) -> tuple[Measures, Int64]:
    """The measures of all segments of a column of tokens, and where each row's start, and the end.

    Raises ValueError for an image of no known role, schedule or number of scales.
    """
    lengths = pc.fill_null(pc.list_value_length(segments), 0).to_numpy().astype(np.int64)
    flat = segments.flatten()  # heeds offsets and nulls
    names = [field.name for field in flat.type]
    columns = dict(zip(names, flat.flatten(), strict=True))
    is_image = _flags(pc.equal(columns["kind"], "image"))
    counts = np.zeros((len(flat), 3), np.int64)
    num_ids = pc.fill_null(pc.list_value_length(columns["text_ids"]), 0).to_numpy()
    num_ids = num_ids.astype(np.int64)
    loss = _flags(columns["loss"])
    counts[:, 0], counts[:, 1] = num_ids, np.where(loss, num_ids, 0)
    counts[:, 2] = num_ids * (num_ids + 1) // 2

    at = np.flatnonzero(is_image)
    schedule, num_scales = (
        pc.fill_null(columns[name].cast(pa.int64()), -1).to_numpy()[at]
        for name in ("schedule", "num_scales")
    )
    is_target = _flags(pc.equal(columns["role"], "target"))[at]
    known = is_target | _flags(pc.equal(columns["role"], "condition"))[at]
    known &= (schedule >= 0) & (schedule < len(SCHEDULES))
    known &= (num_scales >= 1) & (num_scales <= MAX_SCALES)
    if not known.all():
        i = int(np.flatnonzero(~known)[0])
        raise ValueError(
            f"an image has the role {columns['role'][int(at[i])]}, schedule {schedule[i]} and "
            f"{num_scales[i]} scales: there is no such image"
        )
    counts[at] = _images()[is_target.astype(np.int64), schedule, num_scales - 1]
    counts[at, 1] *= loss[at]
    num_tokens, num_loss, num_pairs = np.ascontiguousarray(counts.T)
    return Measures(num_tokens, num_loss, num_pairs, is_image), _before(lengths)


@lru_cache(maxsize=1)
def _images() -> Int64:
    """[2, schedules, scales, 3]: counts of conditions and of targets with loss."""
    table = [
        [
            [count_image(schedule, k, role) for k in range(1, MAX_SCALES + 1)]
            for schedule in range(len(SCHEDULES))
        ]
        for role in ("condition", "target")
    ]
    return np.array(table, np.int64)


def _flags(values: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), bool)


def _before(values: Int64) -> Int64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
