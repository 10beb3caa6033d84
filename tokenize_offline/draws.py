"""What a training step draws at random: level, schedule, pictures, crops, dropped scales, noise.

Each draw is a function of (seed, stage, step) and, for what belongs to one picture, of the
picture's number among all of the step, counted over processes and parts. So a training goes on
exactly without any stored random state, and two processes of four pictures draw what one process
of eight does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infra.schedules import NUM_SCALES, SCHEDULES, Grid
from infra.schema import digest
from tokenize_offline.learning import Learning
from tokenize_offline.photographs import Pictures, draw_crop, to_unit


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's pictures of a step, or of a part of it, and the draws that go with them."""

    pixels: Tensor  # [B, 3, H, W] in [-1, 1]
    grids: Sequence[Grid]  # of the level's scales; the last is [H/16, W/16]
    keep: list[bool] | None  # scales that are not dropped; None: all
    draws: "StepDraws"
    numbers: range  # of the pictures among all of the step

    def noise(self, channels: int) -> Tensor:
        """Normal noise for features, [B, channels, H/16, W/16], on the pixels' device."""
        shape = (channels, *self.grids[-1])
        rows = [
            self.draws.rng("noise", number).standard_normal(shape, np.float32)
            for number in self.numbers
        ]
        return torch.from_numpy(np.stack(rows)).to(self.pixels.device)

    def to(self, device: torch.device) -> "Batch":
        """The same batch there; the copy to a GPU runs beside its work."""
        if device.type == "cpu":
            return self
        pixels = self.pixels.pin_memory().to(device, non_blocking=True)
        return Batch(pixels, self.grids, self.keep, self.draws, self.numbers)


@dataclass(frozen=True)
class StepDraws:
    """The draws of one step of one stage."""

    learning: Learning
    stage: str
    step: int

    def rng(self, purpose: str, number: int = 0) -> np.random.Generator:
        """A generator of its own for each purpose and picture."""
        parts = (str(self.learning.seed), self.stage, str(self.step), purpose, str(number))
        return np.random.default_rng(int(digest("tokenizer-step", *parts), 16))

    def torch_generator(self, purpose: str) -> torch.Generator:
        """The same for torch's functions, on the CPU."""
        return torch.Generator().manual_seed(int(self.rng(purpose).integers(2**63)))

    def level(self) -> int:
        """256, or in their shares of the steps 512 and 1024."""
        u = self.rng("level").random()
        if u < self.learning.level_1024_share:
            return 1024
        return 512 if u < self.learning.level_1024_share + self.learning.level_512_share else 256

    def batch(
        self, pictures: Pictures, part: int, dropout: bool = False, level: int | None = None
    ) -> Batch:
        """The pictures of the step's ``part``: of rank r's micro-batch m, m * ranks + r.

        All parts share level, schedule and dropped scales: the step has one shape on every rank,
        and many small parts give the gradient of one large batch.
        """
        level = level or self.level()
        schedule = SCHEDULES[int(self.rng("schedule").integers(len(SCHEDULES)))]
        size = self.learning.pictures_at(level)
        numbers = range(part * size, (part + 1) * size)
        crops = [draw_crop(pictures, self.rng("picture", n), schedule, level) for n in numbers]
        grids = schedule.grids[: NUM_SCALES[level]]
        keep = self._keep(len(grids)) if dropout else None
        return Batch(to_unit(crops), grids, keep, self, numbers)

    def _keep(self, num_scales: int) -> list[bool] | None:
        rng = self.rng("scales")
        if rng.random() >= self.learning.scale_dropout_share:
            return None
        kept = rng.random(num_scales - 1) >= self.learning.scale_dropout
        return [True, *kept.tolist()]
