"""Which document goes into which pack, and in which order: the plan.

A plan is numbers only, from numbers only. It depends on the documents' ids and the seed, not on
the order in which they are given: documents (each copy on its own) are permuted by a hash. The
order of packs knows nothing of ranks or steps.
"""

from collections import abc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from infra.schema import column
from packing.lower_bound import lower_bound as fewest_packs
from packing.order import check_unique, id_hashes, keys_of
from packing.strategies import (
    REASONS,
    Int64,
    Packing,
    Strategy,
    assign,
    default_budget,
    padded_tokens,
    reasons,
)
from packing.summary import Summary
from packing.windows import plan_windows

__all__ = [
    "MANIFEST",
    "PLAN",
    "REASONS",
    "Packing",
    "Plan",
    "Strategy",
    "Summary",
    "plan",
    "plan_windows",
]

_ROWS = [
    column("component", pa.int16(), "", "index into the components of the mixture; 0 if alone"),
    column("epoch", pa.int32(), "", "0 .. : how often the component was gone through before"),
    column("key", pa.uint64(), "", "the seeded order (`packing.order`); among equals doc_id"),
    column("doc_id", pa.string(), "", "the document"),
    column("copy", pa.int32(), "", "0 .. : each copy is packed on its own; over all epochs"),
    column("piece", pa.int32(), "", "0 .. of a document that is cut at its images"),
    column("part", pa.int32(), "", "part of the component's tokens; null if not from a table"),
    column("token_row", pa.int32(), "", "row in that part"),
    column("first_segment", pa.int32(), "", "the first of its segments that is packed"),
    column("num_segments", pa.int32(), "count", "segments that are packed, from that one on"),
    column("num_tokens", pa.int64(), "positions", "T of what is packed"),
    column("num_loss", pa.int64(), "positions", "of these with a target"),
    column("num_pairs", pa.int64(), "count", "query-key pairs that attention computes"),
    column("cost", pa.float64(), "the cost model's", "cost of what is packed"),
    column("reason", pa.string(), "", "over_token_cap or over_budget; null if packed"),
]

MANIFEST = pa.schema(_ROWS)
"""A row for every slice of a document to pack: a contiguous range of its segments."""

