"""The three ways to form packs (paper section 4, Table 3), on documents in a given order.

- ``fixed_compute``: every pack costs the same, up to a token cap that memory sets;
- ``fixed_length``: packs of at most so many tokens, whatever they cost;
- ``batch_padding``: so many documents in the order given, padded to the longest.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

MAX_PACK_TOKENS = (1 << 31) - 1  # counts of a pack, and squares of them, stay exact integers
MAX_WINDOW = 1 << 22  # the documents of a window are in memory, some 100 bytes each
_SLICE = 1 << 16  # documents that are Python's integers at a time: these take 36 bytes each
Strategy = Literal["fixed_compute", "fixed_length", "batch_padding"]

REASONS = ("", "over_token_cap", "over_budget")
"""Why a document is in no pack; the code 0 means that it is in one."""


@dataclass(frozen=True)
class Packing:
    """How to pack: ``tokens_per_pack`` is what a pack holds on average (``fixed_compute``) or at
    most (the others), ``token_slack`` how many times longer than that the longest may be."""

    strategy: Strategy = "fixed_compute"
    tokens_per_pack: int = 20_480
    token_slack: float = 1.25
    batch_size: int = 8  # documents per pack of batch_padding, at most
    window: int = 32_768  # documents packed together; larger packs a little better
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens_per_pack < 1 or self.batch_size < 1:
            raise ValueError(
                f"tokens_per_pack is {self.tokens_per_pack} and batch_size {self.batch_size}: "
                "both must be at least 1"
            )
        if not 1 <= self.token_slack < math.inf:
            raise ValueError(f"token_slack is {self.token_slack}: use 1.0 or more, and no infinity")
        # In this order: beyond 10^308 an integer is no float any more.
        if self.tokens_per_pack > MAX_PACK_TOKENS or self._most_tokens >= MAX_PACK_TOKENS + 1:
            raise ValueError(
                f"tokens_per_pack is {self.tokens_per_pack} and token_slack {self.token_slack}: "
                f"their product may be {MAX_PACK_TOKENS} at most"
            )
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise ValueError(f"seed is {self.seed}: use an integer of 64 bits")
        if not 1 <= self.window <= MAX_WINDOW:
            raise ValueError(f"window is {self.window}: use 1 to {MAX_WINDOW}")

    @property
    def token_cap(self) -> int:
        """The most tokens of a pack, padding included."""
        return int(self._most_tokens)

    @property
    def _most_tokens(self) -> float:
        slack = self.token_slack if self.strategy == "fixed_compute" else 1.0
        return self.tokens_per_pack * slack


def budget_of(cost_per_token: float, dearest: float, packing: Packing) -> float:
    """The most cost of a pack: what ``tokens_per_pack`` cost at this mean cost of a token.

    It is raised, up to ``token_slack`` times, to ``dearest``, the cost of the dearest document
    within the token cap, so that none is lost to a tight budget; inf where the strategy does not
    look at cost. Three numbers, so that they can be added up out of core and in any order.
    """
    if packing.strategy != "fixed_compute":
        return math.inf
    mean = packing.tokens_per_pack * cost_per_token
    return min(max(mean, dearest), mean * packing.token_slack)


def default_budget(tokens: Int64, costs: NDArray[np.float64], packing: Packing) -> float:
    """`budget_of` the average over all documents; the same in any order of them."""
    if packing.strategy != "fixed_compute":
        return math.inf
    dearest = float(costs[tokens <= packing.token_cap].max(initial=0.0))
    return budget_of(math.fsum(costs) / max(int(tokens.sum()), 1), dearest, packing)


def reasons(
    tokens: Int64, costs: NDArray[np.float64], packing: Packing, budget: float
) -> NDArray[np.int8]:
    """Why each document fits no pack, as an index into `REASONS`; 0 where it fits one."""
    found = np.zeros(len(tokens), np.int8)
    found[costs > budget] = REASONS.index("over_budget")
    found[tokens > packing.token_cap] = REASONS.index("over_token_cap")
    return found


def assign(tokens: Int64, costs: NDArray[np.float64], packing: Packing, budget: float) -> Int64:
    """The pack of each document, numbered from 0; each must fit a pack by itself.

    Costs of a pack stay within the budget to one part in 10^8, its padded tokens within the cap.
    """
    if not len(tokens):
        return np.zeros(0, np.int64)
    if packing.strategy == "batch_padding":
        return _pad(tokens, packing)
    from packing.best_fit import pack_in_windows  # readers of packs need no compiler

    return pack_in_windows(*scaled(tokens, costs, packing, budget), packing.window)


def assign_window(
    tokens: Int64,
    costs: NDArray[np.float64],
    packing: Packing,
    budget: float,
    carries: NDArray[np.int8],
    last: bool,
) -> Int64:
    """`assign` for the documents of one window, after those that the windows before have left over.

    ``carries`` counts how often each was left over. Packs are numbered from 0; -1 leaves a document
    over for the next window, which nothing does in the last one.
    """
    if packing.strategy == "batch_padding":
        packs = _pad(tokens, packing)
        return packs if last else np.where(packs == packs.max(initial=-1), -1, packs)
    from packing.best_fit import pack_window

    return pack_window(*scaled(tokens, costs, packing, budget), carries, last)


def scaled(
    tokens: Int64, costs: NDArray[np.float64], packing: Packing, budget: float
) -> tuple[Int64, Int64, int]:
    """Costs and tokens as integers of about 2^40, and the capacity of a pack in both.

    Tokens are exact, costs rounded down to one part in 10^12 of the budget.
    """
    shift = max(0, 40 - packing.token_cap.bit_length())
    capacity = packing.token_cap << shift
    return np.floor(costs / budget * capacity).astype(np.int64), tokens << shift, capacity


def padded_tokens(packing: Packing, sizes: Int64, totals: Int64, longest: Int64) -> Int64:
    """Tokens with padding of each pack of ``sizes`` documents of so many tokens in all."""
    if packing.strategy == "fixed_length":
        return np.full(len(sizes), packing.token_cap, np.int64)
    return sizes * longest if packing.strategy == "batch_padding" else totals


def _pad(tokens: Int64, packing: Packing) -> Int64:
    """Consecutive documents until ``batch_size``, or until padding would pass the token cap."""
    pack = np.zeros(len(tokens), np.int64)
    current, size, longest = 0, 0, 0
    for start in range(0, len(tokens), _SLICE):
        for i, length in enumerate(tokens[start : start + _SLICE].tolist(), start):
            longest = max(longest, length)
            if size == packing.batch_size or (size + 1) * longest > packing.token_cap:
                current, size, longest = current + 1, 0, length
            size += 1
            pack[i] = current
    return pack
