"""The scale schedules of the paper (Table 14): which grids an image's codes lie on.

An image is coded on K growing grids; level 256 uses the first 12 of a schedule's 18 scales, level
512 the first 16 and level 1024 all of them. The table's printed resolutions and three of its ratio
labels contradict its grids, so only the grids are kept: an image is matched by the ratio of the
last grid, and its size is 16 pixels per cell of the level's last grid.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from importlib.resources import files
from itertools import accumulate
from types import MappingProxyType

Grid = tuple[int, int]
"""Height and width, in tokens."""

PIXELS_PER_CELL = 16
MAX_SCALES = 18
NUM_SCALES: Mapping[int, int] = MappingProxyType({256: 12, 512: 16, 1024: 18})
"""Number of scales of each level (appendix A.1)."""


@dataclass(frozen=True)
class Schedule:
    """One row of Table 14: ``grids[s - 1]`` is the grid of scale s = 1 .. 18."""

    index: int
    grids: tuple[Grid, ...]

    @property
    def ratio(self) -> Fraction:
        """Height / width of the last grid."""
        height, width = self.grids[-1]
        return Fraction(height, width)

    def image_size(self, level_or_num_scales: int) -> tuple[int, int]:
        """(height, width) in pixels of an image coded at this level."""
        height, width = self.grids[num_scales(level_or_num_scales) - 1]
        return height * PIXELS_PER_CELL, width * PIXELS_PER_CELL

    def num_codes(self, level_or_num_scales: int) -> int:
        """N: codes of all scales of the level together."""
        return self.code_ends[num_scales(level_or_num_scales) - 1]

    @cached_property
    def code_ends(self) -> tuple[int, ...]:
        """Where the codes of each scale end among all codes: running sums of the grids' areas."""
        return tuple(accumulate(h * w for h, w in self.grids))


def num_scales(level_or_num_scales: int) -> int:
    """K of a level (256, 512 or 1024); a number of scales (1 to 18) stands for itself.

    Raises ValueError for any other number.
    """
    if 1 <= level_or_num_scales <= MAX_SCALES:
        return level_or_num_scales
    if level_or_num_scales not in NUM_SCALES:
        raise ValueError(
            f"level {level_or_num_scales} does not exist: use a level of {list(NUM_SCALES)} "
            f"or a number of scales from 1 to {MAX_SCALES}"
        )
    return NUM_SCALES[level_or_num_scales]


def _read() -> tuple[Schedule, ...]:
    text = files("infra").joinpath("scale_schedules.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(
        Schedule(
            int(row["index"]),
            tuple(_grid(row[f"scale_{scale}"]) for scale in range(1, MAX_SCALES + 1)),
        )
        for row in rows
    )


def _grid(text: str) -> Grid:
    height, width = text.split("x")
    return int(height), int(width)


SCHEDULES = _read()
"""All 41 rows of Table 14, tallest first; ``SCHEDULES[i].index == i``."""


@lru_cache(maxsize=65_536)
def nearest(height: int, width: int) -> Schedule:
    """The schedule whose grid ratio is nearest in log to ``height / width`` (any unit).

    Exact in integers; ties go to the lower index. Raises ValueError for sides that are not
    positive.
    """
    if height <= 0 or width <= 0:
        raise ValueError(f"an image of {height} x {width} has no ratio: both sides must be >= 1")
    ratio = Fraction(height, width)

    def distance(schedule: Schedule) -> Fraction:  # exp |log a - log b|, which needs no logarithm
        return max(ratio / schedule.ratio, schedule.ratio / ratio)

    return min(SCHEDULES, key=lambda schedule: (distance(schedule), schedule.index))
