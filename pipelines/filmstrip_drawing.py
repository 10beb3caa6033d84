"""Flow as arrows over a small picture, as plain numbers for the SVG of templates/filmstrip.html."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

GRID = 8
"""A candidate's ``flow`` has so many rows and columns of vectors."""
FLOW_SIDE = 256
"""Short side of the pictures that flow is measured in, in pixels, unless the run says otherwise."""
SCALES_S = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
LONGEST_CELLS = 1.25
HEAD = 0.3  # of an arrow's length

Flow = NDArray[np.float32]


def flow_grid(values: Sequence[float | None] | None) -> Flow | None:
    """The vectors [8, 8, 2] (x, y) of a candidate's ``flow``; None where there are none."""
    if not values or len(values) != GRID * GRID * 2:
        return None
    return np.array(values, np.float32).reshape(GRID, GRID, 2)


def arrow_seconds(grids: Iterable[Flow | None], flow_side: int = FLOW_SIDE) -> float:
    """How long the motion is that arrows show, so that fast ones are not much longer than a cell.

    One for all candidates of a clip, so that they can be compared, and a second at most: what
    stands still shows no arrows. Flow is in pixels per second at a short side of ``flow_side``.
    """
    lengths = [np.hypot(grid[..., 0], grid[..., 1]).ravel() for grid in grids if grid is not None]
    every = np.concatenate([np.zeros(1, np.float32), *lengths])
    fast = float(np.nanquantile(every, 0.98))
    room = LONGEST_CELLS * flow_side / GRID
    return next((seconds for seconds in SCALES_S if fast * seconds <= room), SCALES_S[-1])


def arrows(grid: Flow, width: int, height: int, seconds: float, flow_side: int = FLOW_SIDE) -> str:
    """The ``d`` of an SVG path over a picture of ``width`` x ``height`` pixels.

    An arrow for each cell, from its middle along the motion of ``seconds``. Vectors that are not
    finite are left out; those longer than the picture are cut to its short side.
    """
    short = min(width, height)
    vectors = grid.astype(np.float64) * (seconds * short / flow_side)
    parts = []
    for row in range(GRID):
        for column in range(GRID):
            x, y = (column + 0.5) * width / GRID, (row + 0.5) * height / GRID
            dx, dy = vectors[row, column]
            length = float(np.hypot(dx, dy))
            if not np.isfinite(length):
                continue
            if length > short:
                dx, dy = dx * short / length, dy * short / length
            parts.append(_arrow(x, y, float(dx), float(dy), length))
    return "".join(parts)


def _arrow(x: float, y: float, dx: float, dy: float, length: float) -> str:
    shaft = f"M{x:.1f} {y:.1f}l{dx:.1f} {dy:.1f}"  # of no length: a dot, by its round cap
    if length < 4:
        return shaft
    back_x, back_y = -HEAD * dx, -HEAD * dy
    side_x, side_y = 0.55 * back_y, -0.55 * back_x
    left = f"l{back_x + side_x:.1f} {back_y + side_y:.1f}"
    right = f"l{back_x - side_x:.1f} {back_y - side_y:.1f}"
    return f"{shaft}{left}M{x + dx:.1f} {y + dy:.1f}{right}"
