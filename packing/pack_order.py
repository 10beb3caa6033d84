"""The order of the packs of a window: one in which the mixture is the same everywhere.

Best-fit-decreasing makes packs of alike documents: the long ones together, then the short. Packs
are split into two halves of the same tokens of every component, each half again, and so on, so that
any run of them is made of few pieces that are each balanced. Compiled by Numba.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from packing.strategies import Int64


def spread(packs: Int64, tokens: Int64, component: NDArray[np.int16]) -> Int64:
    """Number the packs of documents anew; -1, a document in none, stays.

    ``tokens`` and ``component`` are those of each document.
    """
    inside = packs >= 0
    num_packs, kinds = int(packs.max(initial=-1)) + 1, int(component.max(initial=0)) + 1
    cell = packs[inside] * kinds + component[inside]
    amounts = np.bincount(cell, tokens[inside], num_packs * kinds).reshape(num_packs, kinds)
    # By the rarest component first: it is the one that few packs hold.
    alike = np.lexsort(amounts.T[np.argsort(-amounts.sum(axis=0), kind="stable")])
    place = np.empty(num_packs + 1, np.int64)
    place[_halves(amounts, alike)] = np.arange(num_packs)
    place[-1] = -1
    return place[packs]


@numba.njit(cache=True)
def _halves(amounts: NDArray[Any], order: Int64) -> Int64:
    """Split runs of ``order`` in two until they are single; neighbours part, one into each half."""
    n, kinds = amounts.shape
    order = order.copy()
    halves = np.empty(n, np.int64)
    excess = np.empty(kinds)
    starts = np.empty(65, np.int64)  # runs to split: at most one of each length is waiting
    stops = np.empty(65, np.int64)
    starts[0], stops[0], waiting = 0, n, 1
    while waiting:
        waiting -= 1
        start, stop = starts[waiting], stops[waiting]
        if stop - start < 3:
            continue
        excess[:] = 0.0
        half = (stop - start + 1) // 2
        for i in range(half):
            a = start + 2 * i
            b = min(a + 1, stop - 1)
            ahead = 0.0
            for k in range(kinds):
                ahead += excess[k] * (amounts[order[a], k] - amounts[order[b], k])
            swap = ahead > 0
            if swap:
                a, b = b, a
            halves[start + i] = order[a]
            if start + half + i < stop:
                halves[start + half + i] = order[b]
            for k in range(kinds):
                excess[k] += amounts[order[a], k] - amounts[order[b], k]
        order[start:stop] = halves[start:stop]
        starts[waiting], stops[waiting] = start, start + half
        starts[waiting + 1], stops[waiting + 1] = start + half, stop
        waiting += 2
    return order
