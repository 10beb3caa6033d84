"""What the decoder reads at vision positions: code embeddings upsampled from the previous scale.

The input of scale s is the bicubic upsampling, in code space, of the embeddings of scale s - 1:
residual features, never accumulated (paper section 2.2, Self Correction with Residual Features).
Bicubic upsampling is linear with 4 x 4 taps, so a whole pack is one gather of 16 codes per position
and one weighted sum, whatever schedules its images follow. Equal to
``F.interpolate(mode="bicubic", align_corners=False)``.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.layout import Sequence
from infra.schedules import Grid

NUM_TAPS = 16
_A = -0.75  # the cubic convolution coefficient that torch and OpenCV use


def sequence_taps(sequence: Sequence) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Codes and weights of the taps of every vision position of a pack, in position order.

    Returns ``codes`` and ``weights``, both [num_vision, 16]: the input of a position is the sum of
    ``weights[n, k] * embedding[codes[n, k]]``. Positions of condition images, which read their own
    grid, get their own code with weight 1.
    """
    vision = np.flatnonzero(sequence.scale)
    columns = ("source_height", "source_width", "grid_height", "grid_width")
    grids = np.stack([getattr(sequence, name)[vision] for name in columns], axis=1)
    cells = sequence.row[vision] * sequence.grid_width[vision] + sequence.col[vision]
    source = np.zeros((len(vision), NUM_TAPS), np.int32)
    weights = np.zeros((len(vision), NUM_TAPS), np.float32)
    transitions, which = np.unique(grids, axis=0, return_inverse=True)
    for number, (height, width, to_height, to_width) in enumerate(transitions.tolist()):
        rows = np.flatnonzero(which == number)
        index, weight = bicubic_taps((height, width), (to_height, to_width))
        source[rows], weights[rows] = index[cells[rows]], weight[cells[rows]]
    source += sequence.source_start[vision][:, None]
    return sequence.input_codes[source], weights


@lru_cache(maxsize=1024)
def bicubic_taps(source: Grid, target: Grid) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Taps from a grid (height, width) to another: flat source cells and weights.

    Both arrays are [target cells, 16], row-major, read-only.
    """
    row_index, row_weight = _taps_1d(source[0], target[0])
    col_index, col_weight = _taps_1d(source[1], target[1])
    index = row_index[:, None, :, None] * source[1] + col_index[None, :, None, :]
    weight = row_weight[:, None, :, None] * col_weight[None, :, None, :]
    index = index.reshape(-1, NUM_TAPS).astype(np.int32)
    weight = weight.reshape(-1, NUM_TAPS).astype(np.float32)
    index.flags.writeable = weight.flags.writeable = False  # shared by the cache
    return index, weight


def _taps_1d(source: int, target: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """[target, 4] source cells, clamped at the border, and their weights."""
    position = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(position)
    t = position - first
    weights = np.stack([_far(t + 1), _near(t), _near(1 - t), _far(2 - t)], axis=1)
    cells = first[:, None].astype(np.int64) + np.arange(-1, 3)
    return cells.clip(0, source - 1), weights


def _near(x: NDArray[Any]) -> NDArray[Any]:  # |x| <= 1
    return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _far(x: NDArray[Any]) -> NDArray[Any]:  # 1 < |x| < 2
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
