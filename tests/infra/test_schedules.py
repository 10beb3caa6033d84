"""Table 14: the facts of the paper that hold, and matching an image to a schedule."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.schedules import NUM_SCALES, SCHEDULES, nearest, num_scales

SQUARE = next(s for s in SCHEDULES if s.ratio == 1)


def test_the_table_has_41_distinct_rows_of_18_scales() -> None:
    assert [s.index for s in SCHEDULES] == list(range(41))
    assert len({s.grids for s in SCHEDULES}) == len({s.ratio for s in SCHEDULES}) == 41
    assert all(len(s.grids) == 18 and s.grids[0] == (1, 1) for s in SCHEDULES)


def test_sides_never_decrease_and_level_grids_are_multiples() -> None:
    for schedule in SCHEDULES:
        for (h1, w1), (h2, w2) in zip(schedule.grids, schedule.grids[1:], strict=False):
            assert h2 >= h1
            assert w2 >= w1
        h12, w12 = schedule.grids[11]
        assert schedule.grids[15] == (2 * h12, 2 * w12)
        assert schedule.grids[17] == (4 * h12, 4 * w12)


def test_the_table_is_closed_under_transposition() -> None:
    grids = {s.grids for s in SCHEDULES}
    assert {tuple((w, h) for h, w in g) for g in grids} == grids


@pytest.mark.parametrize(
    ("level", "square", "fewest", "most"),
    [(256, 900, 815, 905), (512, 3_684, 3_318, 3_689), (1024, 10_084, 9_093, 10_089)],
)
def test_code_counts(level: int, square: int, fewest: int, most: int) -> None:
    counts = [s.num_codes(level) for s in SCHEDULES]
    assert SQUARE.num_codes(level) == square
    assert (min(counts), max(counts)) == (fewest, most)
    assert SQUARE.num_codes(NUM_SCALES[level]) == square
    assert SQUARE.image_size(level) == (level, level)


def test_every_schedule_is_nearest_to_itself() -> None:
    for schedule in SCHEDULES:
        assert nearest(*schedule.grids[-1]) is schedule
        assert nearest(*schedule.image_size(256)) is schedule


@given(st.integers(1, 5_000), st.integers(1, 5_000))
def test_nearest_minimises_the_log_distance(height: int, width: int) -> None:
    def distance(ratio: float) -> float:
        return abs(math.log(height / width) - math.log(ratio))

    found = distance(float(nearest(height, width).ratio))
    assert found == pytest.approx(min(distance(float(s.ratio)) for s in SCHEDULES))


def test_mistakes_name_the_value() -> None:
    with pytest.raises(ValueError, match="level 300"):
        num_scales(300)
    with pytest.raises(ValueError, match="0 x 5"):
        nearest(0, 5)
