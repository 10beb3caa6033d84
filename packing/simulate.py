"""What packs would cost on so many ranks: steps wait for their dearest rank.

    packed = pack_lengths(lengths, Packing("fixed_length"), coefficients(qwen2_5_7b()))
    simulate(packed, num_ranks=1024)

Arithmetic only, in the cost model's unit: kernels, communication and input are not modelled.
Documents are numbers here: ten million of them are packed in a few seconds, in under a gigabyte.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from packing.cost import Coefficients, cost
from packing.lower_bound import lower_bound
from packing.plan import Plan
from packing.strategies import (
    REASONS,
    Int64,
    Packing,
    assign,
    default_budget,
    padded_tokens,
    reasons,
)

Floats = NDArray[np.float64]
Barrier = Literal["step", "micro_step"]


@dataclass(frozen=True, eq=False)
class Lengths:
    """What is to be packed: counts per document, all int64 and of one length."""

    num_tokens: Int64
    num_loss: Int64
    num_pairs: Int64

    def __len__(self) -> int:
        return len(self.num_tokens)

    def take(self, rows: Int64) -> "Lengths":
        return Lengths(self.num_tokens[rows], self.num_loss[rows], self.num_pairs[rows])


@dataclass(frozen=True, eq=False)
class Packed:
    """Packs as numbers in their order: how they were made, then one value per pack."""

    packing: Packing
    lower_bound: int  # of the number of packs
    left_out: dict[str, int]  # documents by reason
    num_documents: Int64
    num_tokens: Int64  # without padding
    padded_tokens: Int64  # with it: what memory must hold
    document_cost: Floats  # of the documents alone
    dearest: Floats  # of its documents
    cost: Floats  # as executed, padding included

    @property
    def num_packs(self) -> int:
        return len(self.cost)

    @property
    def imbalance(self) -> float:
        """Largest over mean cost of a pack."""
        return float(self.cost.max() / self.cost.mean())

    @property
    def fill(self) -> float:
        """Share of executed tokens that are no padding."""
        return int(self.num_tokens.sum()) / int(self.padded_tokens.sum())


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
    document_cost: float  # of all documents, padding left out
    dearest_document: float

    @property
    def throughput(self) -> float:
        """Tokens without padding per rank and unit of cost."""
        return self.num_tokens / (self.num_ranks * float(self.step_cost.sum()))

    @property
    def imbalance(self) -> float:
        """Time of all steps over that of evenly loaded ranks: 1 is perfect."""
        return float(self.step_cost.sum() / self.rank_cost.mean(axis=1).sum())

    @property
    def bound(self) -> float:
        """No schedule of these documents on so many ranks takes less than this."""
        return max(self.document_cost / self.num_ranks, self.dearest_document)

    @property
    def efficiency(self) -> float:
        """The bound over the time taken: 1 has neither padding nor waiting."""
        return self.bound / float(self.step_cost.sum())

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of all ranks' time: for documents, for padding, and waiting for the dearest rank."""
        total = self.num_ranks * float(self.step_cost.sum())
        documents, busy = self.document_cost / total, float(self.rank_cost.sum()) / total
        return documents, busy - documents, 1 - busy

    @property
    def fill(self) -> float:
        """Share of executed tokens that are no padding."""
        return self.num_tokens / self.executed_tokens


def pack_lengths(lengths: Lengths, packing: Packing, of: Coefficients) -> Packed:
    """Pack as `packing.plan.plan` does, in an order that ``packing.seed`` decides, without ids.

    Documents over a limit are left out and counted. Raises ValueError if none is left.
    """
    pack, rows, bound, left_out = _assign(lengths, packing, of)
    return sum_packs(pack, lengths.take(rows), packing, of, bound, left_out)


def _assign(
    lengths: Lengths, packing: Packing, of: Coefficients
) -> tuple[Int64, Int64, int, dict[str, int]]:
    """The pack of each document that fits one, which these are, the bound, and who is left out."""
    order = np.random.default_rng(packing.seed).permutation(len(lengths))
    tokens = lengths.num_tokens[order]
    costs = cost(tokens, lengths.num_loss[order], lengths.num_pairs[order], of)
    budget = default_budget(tokens, costs, packing)
    why = reasons(tokens, costs, packing, budget)
    counts = np.bincount(why, minlength=len(REASONS)).tolist()
    left_out = dict(zip(REASONS[1:], counts[1:], strict=True))
    fits = why == 0
    if not fits.any():
        raise ValueError(
            f"no document fits a pack of {packing.token_cap} tokens: raise tokens_per_pack"
        )
    if not fits.all():
        order, tokens, costs = order[fits], tokens[fits], costs[fits]
    bound = lower_bound(tokens, costs, packing, budget)
    return assign(tokens, costs, packing, budget), order, bound, left_out


