"""What happens once before each stage: the teacher's measure, the first codebooks, the doubling.

All ranks look at the pictures of all and do the same, so nobody waits for the first one.
"""

from collections.abc import Iterator
from contextlib import closing

import torch

from infra.schedules import NUM_SCALES
from tokenize_offline.batches import ahead
from tokenize_offline.codebook import Latents, fit_codebooks
from tokenize_offline.draws import Batch, StepDraws
from tokenize_offline.photographs import Pictures
from tokenize_offline.stages import Log, Stages

_TEACHER_STEPS = 16


def prepare(stages: Stages, stage: str, pictures: Pictures, log: Log, read_ahead: int = 0) -> None:
    """Do what comes before the first step of ``stage``; ``read_ahead`` threads decode for it."""
    if stage == "branches":
        standardise_teacher(stages, pictures, read_ahead)
    elif stage == "joint":
        fit(stages, pictures, log, read_ahead)
    else:
        stages.double_decoder()
    stages.ranks.copy_from_first(stages.tokenizer)


@torch.no_grad()
def standardise_teacher(stages: Stages, pictures: Pictures, read_ahead: int) -> None:
    """Mean and deviation of the teacher's channels, so that their cosine says something."""
    tokenizer, ranks = stages.tokenizer, stages.ranks
    sums = torch.zeros(2, tokenizer.settings.teacher_dim, dtype=torch.float64, device=ranks.device)
    rows = 0
    for passes in _steps(stages, "branches", pictures, 256, _TEACHER_STEPS, read_ahead):
        for batch in passes:
            taught = stages.teacher(batch.pixels).double()
            sums += torch.stack([taught.sum((0, 2, 3)), taught.square().sum((0, 2, 3))])
            rows += taught[:, 0].numel() * ranks.size
    mean, square = ranks.total(sums) / rows
    variance = (square - mean.square()) * rows / max(1, rows - 1)
    tokenizer.teacher_mean.copy_(mean)
    tokenizer.teacher_deviation.copy_(variance.clamp_min(0).sqrt().clamp_min(1e-3))


@torch.no_grad()
def fit(stages: Stages, pictures: Pictures, log: Log, read_ahead: int) -> None:
    """The codebooks, on crops at all levels, so that every scale gets its unit of length."""
    learning, latents = stages.learning, list[Latents]()
    for level, count in zip(NUM_SCALES, learning.fit_batches, strict=True):
        for passes in _steps(stages, "joint", pictures, level, count, read_ahead):
            features, grids = zip(*map(stages.latents, passes), strict=True)
            latents.append((torch.cat(features), grids[0]))
    generator = StepDraws(learning, "joint", -1).torch_generator("codebooks")
    errors = fit_codebooks(stages.tokenizer.quantizer, latents, learning.lloyd_rounds, generator)
    log(f"codebooks: error {errors[0]:.3f} to {min(errors):.3f} in {len(errors) - 1} rounds")


def _steps(
    stages: Stages, stage: str, pictures: Pictures, level: int, count: int, read_ahead: int
) -> Iterator[list[Batch]]:
    """This rank's passes of ``count`` steps' worth of pictures at one level."""
    learning, ranks = stages.learning, stages.ranks
    passes = learning.gradient_accumulation

    def make(number: int) -> Batch:
        step, turn = divmod(number, passes)
        draws = StepDraws(learning, f"{stage}-{level}", step)
        return draws.batch(pictures, ranks.rank + turn * ranks.size, level=level)

    with closing(ahead(make, 0, count * passes, read_ahead)) as batches:
        for _ in range(count):
            yield [next(batches).to(ranks.device) for _ in range(passes)]
