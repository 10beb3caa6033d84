"""How few packs any planner could do with: what a plan is measured against.

For one size the bound L2 of Martello and Toth (Knapsack Problems, 1990, section 8.3): items above
half a pack need a pack each, and what does not fit beside them needs more. It is never below the
sum of sizes over the capacity. For two sizes the larger of both bounds holds.
"""

import math

import numpy as np
from numpy.typing import NDArray

from packing.strategies import Int64, Packing

COST_LEVELS = 1 << 16  # costs are counted in so many parts of the budget, rounded down


def martello_toth(sizes: Int64, capacity: int) -> int:
    """L2 of items of these sizes, 0 to ``capacity`` each: as long as sorting them takes.

    Takes the largest bound over all thresholds k up to half the capacity: items above
    ``capacity - k`` are alone in their packs, and items below k are left out.
    """
    values, counts = np.unique(sizes, return_counts=True)
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


def lower_bound(
    tokens: Int64, costs: NDArray[np.float64], packing: Packing, budget: float = math.inf
) -> int:
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
    return max(bound, by_cost, martello_toth(levels, COST_LEVELS))
