"""How much of a codebook is in use: share of its codes and perplexity, by scale and over all.

    counts = torch.zeros(MAX_SCALES, num_codes, dtype=torch.long)
    tally(counts, codes, grids)  # for every batch; sums over processes are sums of counts
    shares(counts).perplexity_all

A scale cannot use more codes than it had cells: the first scale of n pictures has n.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from infra.schedules import Grid


class Usage(NamedTuple):
    """Of K scales; None for those that no code was counted of."""

    share: tuple[float | None, ...]  # of the codebook, used by each scale at least once
    perplexity: tuple[float | None, ...]  # exp of the entropy: as many equally frequent codes
    share_all: float | None  # the same of all scales together
    perplexity_all: float | None


def tally(counts: Tensor, codes: Tensor, grids: Sequence[Grid]) -> None:
    """Add to ``counts`` [K, V], int64, how often each scale chose each code.

    ``codes`` [B, N] lie on ``grids``, at most K of them, coarse to fine; -1, a dropped scale's,
    counts nowhere. Both tensors are on the same device.
    """
    num_codes = counts.shape[1]
    areas = torch.tensor([height * width for height, width in grids], device=codes.device)
    scales = torch.arange(len(grids), device=codes.device).repeat_interleave(areas)
    cells = scales * num_codes + codes.clamp_min(0)
    counts.view(-1).index_add_(0, cells.flatten(), (codes >= 0).flatten().to(counts.dtype))


def shares(counts: Tensor) -> Usage:
    """Usage from counts [K, V]."""
    every = torch.cat([counts, counts.sum(dim=0, keepdim=True)]).double()
    numbers = every.sum(dim=1)
    used = (every > 0).double().mean(dim=1).tolist()
    met = (numbers > 0).tolist()
    share = [value if any_ else None for value, any_ in zip(used, met, strict=True)]
    spread = [
        value if any_ else None for value, any_ in zip(perplexity(every).tolist(), met, strict=True)
    ]
    return Usage(tuple(share[:-1]), tuple(spread[:-1]), share[-1], spread[-1])


def perplexity(counts: Tensor) -> Tensor:
    """Counts [..., V] -> exp of their entropy [...]: 1 to V; 1 where nothing was counted."""
    counts = counts.double()
    frequency = counts / counts.sum(dim=-1, keepdim=True).clamp_min(1)
    return torch.special.entr(frequency).sum(dim=-1).exp()