PLAN = pa.schema(
    [
        column("row", pa.int64(), "", "order of the plan: by pack and position, rejected last"),
        *(field for field in _ROWS if field.name != "key"),
        column("pack", pa.int64(), "", "the pack; null if rejected"),
        column("position", pa.int32(), "", "place in the pack; null if rejected"),
    ],
)


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows in plan order (by pack and position, rejected ones last), then numbers per pack."""

    packing: Packing
    budget: float  # most cost of a pack, met to within 1e-8; inf where the strategy sets none
    document: Int64  # index into the documents given to `plan`
    copy: NDArray[np.int32]
    pack: Int64  # -1: rejected
    position: NDArray[np.int32]  # -1: rejected
    reason: NDArray[np.int8]  # index into REASONS
    num_tokens: Int64
    cost: NDArray[np.float64]
    pack_tokens: Int64
    pack_padded_tokens: Int64  # with what the strategy pads
    pack_cost: NDArray[np.float64]  # of the documents alone, without padding
    pack_documents: Int64

    @property
    def num_packs(self) -> int:
        return len(self.pack_tokens)

    @property
    def lower_bound(self) -> int:
        """No packing of the same documents within the same limits has fewer packs."""
        inside = self.pack >= 0
        return fewest_packs(self.num_tokens[inside], self.cost[inside], self.packing, self.budget)

    @property
    def imbalance(self) -> float:
        """Largest over mean cost of a pack; 1.0 for a perfect balance or no pack."""
        return float(self.pack_cost.max() / self.pack_cost.mean()) if self.num_packs else 1.0

    @property
    def token_fill(self) -> float:
        """Tokens over tokens with padding; 1.0 for no pack."""
        padded = int(self.pack_padded_tokens.sum())
        return int(self.pack_tokens.sum()) / padded if padded else 1.0

    def rejected(self) -> dict[str, int]:
        """Number of rejected rows for each reason that occurs."""
        counts = np.bincount(self.reason, minlength=len(REASONS))
        return {name: int(n) for name, n in zip(REASONS[1:], counts[1:], strict=True) if n}

    def to_table(self, doc_ids: abc.Sequence[str]) -> pa.Table:
        """The rows as a table of schema `PLAN`; ``doc_ids`` as given to `plan`.

        What a plan of numbers does not know is null: where tokens are, and their other counts.
        """
        out, n = self.pack < 0, len(self.pack)
        known = {
            "row": pa.array(np.arange(n)),
            "doc_id": pa.array(doc_ids, pa.string()).take(pa.array(self.document)),
            "component": pa.array(np.zeros(n, np.int16)),
            "epoch": pa.array(np.zeros(n, np.int32)),
            "copy": pa.array(self.copy),
            "piece": pa.array(np.zeros(n, np.int32)),
            "num_tokens": pa.array(self.num_tokens),
            "cost": pa.array(self.cost),
            "reason": pa.array(REASONS, pa.string(), mask=np.array(REASONS) == "").take(
                pa.array(self.reason)
            ),
            "pack": pa.array(self.pack, mask=out),
            "position": pa.array(self.position, mask=out),
        }
        columns = [known.get(field.name, pa.nulls(n, field.type)) for field in PLAN]
        return pa.Table.from_arrays(columns, schema=PLAN)


def plan(
    doc_ids: abc.Sequence[str],
    num_tokens: ArrayLike,
    cost: ArrayLike,
    packing: Packing,
    *,
    copies: ArrayLike = 1,
    budget: float | None = None,
) -> Plan:
    """Assign every copy of every document to a pack, or reject it with a reason.

    ``num_tokens`` and ``cost`` are per document, ``copies`` too (0 leaves a document out).
    ``budget`` is the most cost of a pack under ``fixed_compute``. By default it is what
    ``tokens_per_pack`` cost on average over all documents, or, up to ``token_slack`` times that,
    what the dearest document costs, so that none within the token cap is lost to a tight budget.
    Raises ValueError for repeated ids and for tokens or costs that are not positive.
    """
    tokens_of, cost_of = np.asarray(num_tokens, np.int64), np.asarray(cost, np.float64)
    copies_of = np.broadcast_to(np.asarray(copies, np.int64), tokens_of.shape)
    _check(doc_ids, tokens_of, cost_of, copies_of)
    document, copy = _permute(doc_ids, copies_of, packing.seed)
    tokens, costs = tokens_of[document], cost_of[document]

    if budget is None or packing.strategy != "fixed_compute":
        budget = default_budget(tokens, costs, packing)
    reason = reasons(tokens, costs, packing, budget)
    fits = np.flatnonzero(reason == 0)
    pack = np.full(len(tokens), -1, np.int64)
    pack[fits] = assign(tokens[fits], costs[fits], packing, budget)

    # Within a pack documents keep the permutation, so that place says nothing of size.
    order = np.argsort(np.where(pack < 0, np.iinfo(np.int64).max, pack), kind="stable")
    pack, tokens, costs = pack[order], tokens[order], costs[order]
    inside = pack[pack >= 0]
    starts = np.flatnonzero(np.diff(inside, prepend=-1))
    sizes = np.diff(starts, append=len(inside))
    position = np.full(len(pack), -1, np.int32)
    position[: len(inside)] = np.arange(len(inside)) - np.repeat(starts, sizes)
    pack_tokens = _reduce(np.add, tokens, starts, len(inside))
    longest = _reduce(np.maximum, tokens, starts, len(inside))
    return Plan(
        packing,
        budget,
        document[order],
        copy[order],
        pack,
        position,
        reason[order],
        tokens,
        costs,
        pack_tokens,
        padded_tokens(packing, sizes, pack_tokens, longest),
        _reduce(np.add, costs, starts, len(inside)),
        sizes,
    )


def _check(
    doc_ids: abc.Sequence[str], tokens: Int64, cost: NDArray[np.float64], copies: Int64
) -> None:
    if not len(doc_ids) == len(tokens) == len(cost):
        raise ValueError(
            f"{len(doc_ids)} ids, {len(tokens)} token counts and {len(cost)} costs: "
            "give one of each per document"
        )
    wrong = np.flatnonzero(~((tokens > 0) & (cost > 0) & np.isfinite(cost) & (copies >= 0)))
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            f"document {doc_ids[i]} has {tokens[i]} tokens, cost {cost[i]} and {copies[i]} copies: "
            "tokens and cost must be positive, copies at least 0"
        )


def _permute(
    doc_ids: abc.Sequence[str], copies: Int64, seed: int
) -> tuple[Int64, NDArray[np.int32]]:
    """(document, copy) of every copy, in the seeded order that only ids decide."""
    hashes = id_hashes(doc_ids, seed)
    check_unique(doc_ids, hashes)
    document = np.repeat(np.arange(len(doc_ids)), copies)
    starts = np.repeat(np.cumsum(copies) - copies, copies)
    copy = (np.arange(len(document)) - starts).astype(np.int32)
    key = keys_of(hashes[document], copy, 0)
    order = np.argsort(key, kind="stable")
    ties = np.flatnonzero(key[order][1:] == key[order][:-1])
    if len(ties):  # of 64 bits: about one pair in 10^9 documents; ids decide, not the order given
        names = np.asarray(doc_ids, np.str_)[document]
        order = np.lexsort((copy, names, key))
    return document[order], copy[order]


def _reduce(ufunc: np.ufunc, values: NDArray[Any], starts: Int64, stop: int) -> NDArray[Any]:
    """Reduce runs of ``values[:stop]``; reduceat itself fails on no runs."""
    return ufunc.reduceat(values[:stop], starts) if len(starts) else values[:0]
