"""How few packs any planner could do with: what a plan is measured against.

For one size the bound L2 of Martello and Toth (Knapsack Problems, 1990, section 8.3): items above
half a pack need a pack each, and what does not fit beside them needs more. It is never below the
sum of sizes over the capacity. For two sizes the larger of both bounds holds, and one more: what
is dear for its tokens leaves room for few tokens beside it (`BesideDear`).
"""

import math

import numpy as np
from numpy.typing import NDArray

from packing.strategies import Int64, Packing, scaled

Floats = NDArray[np.float64]

COST_LEVELS = 1 << 16  # costs are counted in so many parts of the budget, rounded down
RATIOS = 256  # ratios of both sizes are tried in so many steps
_SLICE = 1 << 16  # items whose sizes are floating-point numbers at a time


def martello_toth(sizes: Int64, capacity: int) -> int:
    """L2 of items of these sizes, 0 to ``capacity`` each: as long as sorting them takes.

    Takes the largest bound over all thresholds k up to half the capacity: items above
    ``capacity - k`` are alone in their packs, and items below k are left out.
    """
    return martello_toth_counts(*np.unique(sizes, return_counts=True), capacity)


def martello_toth_counts(values: Int64, counts: Int64, capacity: int) -> int:
    """`martello_toth` of items that are counted by size; sizes ascend."""
    number = np.append(0, np.cumsum(counts))  # number[i]: of items smaller than values[i]
    total = np.append(0, np.cumsum(counts * values))
    half = np.searchsorted(values, capacity // 2, side="right")  # the first value above half
    # Between these thresholds nothing more is alone, and items are only left out.
    k = np.append(0, capacity + 1 - values[half:])
    k = k[k <= capacity // 2]
    below, alone = np.searchsorted(values, k), np.searchsorted(values, capacity - k, side="right")
    room = (number[alone] - number[half]) * capacity - (total[alone] - total[half])
    beside = np.maximum(total[half] - total[below] - room, 0)
    return int(number[-1] - number[half] + (-(-beside // capacity)).max())


def lower_bound(tokens: Int64, costs: Floats, packing: Packing, budget: float = math.inf) -> int:
    """No packing of documents of these tokens and costs, within the same limits, has fewer packs.

    Every document must fit a pack by itself. A budget counts for ``fixed_compute`` alone.
    """
    if not len(tokens):
        return 0
    bound = martello_toth(tokens, packing.token_cap)
    if packing.strategy == "batch_padding":
        return max(bound, -(-len(tokens) // packing.batch_size))
    if packing.strategy == "fixed_length" or math.isinf(budget):
        return bound
    levels = np.minimum((costs / budget * COST_LEVELS).astype(np.int64), COST_LEVELS)
    by_cost = math.ceil(math.fsum(costs) / budget - 1e-6)  # budgets are met to one part in 10^8
    beside = BesideDear()
    beside.add(tokens, costs, packing, budget)
    return max(bound, by_cost, martello_toth(levels, COST_LEVELS), beside.bound)


class BesideDear:
    """A bound from both sizes together, added up over items in memory that does not grow.

    Two items above half the budget share no pack. Beside one of tokens t and cost c, both in parts
    of a pack, items of at least r in cost per token have at most (1 - c) / r tokens. So let it
    weigh the larger of t and 1 - (1 - c) / r, every other item of such a ratio its tokens, and
    the rest nothing: no pack weighs more than 1, and the sum is a bound, for any r.
    """

    def __init__(self) -> None:
        self._small: Floats = np.zeros(RATIOS + 1)  # tokens by ratio, rounded down
        self._dear: Floats = np.zeros(RATIOS + 1)  # weights of those above half, for each ratio

    def add(self, tokens: Int64, costs: Floats, packing: Packing, budget: float) -> None:
        for start in range(0, len(tokens), _SLICE):
            here = slice(start, start + _SLICE)
            # Rounded as the planner does, so that what it may put into a pack is no more than 1.
            compute, length, capacity = scaled(tokens[here], costs[here], packing, budget)
            c, t = compute / capacity, length / capacity
            dear = c > 0.5
            ratio = np.minimum(c[~dear] / t[~dear] * RATIOS, RATIOS).astype(np.int64)
            self._small += np.bincount(ratio, t[~dear], RATIOS + 1)
            room, least = 1 - c[dear], t[dear]
            for r in range(1, RATIOS + 1):
                self._dear[r] += np.maximum(least, 1 - room * (RATIOS / r)).sum()

    @property
    def bound(self) -> int:
        beside = np.cumsum(self._small[::-1])[::-1]  # of a ratio, and of all above it
        most = float((beside + self._dear)[1:].max())
        return math.ceil(most * (1 - 1e-9) - 1e-6)  # sums of so many numbers are that exact
