"""Attended pairs as FlexAttention computes them: whole tiles of 128 queries by 128 keys.

A block mask skips the tiles in which no query sees a key and computes every other one in full
(github.com/meta-pytorch/attention-gym). In a pack each query sees itself and one interval of keys,
and neither end of the interval ever moves back, so the queries of a tile together see one interval
too: from the first query's first key to the last query's last. Counting takes one step per tile of
queries.

A document's tiles depend on where in the pack it starts. Its *share* is what it adds to a pack: the
tiles it touches, less the one that it has in common with the document before it unless it starts on
a tile's edge. Shares add up exactly to the tiles of the pack; their mean over all starts is what a
planner that does not know the starts should count.
"""

from collections import abc

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.schedules import SCHEDULES
from infra.segments import Segment, Text

Int64 = NDArray[np.int64]

TILE = 128


def tile_pairs(key_start: ArrayLike, key_end: ArrayLike, tile: int = TILE) -> int:
    """Pairs of the tiles computed for a pack as laid out, each of ``tile`` x ``tile``.

    Both [T], of `infra.layout.Sequence`: query q sees the keys [key_start[q], key_end[q]), itself
    among them, and neither decreases. The last tiles count in full, though the pack ends in them.
    """
    starts, ends = np.asarray(key_start, np.int64), np.asarray(key_end, np.int64)
    if not len(starts):
        return 0
    last = np.append(ends[tile - 1 : -1 : tile], ends[-1])  # of each tile of queries
    return int(((last - 1) // tile - starts[::tile] // tile + 1).sum()) * tile * tile


def document_tile_pairs(
    segments: abc.Sequence[Segment], start: int | None = None, tile: int = TILE
) -> float:
    """A document's share of its pack's `tile_pairs` if it starts at position ``start`` there.

    Without ``start``: the mean over all of them. Takes O(T / tile) steps for one start and O(T)
    for all; 0 for a document without tokens.
    """
    positions, ends = _runs(segments)
    num_tokens = int(ends[-1]) if len(ends) else 0
    if not num_tokens:
        return 0.0
    offsets = np.array([start % tile]) if start is not None else np.arange(tile)
    # Row o: the last query of each of the document's tiles of queries, if it starts at o.
    edges = np.arange(1, -(-(num_tokens + tile - 1) // tile) + 1) * tile
    last = np.minimum(edges[None, :] - offsets[:, None], num_tokens) - 1
    first = edges[None, :] - tile - offsets[:, None]
    there = first < num_tokens
    run = np.searchsorted(positions, last, side="right") - 1
    # Inside text a query sees up to itself, inside a scale up to the scale's end.
    end = np.where(ends[run] < 0, last + 1, ends[run])
    tiles = np.where(there, (end + offsets[:, None] - 1) // tile + 1, 0).sum(axis=1)
    return float((tiles - (offsets > 0)).mean()) * tile * tile


def _runs(segments: abc.Sequence[Segment]) -> tuple[Int64, Int64]:
    """Where each run of positions with one rule starts, and its keys' end; -1 for text.

    The last entry stands for the document's end, and holds it.
    """
    positions: list[int] = []
    ends: list[int] = []
    at = 0
    for segment in segments:
        if isinstance(segment, Text):
            positions.append(at)
            ends.append(-1)
            at += len(segment.ids)
            continue
        positions.append(at)  # <boi>
        ends.append(-1)
        at += 1
        grids = SCHEDULES[segment.schedule].grids[: segment.num_scales]
        for height, width in grids[1:] if segment.role == "target" else grids:
            positions.append(at)
            at += height * width
            ends.append(at)
        positions.append(at)  # <eoi>
        ends.append(-1)
        at += 1
    return np.array([*positions, at], np.int64), np.array([*ends, at], np.int64)
