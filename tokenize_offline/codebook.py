"""Fitting codebooks to features, and keeping every code in use during training.

Both are functions of quantiser, features and generator. The features may be on a GPU; sums are
made on the CPU, in order, since a GPU's sums by index come out a little differently every time.
The generator is a CPU's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from infra.schedules import MAX_SCALES, Grid
from tokenize_offline.quantizer import Quantizer

Latents = tuple[Tensor, Sequence[Grid]]
"""Features [B, D, H, W] and the grids that end in (H, W)."""

_POOLED_ROWS = 256  # residuals kept per scale and batch, for codes to restart from


@torch.no_grad()
def fit_codebooks(
    quantizer: Quantizer,
    latents: Sequence[Latents],
    rounds: int,
    generator: torch.Generator,
) -> list[float]:
    """Lloyd's iteration through the whole multi-scale encoding; returns the error before each round
    and after the last.

    Each round encodes all latents, then sets every code to the mean of the residuals that chose it
    (in its scale's unit), every scale's unit to the root mean square length of its residuals, and
    codes that nobody chose to residuals drawn at random. Scales that no latent has take the unit
    of the scale before. The error is the mean square of what is left over. It need not fall: codes
    are chosen by angle and residuals move with the scales before. So the best codes met are kept.
    """
    _start(quantizer, latents, generator)
    parameters = (quantizer.semantic, quantizer.pixel, quantizer.log_magnitude)
    best = [parameter.clone() for parameter in parameters]
    errors: list[float] = []
    for turn in range(rounds + 1):
        tally = _Tally(quantizer, generator)
        left, size = 0.0, 0
        for features, grids in latents:
            residual = quantizer.walk(features, grids, tally.choose)
            left += float(residual.square().sum())
            size += residual.numel()
        errors.append(left / size)
        if errors[-1] <= min(errors):
            best = [parameter.clone() for parameter in parameters]
        if turn == rounds:
            break
        used = tally.counts > 0
        means = tally.sums / tally.counts.clamp_min(1)[:, None]
        _set_codes(quantizer, means, ~used, torch.cat(tally.pool), generator)
        tally.set_units()
    for parameter, kept in zip(parameters, best, strict=True):
        parameter.copy_(kept)
    return errors


@torch.no_grad()
def restart_dead(
    quantizer: Quantizer,
    used: Tensor,
    latents: Latents,
    generator: torch.Generator,
) -> int:
    """Set the codes with ``used`` [V] false to residuals met in ``latents``; returns how many."""
    dead = ~used.cpu()
    if dead.any():
        tally = _Tally(quantizer, generator)
        quantizer.walk(*latents, tally.choose)
        table = torch.cat([quantizer.semantic, quantizer.pixel], dim=1).cpu()
        _set_codes(quantizer, table, dead, torch.cat(tally.pool), generator)
    return int(dead.sum())


class _Tally:
    """What one pass over latents learns of the residuals at each scale and of each code."""

    def __init__(self, quantizer: Quantizer, generator: torch.Generator) -> None:
        self.quantizer, self.generator, self.keys = quantizer, generator, quantizer.keys()
        self.sums = torch.zeros(quantizer.num_codes, sum(quantizer.dims))  # in their scale's unit
        self.counts = torch.zeros(quantizer.num_codes)
        self.squares = torch.zeros(MAX_SCALES, 2)  # squared lengths of each branch
        self.numbers = torch.zeros(MAX_SCALES)
        self.pool: list[Tensor] = []  # residuals drawn at random, in their scale's unit
        self.cells: list[tuple[int, Tensor]] = []  # the same, as they are, with their scale

    def look(self, scale: int, rows: Tensor) -> Tensor:
        """Count the residuals; chooses code 0 everywhere."""
        flat = rows.flatten(0, 1).cpu()
        width = self.quantizer.dims[0]
        self.squares[scale, 0] += flat[:, :width].square().sum()
        self.squares[scale, 1] += flat[:, width:].square().sum()
        self.numbers[scale] += len(flat)
        draw = torch.randperm(len(flat), generator=self.generator)[:_POOLED_ROWS]
        self.cells.append((scale, flat[draw]))
        self.pool.append(flat[draw] / self.quantizer.magnitude(scale).cpu())
        return rows.new_zeros(rows.shape[:2], dtype=torch.long)

    def choose(self, scale: int, rows: Tensor) -> Tensor:
        """Count the residuals under their nearest codes, and choose these."""
        self.look(scale, rows)
        codes = self.quantizer.nearest(rows, scale, keys=self.keys)[0][..., 0]
        scaled = (rows / self.quantizer.magnitude(scale)).flatten(0, 1)
        flat = codes.flatten().cpu()
        self.sums.index_add_(0, flat, scaled.cpu())
        self.counts += torch.bincount(flat, minlength=len(self.counts))
        return codes

    def set_units(self) -> None:
        """Every scale's unit of length := root mean square length of its residuals."""
        units = self.quantizer.log_magnitude
        for scale in range(MAX_SCALES):
            if self.numbers[scale] > 0:
                mean = self.squares[scale] / self.numbers[scale]
                units[scale] = mean.clamp_min(1e-8).log() / 2
            elif scale > 0:
                units[scale] = units[scale - 1]


def _start(quantizer: Quantizer, latents: Sequence[Latents], generator: torch.Generator) -> None:
    """Units := lengths of the features' cell means at each scale; codes := such means at random."""
    quantizer.semantic.zero_()
    quantizer.pixel.zero_()  # so that looking takes nothing off
    tally = _Tally(quantizer, generator)
    for features, grids in latents:
        quantizer.walk(features, grids, tally.look)
    tally.set_units()
    units = [quantizer.magnitude(scale).cpu() for scale, _ in tally.cells]
    pool = torch.cat([rows / unit for (_, rows), unit in zip(tally.cells, units, strict=True)])
    every = torch.ones(quantizer.num_codes, dtype=torch.bool)
    _set_codes(quantizer, tally.sums, every, pool, generator)


def _set_codes(
    quantizer: Quantizer,
    table: Tensor,
    dead: Tensor,
    pool: Tensor,
    generator: torch.Generator,
) -> None:
    """Codes := ``table`` [V, D], the dead ones := rows of ``pool`` drawn at random.

    No row is drawn twice before all are: of two equal codes, one stays dead.
    """
    order = torch.randperm(len(pool), generator=generator)
    table = table.clone()
    table[dead] = pool[order[torch.arange(int(dead.sum())) % len(pool)]]
    quantizer.semantic.copy_(table[:, : quantizer.dims[0]])
    quantizer.pixel.copy_(table[:, quantizer.dims[0] :])
