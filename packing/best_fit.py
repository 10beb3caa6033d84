"""Two-dimensional best-fit-decreasing: the bin packing under `packing.plan`.

Every item has two sizes (compute and tokens) and every bin the same capacity in both. Items are
taken from large to small; each goes to a bin that it leaves with little room. All sizes are
integers, so that the result does not depend on the machine. Compiled by Numba: the first call of
an installation takes some seconds.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from packing.strategies import Int64

CARRY_BELOW = 0.99  # a bin filled less in both sizes is taken apart and tried in the next window
MAX_CARRIES = 2  # how often an item may be tried again, so that a window stays bounded
# Items of badly filled bins are often all of a kind: a window that lost many would lack that kind.
CARRY_SHARE = 0.01  # of a window's bins are taken apart at most ...
MIN_CARRIES = 16  # ... or so many, where these are more
SCAN = 32  # bins looked at one by one before taking one that is certain to fit
LEVELS = 4096  # bins with room are kept by that room, to this resolution
_GROUP = 64  # levels are searched in groups of so many


@numba.njit(cache=True)
def best_fit_decreasing(first: Int64, second: Int64, capacity: int) -> Int64:
    """The bin of each item, numbered from 0; both sizes at most ``capacity``.

    Bins are kept in lists by the room in their fuller size. That room holds any item whose larger
    size it covers, so the first list above that size gives a fit for certain; a tighter one, where
    the item is small in the size that is short, is looked for in the few bins below it. Each item
    costs a bounded number of steps.
    """
    n = len(first)
    bins = np.empty(n, np.int64)
    order = np.argsort(-np.maximum(first, second), kind="mergesort")  # ties keep their order
    smallest = np.minimum(first, second).min() if n else 0
    room_a = np.empty(n, np.int64)
    room_b = np.empty(n, np.int64)
    after = np.empty(n, np.int64)  # the next bin of the same list; -1 ends it
    head = np.full(LEVELS, -1, np.int64)
    lists = np.zeros(LEVELS // _GROUP, np.int64)  # lists of a group that are not empty
    num_bins = 0
    for item in order:
        a, b = first[item], second[item]
        certain = _level(max(a, b), capacity) + 1
        level = _next_list(head, lists, _level(min(a, b), capacity))
        found, before, scanned = -1, -1, 0
        while level >= 0 and level < certain and found < 0 and scanned < SCAN:
            before, bin_ = -1, head[level]
            while bin_ >= 0 and scanned < SCAN:
                scanned += 1
                if room_a[bin_] >= a and room_b[bin_] >= b:
                    found = bin_
                    break
                before, bin_ = bin_, after[bin_]
            if found < 0:
                level = _next_list(head, lists, level + 1)
        if found < 0:
            level, before = _next_list(head, lists, certain), -1
            if level >= 0:
                found = head[level]
        if found < 0:
            found = num_bins
            num_bins += 1
            room_a[found] = room_b[found] = capacity
        elif before < 0:
            head[level] = after[found]
            lists[level // _GROUP] -= head[level] < 0
        else:
            after[before] = after[found]
        bins[item] = found
        room_a[found] -= a
        room_b[found] -= b
        room = min(room_a[found], room_b[found])
        if room >= smallest:
            level = _level(room, capacity)
            lists[level // _GROUP] += head[level] < 0
            after[found] = head[level]
            head[level] = found
    return bins


@numba.njit(cache=True, inline="always")
def _level(room: int, capacity: int) -> int:
    # In floating point: room x LEVELS may pass 2^63. It only has to grow with the room.
    return min(int(room / capacity * LEVELS), LEVELS - 1)


@numba.njit(cache=True)
def _next_list(head: Int64, lists: Int64, level: int) -> int:
    """The first list at or above ``level`` that holds a bin; -1 if there is none."""
    while level < LEVELS:
        if lists[level // _GROUP] == 0:
            level = (level // _GROUP + 1) * _GROUP
        elif head[level] >= 0:
            return level
        else:
            level += 1
    return -1


def pack_in_windows(first: Int64, second: Int64, capacity: int, window: int) -> Int64:
    """The bin of each item, items taken in windows of ``window`` in the order given.

    Bins are numbered by window and within a window by their largest item's place in the order, so
    that bin numbers follow the order and say nothing of fill. The emptiest of a window's badly
    filled bins are taken apart and their items join the next window, at most `MAX_CARRIES` times.
    """
    bins = np.full(len(first), -1, np.int64)
    items = np.zeros(0, np.int64)
    carries = np.zeros(len(first), np.int8)
    num_bins = 0
    for start in range(0, len(first), window):
        stop = min(start + window, len(first))
        items = np.concatenate([items, np.arange(start, stop)])
        last = stop == len(first)
        local = pack_window(first[items], second[items], capacity, carries[items], last)
        bins[items] = np.where(local < 0, -1, local + num_bins)
        num_bins += int(local.max(initial=-1)) + 1
        items = items[local < 0]
        carries[items] += 1
    return bins


def pack_window(
    first: Int64, second: Int64, capacity: int, carries: NDArray[np.int8], last: bool
) -> Int64:
    """The bin of each item of one window, as `pack_in_windows` numbers them, from 0.

    -1 is an item to try again in the next window, of which the ``last`` one has none; ``carries``
    counts how often each was tried before.
    """
    local = best_fit_decreasing(first, second, capacity)
    kept = np.ones(int(local.max(initial=-1)) + 1, np.bool_)
    if not last:
        fill = np.maximum(_sums(local, first), _sums(local, second))
        kept = fill >= int(CARRY_BELOW * capacity)
        kept[local[carries >= MAX_CARRIES]] = True
        again = np.flatnonzero(~kept)
        emptiest = again[np.argsort(fill[again], kind="stable")]
        kept[emptiest[max(MIN_CARRIES, int(CARRY_SHARE * len(kept))) :]] = True
    # The largest item opened the bin; among equals best_fit_decreasing takes the first.
    by_size = np.lexsort((np.arange(len(first)), -np.maximum(first, second), local))
    opener = by_size[np.flatnonzero(np.diff(local[by_size], prepend=-1))]
    rank = np.full(len(kept), -1, np.int64)
    leaders = np.flatnonzero(kept)[np.argsort(opener[kept])]
    rank[leaders] = np.arange(len(leaders))
    return rank[local]


def _sums(bins: Int64, sizes: Int64) -> Int64:
    return np.bincount(bins, weights=sizes).astype(np.int64)  # exact: sums stay below 2^53
