"""Arrows point where things move, are no longer than there is room, and are plain numbers."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.filmstrip_drawing import (
    FLOW_SIDE,
    GRID,
    LONGEST_CELLS,
    SCALES_S,
    arrow_seconds,
    arrows,
    flow_grid,
)

SHAFT = re.compile(r"M(-?[\d.]+) (-?[\d.]+)l(-?[\d.]+) (-?[\d.]+)")


def shafts(path: str) -> list[tuple[float, ...]]:
    """(x, y, dx, dy) of the arrows, without their heads."""
    found = [tuple(map(float, match)) for match in SHAFT.findall(path)]
    return [one for n, one in enumerate(found) if n == 0 or not _is_head(found[n - 1], one)]


def _is_head(shaft: tuple[float, ...], other: tuple[float, ...]) -> bool:
    x, y, dx, dy = shaft
    return abs(x + dx - other[0]) < 0.25 and abs(y + dy - other[1]) < 0.25 and (dx, dy) != (0, 0)


def uniform_flow(x: float, y: float) -> list[float]:
    return [x, y] * (GRID * GRID)


def test_a_pan_is_parallel_arrows_of_true_length() -> None:
    grid = flow_grid(uniform_flow(-40, 0))
    assert grid is not None
    # The picture is half the flow's size: 40 pixels a second are 20 here, and 10 in half a second.
    drawn = shafts(arrows(grid, FLOW_SIDE, FLOW_SIDE // 2, 0.5))
    assert len(drawn) == GRID * GRID
    assert {one[2:] for one in drawn} == {(-10.0, 0.0)}
    assert drawn[0][:2] == (FLOW_SIDE / GRID / 2, FLOW_SIDE / GRID / 4)
    assert drawn[-1][:2] == (FLOW_SIDE - FLOW_SIDE / GRID / 2, FLOW_SIDE / 2 - FLOW_SIDE / GRID / 4)


def test_rows_come_first() -> None:
    values = [0.0] * (2 * GRID * GRID)
    values[2 * (GRID * 3 + 5) + 1] = 80.0  # row 3, column 5, downwards
    grid = flow_grid(values)
    assert grid is not None
    [moved] = [one for one in shafts(arrows(grid, 256, 256, 0.5)) if one[2:] != (0, 0)]
    assert moved == (5.5 * 32, 3.5 * 32, 0.0, 40.0)


def test_what_stands_still_is_dots() -> None:
    grid = flow_grid(uniform_flow(0, 0))
    assert grid is not None
    assert arrow_seconds([grid]) == 1.0
    assert set(re.findall(r"l[^M]*", arrows(grid, 160, 90, 1.0))) == {"l0.0 0.0"}


@pytest.mark.parametrize("values", [None, [], [1.0], [0.0] * 127])
def test_no_flow(values: list[float] | None) -> None:
    assert flow_grid(values) is None
    assert arrow_seconds([None]) == 1.0
    assert arrow_seconds([]) == 1.0


def test_flow_that_is_not_finite_has_no_arrow() -> None:
    values: list[float | None] = [*uniform_flow(5, 5)]
    values[0], values[3] = float("nan"), None
    grid = flow_grid(values)
    assert grid is not None
    path = arrows(grid, 160, 160, arrow_seconds([grid]))
    assert len(shafts(path)) == GRID * GRID - 2
    assert "nan" not in path
    everywhere = flow_grid([float("nan")] * (2 * GRID * GRID))
    assert everywhere is not None
    assert arrow_seconds([everywhere]) == 1.0
    assert arrows(everywhere, 160, 160, 1.0) == ""


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=128, max_size=128),
    st.integers(1, 300),
    st.integers(1, 300),
)
def test_arrows_are_numbers_and_never_longer_than_the_picture(
    values: list[float], width: int, height: int
) -> None:
    grid = flow_grid(values)
    assert grid is not None
    seconds = arrow_seconds([grid, None])
    assert seconds in SCALES_S
    lengths = np.hypot(grid[..., 0].astype(float), grid[..., 1].astype(float))
    if seconds > SCALES_S[-1]:
        assert np.quantile(lengths, 0.97) * seconds <= LONGEST_CELLS * FLOW_SIDE / GRID * 1.001
    path = arrows(grid, width, height, seconds)
    assert re.fullmatch(r"[Ml\d. -]*", path)
    for x, y, dx, dy in (tuple(map(float, match)) for match in SHAFT.findall(path)):
        assert np.hypot(dx, dy) <= min(width, height) + 0.2
        assert -400 < x < 700
        assert -400 < y < 700
