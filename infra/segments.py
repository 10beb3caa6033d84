"""Segments, the vocabulary they are numbered in, and what a document of them costs.

Counts are in closed form, from lengths alone; `infra.layout` defines the positions they count.
"""

from collections import abc
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.schedules import MAX_SCALES, SCHEDULES

Int32 = NDArray[np.int32]
Role = Literal["target", "condition"]

MAX_IDS = 2**31  # ids are int32


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the one embedding table: text, ``<boi>``, ``<eoi>``, then the visual codes."""

    num_codes: int
    text_size: int = 152_064  # Qwen2.5

    def __post_init__(self) -> None:
        if self.text_size < 1:
            raise ValueError(f"text_size is {self.text_size}: use at least 1")
        most = MAX_IDS - self.first_code
        if not 1 <= self.num_codes <= most:
            raise ValueError(
                f"num_codes is {self.num_codes}: beside {self.text_size} text ids use 1 to {most}"
            )

    @property
    def boi(self) -> int:
        return self.text_size

    @property
    def eoi(self) -> int:
        return self.text_size + 1

    @property
    def first_code(self) -> int:
        return self.text_size + 2

    @property
    def size(self) -> int:
        return self.first_code + self.num_codes


@dataclass(frozen=True, eq=False)
class Text:
    """Text ids, 1-D. ``loss``: whether predicting these ids counts."""

    ids: Int32
    loss: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", _integers(self.ids, "text ids"))


@dataclass(frozen=True, eq=False)
class Image:
    """Codes of scales 1 .. ``num_scales``, coarse to fine, row-major, N of each kind.

    ``schedule`` is a row of Table 14. Input codes are what the model sees, target codes what it
    predicts; they differ where self-correction sampled. Raises ValueError if lengths do not fit.
    """

    schedule: int
    num_scales: int
    input_codes: Int32
    target_codes: Int32
    role: Role = "target"
    loss: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.schedule < len(SCHEDULES):
            raise ValueError(f"schedule is {self.schedule}: use a row 0 to {len(SCHEDULES) - 1}")
        if not 1 <= self.num_scales <= MAX_SCALES:
            raise ValueError(f"num_scales is {self.num_scales}: use 1 to {MAX_SCALES}")
        if self.role not in ("target", "condition"):
            raise ValueError(f"role is {self.role!r}: use 'target' or 'condition'")
        for name in ("input_codes", "target_codes"):
            codes = _integers(getattr(self, name), name)
            if len(codes) != self.num_codes:
                raise ValueError(
                    f"{name} holds {len(codes)} codes: schedule {self.schedule} with "
                    f"{self.num_scales} scales has {self.num_codes}"
                )
            object.__setattr__(self, name, codes)

    @property
    def num_codes(self) -> int:
        """N: codes of all scales together."""
        return SCHEDULES[self.schedule].num_codes(self.num_scales)

    @property
    def num_tokens(self) -> int:
        """Positions in the sequence: N + 1 for a target, N + 2 for a condition."""
        return self.num_codes + (1 if self.role == "target" else 2)

    @property
    def has_loss(self) -> bool:
        """Whether its ``<boi>`` and codes are predicted: never for a condition."""
        return self.loss and self.role == "target"


Segment = Text | Image


class Counts(NamedTuple):
    """What a document costs: positions T, positions with a target, query-key pairs."""

    num_tokens: int
    num_loss: int
    num_pairs: int


def count(segments: abc.Iterable[Segment]) -> Counts:
    """The counts of one document in closed form, equal to those of its `layout`."""
    tokens = loss = pairs = 0
    for segment in segments:
        length, predicted, alone = count_alone(segment)
        if tokens == 0 and predicted:
            predicted -= 1  # nothing stands before the document's first token to predict it
        pairs += alone + tokens * length  # every position also sees all that came before
        loss += predicted
        tokens += length
    return Counts(tokens, loss, pairs)


def count_alone(segment: Segment) -> Counts:
    """What a segment adds by itself: its tokens, the positions that predict it if one stands before
    it, the pairs within it."""
    if isinstance(segment, Text):
        length = len(segment.ids)
        return Counts(length, length if segment.loss else 0, length * (length + 1) // 2)
    counts = count_image(segment.schedule, segment.num_scales, segment.role)
    return counts if segment.has_loss else counts._replace(num_loss=0)


def count_image(schedule: int, num_scales: int, role: Role) -> Counts:
    """`count_alone` of an image that has loss if it is a target."""
    num_codes = SCHEDULES[schedule].num_codes(num_scales)
    pairs = _image_pairs(schedule, num_scales, role)
    if role == "target":
        return Counts(num_codes + 1, num_codes + 1, pairs)
    return Counts(num_codes + 2, 0, pairs)


@lru_cache(maxsize=256)
def _image_pairs(schedule: int, num_scales: int, role: Role) -> int:
    """Pairs of an image alone: <boi> 1, each block A_s x (all up to its end), <eoi> T."""
    grids = SCHEDULES[schedule].grids[:num_scales]
    end, pairs = 1, 1
    for height, width in grids[1:] if role == "target" else grids:
        end += height * width
        pairs += height * width * end
    return pairs + end + 1


def _integers(values: Any, what: str) -> Int32:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{what} must be one row of integers, not {array.dtype}{array.shape}")
    return array.astype(np.int32, copy=False)
