"""The attention mask of a pack as a picture that stays true at any length.

A cell stands for equally many queries (rows) and keys (columns), and is as opaque as the share of
its pairs that the mask lets see each other: exact, from the two interval vectors of the layout, and
never from a T x T array.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infra.layout import Sequence

MAX_CELLS = 480
INK = (47, 125, 117)  # a colour that stands on light and on dark paper


@dataclass(frozen=True, eq=False)
class Mask:
    """``shares`` [C, C] in [0, 1]; a cell is ``cell`` x ``cell`` positions, the last ones fewer."""

    num_tokens: int
    cell: int
    shares: NDArray[np.float64]

    @property
    def side(self) -> float:
        """Cells of the whole sequence: its end may lie within the last one."""
        return self.num_tokens / self.cell

    def uri(self) -> str:
        """A PNG as a data URI, one pixel a cell, transparent where nothing is seen."""
        # Anything that is seen at all stays visible.
        alpha = np.where(self.shares > 0, np.maximum(self.shares * 255, 12), 0).round()
        colours = np.full((*alpha.shape, 3), INK, np.uint8)
        rgba = np.concatenate([colours, alpha[..., None].astype(np.uint8)], axis=2)
        out = io.BytesIO()
        Image.fromarray(rgba).save(out, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def visible_shares(sequence: Sequence, max_cells: int = MAX_CELLS) -> Mask:
    """The mask reduced by area to at most ``max_cells`` cells a side.

    Raises ValueError for a sequence without positions.
    """
    length = sequence.num_tokens
    if not length:
        raise ValueError("a pack without positions has no mask")
    cell = -(-length // max_cells)
    edges = np.append(np.arange(0, length, cell), length)
    sizes = np.diff(edges)
    shares = np.empty((len(sizes), len(sizes)))
    start, end = sequence.key_start.astype(np.int64), sequence.key_end.astype(np.int64)
    for row, first in enumerate(edges[:-1].tolist()):
        here = slice(first, first + cell)
        # Visible keys below each edge, summed over the cell's queries.
        below = np.clip(edges, start[here, None], end[here, None]) - start[here, None]
        shares[row] = np.diff(below.sum(axis=0)) / (sizes[row] * sizes)
    return Mask(length, cell, shares)