def sum_packs(
    pack: Int64,
    lengths: Lengths,
    packing: Packing,
    of: Coefficients,
    bound: int,
    left_out: dict[str, int],
) -> Packed:
    """Packs 0 and up whose documents are known: ``pack[i]`` is that of document i.

    ``fixed_length`` runs its linear layers over the padding too, ``batch_padding`` also a causal
    mask over each document's padded length. The head runs where there are targets.
    """
    sizes = np.bincount(pack)
    tokens, loss, pairs = (
        np.bincount(pack, counts).astype(np.int64)  # exact: sums stay below 2^53
        for counts in (lengths.num_tokens, lengths.num_loss, lengths.num_pairs)
    )
    longest = np.zeros(len(sizes), np.int64)
    np.maximum.at(longest, pack, lengths.num_tokens)
    padded = padded_tokens(packing, sizes, tokens, longest)
    executed_pairs = pairs
    if packing.strategy == "batch_padding":
        executed_pairs = sizes * (longest * (longest + 1) // 2)
    costs = cost(lengths.num_tokens, lengths.num_loss, lengths.num_pairs, of)
    dearest = np.zeros(len(sizes))
    np.maximum.at(dearest, pack, costs)
    return Packed(
        packing=packing,
        lower_bound=bound,
        left_out={reason: n for reason, n in left_out.items() if n},
        num_documents=sizes,
        num_tokens=tokens,
        padded_tokens=padded,
        document_cost=cost(tokens, loss, pairs, of),
        dearest=dearest,
        cost=cost(padded, loss, executed_pairs, of) + of.per_pack,
    )


def sum_plan(made: Plan, lengths: Lengths, of: Coefficients) -> Packed:
    """The packs of a plan; counts are per document, as `plan` was given them."""
    inside = made.pack >= 0
    documents = lengths.take(made.document[inside])
    costs = made.cost[inside]
    bound = lower_bound(documents.num_tokens, costs, made.packing, made.budget)
    return sum_packs(made.pack[inside], documents, made.packing, of, bound, made.rejected())


def simulate(
    packed: Packed, *, num_ranks: int, micro_steps: int = 1, barrier: Barrier = "step"
) -> Simulation:
    """Run packs in their order, step t on packs [tNM, (t+1)NM) as `packing.reader` deals them.

    Under ZeRO-1 and 2 ranks wait for each other once a step (``step``: a rank's micro-steps add
    up); under ZeRO-3 every layer gathers its weights, so they wait in every ``micro_step``. Raises
    ValueError if the packs fill no step.
    """
    dealt = deal(packed.cost, num_ranks, micro_steps)
    used = dealt.size
    by_rank = dealt.sum(axis=1)
    waits = by_rank.max(axis=1) if barrier == "step" else dealt.max(axis=2).sum(axis=1)
    return Simulation(
        num_ranks=num_ranks,
        micro_steps=micro_steps,
        num_dropped=packed.num_packs - used,
        rank_cost=by_rank,
        step_cost=waits,
        num_tokens=int(packed.num_tokens[:used].sum()),
        executed_tokens=int(packed.padded_tokens[:used].sum()),
        document_cost=math.fsum(packed.document_cost[:used]),
        dearest_document=float(packed.dearest[:used].max()),
    )


def deal(values: NDArray, num_ranks: int, micro_steps: int) -> NDArray:
    """Values of packs as [steps, micro_steps, ranks]; raises ValueError if they fill no step."""
    per_step = num_ranks * micro_steps
    if num_ranks < 1 or micro_steps < 1 or len(values) < per_step:
        raise ValueError(f"{len(values)} packs fill no step of {num_ranks} x {micro_steps}")
    used = len(values) // per_step * per_step
    return values[:used].reshape(-1, micro_steps, num_ranks)
