"""What a plan would cost on so many ranks: steps wait for their dearest rank.

    costs = executed_cost(made, num_tokens, num_loss, num_pairs, of)
    simulate(costs, made.pack_tokens, made.pack_padded_tokens, num_ranks=1024)

Arithmetic only, in the cost model's unit: kernels, communication and input are not modelled.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from packing.cost import Coefficients, cost
from packing.plan import Plan

Floats = NDArray[np.float64]
Barrier = Literal["step", "micro_step"]


@dataclass(frozen=True, eq=False)
class Simulation:
    """Whole steps of a plan; the packs that fill no step are ``num_dropped``."""

    num_ranks: int
    micro_steps: int
    num_dropped: int
    rank_cost: Floats  # [steps, ranks]
    step_cost: Floats  # [steps]: until the last rank is through
    num_tokens: int  # without padding
    executed_tokens: int  # with it
    most_tokens: int  # of a pack, padding included: what memory must hold

    @property
    def throughput(self) -> float:
        """Tokens without padding per rank and unit of cost."""
        return self.num_tokens / (self.num_ranks * float(self.step_cost.sum()))

    @property
    def imbalance(self) -> float:
        """Time of all steps over that of evenly loaded ranks: 1 is perfect."""
        return float(self.step_cost.sum() / self.rank_cost.mean(axis=1).sum())

    @property
    def fill(self) -> float:
        """Share of executed tokens that are no padding."""
        return self.num_tokens / self.executed_tokens


def simulate(
    pack_cost: ArrayLike,
    pack_tokens: ArrayLike,
    executed: ArrayLike,
    *,
    num_ranks: int,
    micro_steps: int = 1,
    barrier: Barrier = "step",
) -> Simulation:
    """Run packs in their order, step t on packs [tNM, (t+1)NM) as `packing.reader` deals them.

    Under ZeRO-1 and 2 ranks wait for each other once a step (``step``: a rank's micro-steps add
    up); under ZeRO-3 every layer gathers its weights, so they wait in every ``micro_step``. Raises
    ValueError if the packs fill no step.
    """
    costs, tokens = np.asarray(pack_cost, np.float64), np.asarray(pack_tokens, np.int64)
    with_padding = np.asarray(executed, np.int64)
    per_step = num_ranks * micro_steps
    steps = len(costs) // per_step
    if num_ranks < 1 or micro_steps < 1 or not steps:
        raise ValueError(f"{len(costs)} packs fill no step of {num_ranks} x {micro_steps}")
    used = steps * per_step
    dealt = costs[:used].reshape(steps, micro_steps, num_ranks)
    by_rank = dealt.sum(axis=1)
    waits = by_rank.max(axis=1) if barrier == "step" else dealt.max(axis=2).sum(axis=1)
    return Simulation(
        num_ranks,
        micro_steps,
        len(costs) - used,
        by_rank,
        waits,
        int(tokens[:used].sum()),
        int(with_padding[:used].sum()),
        int(with_padding[:used].max()),
    )


def executed_cost(
    made: Plan,
    num_tokens: ArrayLike,
    num_loss: ArrayLike,
    num_pairs: ArrayLike,
    of: Coefficients,
) -> Floats:
    """Cost of each pack as executed; counts are per document, as `plan` was given them.

    ``fixed_length`` runs its linear layers over the padding too, ``batch_padding`` also a causal
    mask over each document's padded length. The head runs where there are targets.
    """
    inside = made.pack >= 0
    document, pack = made.document[inside], made.pack[inside]
    sums: list[Floats] = [
        np.bincount(pack, np.asarray(counts)[document], made.num_packs).astype(np.float64)
        for counts in (num_tokens, num_loss, num_pairs)
    ]
    tokens, loss, pairs = sums
    padded = made.pack_padded_tokens.astype(np.float64)
    if made.packing.strategy != "fixed_compute":
        tokens = padded
    if made.packing.strategy == "batch_padding":
        longest = padded / made.pack_documents
        pairs = made.pack_documents * longest * (longest + 1) / 2
    return cost(tokens, loss, pairs, of) + of.per_pack
