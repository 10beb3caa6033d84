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
from packing.strategies import (
    Int64,
    Packing,
    Strategy,
    assign,
    default_budget,
    padded_tokens,
)

__all__ = ["PLAN", "REASONS", "Packing", "Plan", "Strategy", "plan"]

REASONS = ("", "over_token_cap", "over_budget")
"""Why a document is in no pack; the code 0 means that it is in one."""

PLAN = pa.schema(
    [
        column("row", pa.int64(), "", "order of the plan: by pack and position, rejected last"),
        column("doc_id", pa.string(), "", "the document"),
        column("copy", pa.int32(), "", "0 .. copies - 1: each copy is packed on its own"),
        column("pack", pa.int64(), "", "the pack; null if rejected"),
        column("position", pa.int32(), "", "place in the pack; null if rejected"),
        column("num_tokens", pa.int64(), "positions", "T of the document"),
        column("cost", pa.float64(), "the cost model's", "cost of the document"),
        column("reason", pa.string(), "", "over_token_cap or over_budget; null if packed"),
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
        """The rows as a table of schema `PLAN`; ``doc_ids`` as given to `plan`."""
        out = self.pack < 0
        arrays = [
            pa.array(np.arange(len(self.pack))),
            pa.array(doc_ids, pa.string()).take(pa.array(self.document)),
            pa.array(self.copy),
            pa.array(self.pack, mask=out),
            pa.array(self.position, mask=out),
            pa.array(self.num_tokens),
            pa.array(self.cost),
            pa.array([REASONS[code] or None for code in self.reason.tolist()], pa.string()),
        ]
        return pa.Table.from_arrays(arrays, schema=PLAN)


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
    reason = np.zeros(len(tokens), np.int8)
    reason[costs > budget] = 2
    reason[tokens > packing.token_cap] = 1

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
    hashes = _hash(doc_ids, seed)
    _check_unique(doc_ids, hashes)
    document = np.repeat(np.arange(len(doc_ids)), copies)
    starts = np.repeat(np.cumsum(copies) - copies, copies)
    copy = (np.arange(len(document)) - starts).astype(np.int32)
    key = _mix(hashes[document] + copy.astype(np.uint64) * _GOLDEN)
    order = np.argsort(key, kind="stable")
    ties = np.flatnonzero(key[order][1:] == key[order][:-1])
    if len(ties):  # of 64 bits: about one pair in 10^9 documents; ids decide, not the order given
        names = np.asarray(doc_ids, np.str_)[document]
        order = np.lexsort((copy, names, key))
    return document[order], copy[order]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SLICE = 1 << 16  # ids that are NumPy's fixed-width strings at a time: these take 128 bytes each


def _hash(doc_ids: abc.Sequence[str], seed: int) -> NDArray[np.uint64]:
    """64 bits of each id and the seed; a function of these alone, computed for all ids at once.

    Not `infra.schema.uniform`: MD5 of one id after another would take longer than packing.
    """
    state = np.empty(len(doc_ids), np.uint64)
    for start in range(0, len(doc_ids), _SLICE):
        here = slice(start, start + _SLICE)
        state[here] = _hash_slice(doc_ids[here], seed)
    return state


def _hash_slice(doc_ids: abc.Sequence[str], seed: int) -> NDArray[np.uint64]:
    names = np.asarray(doc_ids, np.str_)
    try:
        encoded = names.astype(np.bytes_)
    except UnicodeEncodeError:
        encoded = np.char.encode(names, "utf-8")
    width = -(-max(encoded.dtype.itemsize, 1) // 8)
    words = encoded.astype(f"S{width * 8}").view(np.uint64).reshape(len(names), width)
    state = np.full(len(names), seed, np.int64).view(np.uint64)
    for word in words.T:
        # Zeros that fill up to the longest id must not count.
        state = np.where(word == 0, state, _mix((state ^ word) + _GOLDEN))
    return state


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit depends on every bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _check_unique(doc_ids: abc.Sequence[str], hashes: NDArray[np.uint64]) -> None:
    """Raises ValueError for an id that is given more than once."""
    ordered = np.sort(hashes)
    equal = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(equal):
        return
    seen: set[str] = set()
    for i in np.flatnonzero(np.isin(hashes, equal)).tolist():
        if doc_ids[i] in seen:
            raise ValueError(f"document {doc_ids[i]} is given more than once: ids must be unique")
        seen.add(doc_ids[i])


def _reduce(ufunc: np.ufunc, values: NDArray[Any], starts: Int64, stop: int) -> NDArray[Any]:
    """Reduce runs of ``values[:stop]``; reduceat itself fails on no runs."""
    return ufunc.reduceat(values[:stop], starts) if len(starts) else values[:0]
