"""What a plan comes to, added up while it streams by: packs, bound, balance, fill and mixture.

Memory does not grow with the plan: sizes are counted in so many levels, tokens by component over
stretches of packs, neighbours of which are joined when there are too many.
"""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from packing.lower_bound import COST_LEVELS, BesideDear, martello_toth_counts
from packing.strategies import Int64, Packing, padded_tokens, scaled

LEVELS = COST_LEVELS  # tokens are counted exactly where packs hold no more than so many
MAX_STRETCHES = 4_096
STRETCH = 0.01  # of all packs: the realised mixture is looked at over so many in a row ...
MIN_STRETCH = 100  # ... and over no fewer packs than these


class Summary:
    """Sums over the tables of `packing.plan.plan_windows`; ``add`` them in their order.

    ``shares`` are the quotas of the components, relative to each other; (1.0,) for one alone.
    """

    def __init__(self, packing: Packing, budget: float, shares: Sequence[float] = (1.0,)) -> None:
        self.packing, self.budget = packing, budget
        self.shares = np.array(shares) / math.fsum(shares)
        self.num_packs = 0
        self.num_documents = 0  # that are in a pack, each copy and piece
        self.num_padded_tokens = 0  # of all packs
        self.tokens: Int64 = np.zeros(len(shares), np.int64)  # in packs, of each component
        self.rejected: dict[str, int] = {}  # documents by reason
        self._max_cost = self._sum_cost = 0.0
        self._levels: Int64 = np.zeros((2, LEVELS + 1), np.int64)  # documents by tokens, by cost
        self._scaled_cost = 0
        self._beside = BesideDear()
        self._width = 1  # packs of a stretch
        self._stretches: Int64 = np.zeros((MAX_STRETCHES, len(shares)), np.int64)

    def add(self, rows: pa.Table) -> None:
        """Add rows of whole packs, in the order of packs, or rejected ones.

        Raises ValueError where packs are missing or come again.
        """
        for reason in rows["reason"].value_counts().to_pylist():
            if reason["values"] is not None:
                name = reason["values"]
                self.rejected[name] = self.rejected.get(name, 0) + reason["counts"]
        rows = rows.filter(rows["pack"].is_valid())
        if not len(rows):
            return
        pack = rows["pack"].to_numpy()
        starts = np.flatnonzero(np.diff(pack, prepend=-1))
        if not np.array_equal(pack[starts], self.num_packs + np.arange(len(starts))):
            raise ValueError(
                f"packs {pack[0]} to {pack[-1]} follow {self.num_packs} packs: give each table "
                "of the plan once, in order"
            )
        tokens, costs = (rows[name].to_numpy() for name in ("num_tokens", "cost"))
        self._add_packs(tokens, costs, starts)
        self._add_sizes(tokens, costs)
        self._add_mixture(pack, tokens, rows["component"].to_numpy())

    @property
    def num_tokens(self) -> int:
        """Of all packs, without padding."""
        return int(self.tokens.sum())

    @property
    def imbalance(self) -> float:
        """Largest over mean cost of a pack; 1.0 for no pack."""
        return self._max_cost / (self._sum_cost / self.num_packs) if self.num_packs else 1.0

    @property
    def token_fill(self) -> float:
        """Tokens over tokens with padding; 1.0 for no pack."""
        return self.num_tokens / self.num_padded_tokens if self.num_packs else 1.0

    @property
    def lower_bound(self) -> int:
        """No packing of the same documents has fewer packs: `packing.lower_bound`, but of sizes
        rounded down to one of `LEVELS`, so that it is never above that and hardly below."""
        if not self.num_packs:
            return 0
        cap = self.packing.token_cap
        bound = max(-(-self.num_tokens // cap), _bound(self._levels[0], min(cap, LEVELS)))
        if self.packing.strategy == "batch_padding":
            return max(bound, -(-self.num_documents // self.packing.batch_size))
        if math.isinf(self.budget):
            return bound
        capacity = scaled(_NONE, np.zeros(0), self.packing, self.budget)[2]
        by_cost = max(-(-self._scaled_cost // capacity), _bound(self._levels[1], LEVELS))
        return max(bound, by_cost, self._beside.bound)

    @property
    def mixture(self) -> NDArray[np.float64]:
        """The realised share of each component in the tokens of all packs."""
        return self.tokens / max(self.num_tokens, 1)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """The largest distance of each component's share from its quota, over any `STRETCH` of the
        packs, or `MIN_STRETCH` packs where these are more; over all where there are not so many."""
        if not self.num_packs:
            return np.zeros(len(self.shares))
        used = -(-self.num_packs // self._width)
        packs = min(max(math.ceil(STRETCH * self.num_packs), MIN_STRETCH), self.num_packs)
        length = -(-packs // self._width)
        zero = np.zeros((1, len(self.shares)), np.int64)
        sums = np.concatenate([zero, np.cumsum(self._stretches[:used], axis=0)])
        runs = sums[length:] - sums[:-length]
        realised = runs / runs.sum(axis=1, keepdims=True)
        found: NDArray[np.float64] = np.abs(realised - self.shares).max(axis=0)
        return found

    def _add_packs(self, tokens: Int64, costs: NDArray[np.float64], starts: Int64) -> None:
        sizes = np.diff(starts, append=len(tokens))
        cost = np.add.reduceat(costs, starts)
        padded = padded_tokens(
            self.packing,
            sizes,
            np.add.reduceat(tokens, starts),
            np.maximum.reduceat(tokens, starts),
        )
        self.num_packs += len(starts)
        self.num_documents += len(tokens)
        self.num_padded_tokens += int(padded.sum())
        self._max_cost = max(self._max_cost, float(cost.max()))
        self._sum_cost += math.fsum(cost)

    def _add_sizes(self, tokens: Int64, costs: NDArray[np.float64]) -> None:
        cap = self.packing.token_cap
        self._levels[0] += np.bincount(tokens * min(cap, LEVELS) // cap, minlength=LEVELS + 1)
        if self.packing.strategy == "fixed_compute" and not math.isinf(self.budget):
            compute, _, capacity = scaled(tokens, costs, self.packing, self.budget)
            self._scaled_cost += int(compute.sum())  # of a window: far below 2^63
            level = (compute / capacity * LEVELS).astype(np.int64)
            self._levels[1] += np.bincount(level, minlength=LEVELS + 1)
            self._beside.add(tokens, costs, self.packing, self.budget)

    def _add_mixture(self, pack: Int64, tokens: Int64, component: NDArray[np.int16]) -> None:
        while pack[-1] >= self._width * MAX_STRETCHES:
            joined = self._stretches[0::2] + self._stretches[1::2]
            self._stretches = np.concatenate([joined, np.zeros_like(joined)])
            self._width *= 2
        kinds = len(self.shares)
        cell = pack // self._width * kinds + component
        found = np.bincount(cell, tokens, MAX_STRETCHES * kinds).astype(np.int64)  # exact to 2^53
        found = found.reshape(MAX_STRETCHES, kinds)
        self._stretches += found
        self.tokens += found.sum(axis=0)


_NONE: Int64 = np.zeros(0, np.int64)


def _bound(levels: Int64, capacity: int) -> int:
    values = np.flatnonzero(levels)
    return martello_toth_counts(values, levels[values], capacity)
