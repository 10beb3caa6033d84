"""Draw one of many by weights; or first a group of neighbours and then one of the group."""

import numpy as np
from numpy.typing import NDArray


class WeightedDraw:
    """n things with weights, in groups that lie side by side, as pictures in row groups do."""

    def __init__(self, weights: NDArray[np.float64], groups: NDArray[np.int32]) -> None:
        """``weights`` [n], 0 or more; ``groups`` [n]: equal numbers, side by side, are a group."""
        self._count = len(weights)
        differ = self._count > 0 and bool(np.ptp(weights))
        self._cumulative = np.cumsum(weights) if differ else None
        starts = np.flatnonzero(np.diff(groups, prepend=-1))
        self._starts = np.append(starts, self._count) if len(starts) > 1 else None

    def index(self, rng: np.random.Generator, near: np.random.Generator | None = None) -> int:
        """An index, by the weights, in O(log n); a function of the generators' states alone.

        ``near`` draws the group, by its weight, and ``rng`` one of the group: so calls with equal
        states of ``near`` stay in one group, and each thing is still drawn by its weight. Without
        ``near``, or with one group, ``rng`` draws among all.
        """
        if self._starts is None or near is None:
            return self._between(rng, 0, self._count)
        any_of_it = self._between(near, 0, self._count)
        group = int(np.searchsorted(self._starts, any_of_it, side="right")) - 1
        return self._between(rng, int(self._starts[group]), int(self._starts[group + 1]))

    def _between(self, rng: np.random.Generator, start: int, stop: int) -> int:
        if self._cumulative is None:
            # Not by the weights: the one call whose draws trainings without weights have always had
            return start + int(rng.integers(stop - start))
        below = float(self._cumulative[start - 1]) if start else 0.0
        place = below + rng.random() * (float(self._cumulative[stop - 1]) - below)
        # The product may be rounded up to the sum of the weights, which lies behind the last.
        return min(int(np.searchsorted(self._cumulative, place, side="right")), stop - 1)
