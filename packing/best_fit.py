"""Two-dimensional best-fit-decreasing: the bin packing under `packing.plan`.

Every item has two sizes (compute and tokens) and every bin the same capacity in both. Items are
taken from large to small; each goes to the bin that it leaves with the least room. All sizes are
integers, so that the result does not depend on the machine. About n log n steps.
"""

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

CARRY_BELOW = 0.99  # a bin filled less in both sizes is taken apart and tried in the next window
MAX_CARRIES = 2  # how often an item may be tried again, so that a window stays bounded
SCAN = 16  # bins looked at one by one before taking one that is certain to fit
_BIN_BITS = 24
_BIN_MASK = (1 << _BIN_BITS) - 1
MAX_WINDOW = 1 << (_BIN_BITS - 2)  # with carried items a window grows to three times its size


def best_fit_decreasing(first: Int64, second: Int64, capacity: int) -> Int64:
    """The bin of each item, numbered from 0; both sizes at most ``capacity``.

    Bins are kept sorted by the room in their fuller size. That room holds any item whose larger
    size it covers, so a fit is found by bisection; a tighter one, where the item is small in the
    size that is short, is looked for in the few bins before it.
    """
    sizes = np.maximum(first, second)
    order = np.argsort(-sizes, kind="stable")  # ties keep the caller's order
    smallest = int(np.minimum(first, second).min(initial=0))
    bins = np.empty(len(first), np.int64)
    rooms: list[tuple[int, int]] = []
    open_bins: list[int] = []  # (room of the fuller size << _BIN_BITS) | bin, ascending
    for item, a, b in zip(
        order.tolist(), first[order].tolist(), second[order].tolist(), strict=True
    ):
        low, high = (a, b) if a < b else (b, a)
        at = bisect_left(open_bins, low << _BIN_BITS)
        certain = at if low == high else bisect_left(open_bins, high << _BIN_BITS, at)
        for place in range(at, min(certain, at + SCAN)):
            bin_ = open_bins[place] & _BIN_MASK
            room_a, room_b = rooms[bin_]
            if room_a >= a and room_b >= b:
                del open_bins[place]
                break
        else:
            if certain < len(open_bins):
                bin_ = open_bins.pop(certain) & _BIN_MASK
                room_a, room_b = rooms[bin_]
            else:
                bin_ = len(rooms)
                room_a = room_b = capacity
                rooms.append((capacity, capacity))
        bins[item] = bin_
        room_a, room_b = room_a - a, room_b - b
        rooms[bin_] = (room_a, room_b)
        room = min(room_a, room_b)
        if room >= smallest:
            insort(open_bins, room << _BIN_BITS | bin_)
    return bins


def pack_in_windows(first: Int64, second: Int64, capacity: int, window: int) -> Int64:
    """The bin of each item, items taken in windows of ``window`` in the order given.

    Bins are numbered by window and within a window by their largest item's place in the order, so
    that bin numbers follow the order and say nothing of fill. Badly filled bins of a window are
    taken apart and their items join the next window, at most `MAX_CARRIES` times.
    """
    bins = np.full(len(first), -1, np.int64)
    carried = np.zeros(0, np.int64)
    carries = np.zeros(len(first), np.int8)
    num_bins = 0
    for start in range(0, len(first), window):
        stop = min(start + window, len(first))
        items = np.concatenate([carried, np.arange(start, stop)])
        a, b = first[items], second[items]
        local = best_fit_decreasing(a, b, capacity)
        kept = np.ones(int(local.max()) + 1, np.bool_)
        if stop < len(first):
            fill = np.maximum(_sums(local, a), _sums(local, b))
            kept = fill >= int(CARRY_BELOW * capacity)
            kept[local[carries[items] >= MAX_CARRIES]] = True
        # The largest item opened the bin; among equals best_fit_decreasing takes the first.
        by_size = np.lexsort((np.arange(len(items)), -np.maximum(a, b), local))
        opener = by_size[np.flatnonzero(np.diff(local[by_size], prepend=-1))]
        rank = np.full(len(kept), -1, np.int64)
        leaders = np.flatnonzero(kept)[np.argsort(opener[kept])]
        rank[leaders] = num_bins + np.arange(len(leaders))
        num_bins += len(leaders)
        bins[items] = rank[local]
        carried = items[~kept[local]]
        carries[carried] += 1
    return bins


def _sums(bins: Int64, sizes: Int64) -> Int64:
    return np.bincount(bins, weights=sizes).astype(np.int64)  # exact: sums stay below 2^53
