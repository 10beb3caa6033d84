"""What a training step draws at random: level, schedule, pictures, crops, dropped scales, noise.

Each draw is a function of (seed, stage, step) and, for what belongs to one picture, of the
picture's number among all of the step, counted over processes and parts. So a training goes on
exactly without any stored random state, and two processes of 32 pictures draw what one process of
64 does. That holds at the levels where both take as many pictures in a step: at levels 512 and 1024
a pass has a quarter and a sixteenth of them, but at least one, so that two of four do not draw what
one of eight does at 1024. `TrainTokenizer.identity` tells what agrees.

Pictures of documents are drawn a row group at a time: number n of 16 steps on end comes from one
row group, numbers of one step from as many row groups. See `Pictures.draw`.
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

_STEPS_NEAR = 16  # that draw from one row group of, as a rule, 64 documents; see `StepDraws.near`


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

    def near(self, number: int) -> np.random.Generator:
        """For the row group of picture ``number``: the same for 16 steps.

        With more steps fewer bytes are read, and the steps that follow each other see more of the
        same. The numbers take turns, so that not all row groups are read at once.
        """
        window = (self.step + number) // _STEPS_NEAR
        return StepDraws(self.learning, self.stage, window).rng("row group", number)

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
        crops = [
            draw_crop(pictures, self.rng("picture", n), schedule, level, self.near(n))
            for n in numbers
        ]
        grids = schedule.grids[: NUM_SCALES[level]]
        keep = self._keep(len(grids)) if dropout else None
        return Batch(to_unit(crops), grids, keep, self, numbers)

    def _keep(self, num_scales: int) -> list[bool] | None:
        rng = self.rng("scales")
        if rng.random() >= self.learning.scale_dropout_share:
            return None
        kept = rng.random(num_scales - 1) >= self.learning.scale_dropout
        return [True, *kept.tolist()]
