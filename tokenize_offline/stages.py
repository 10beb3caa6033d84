"""The three training stages of a tokenizer, after the paper's section 3.1.

1. *Branches alone.* Encoder and decoder without a quantiser: noise on the features stands in for
   it and their energy is held at 1, so that they spend their room on what matters. The semantic
   branch learns its teacher's features and passes no gradient to or from the picture.
2. *Joint.* The codebooks are fitted to the features by Lloyd's iteration; then everything is
   trained together, with scale dropout in some batches and restart of dead codes.
3. *Decoders alone*, the pixel decoder doubled, on the very codes that extraction will produce.

The picture's error counts by its logarithm, as in PSNR: a tenth off the error is worth the same
in a smooth photograph and in a busy one.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infra.config import ConfigError
from infra.schedules import NUM_SCALES, SCHEDULES, Grid
from infra.schema import digest
from tokenize_offline.codebook import Latents, fit_codebooks, restart_dead
from tokenize_offline.model import Tokenizer, TokenizerSettings, doubled
from tokenize_offline.photographs import Photograph, random_crop, to_unit
from tokenize_offline.teacher import Teacher

Log = Callable[[str], None]


@dataclass(frozen=True)
class Learning:
    """How a tokenizer is trained: the ``learning`` section of the recipe."""

    branch_steps: int = 800
    joint_steps: int = 2_200
    decoder_steps: int = 600
    batch_size: int = 4  # pictures at level 256; a batch at level 512 has a quarter of it
    level_512_share: float = 0.15  # of the batches
    learning_rate: float = 1e-3  # in stage 1; half of it later
    feature_noise: float = 0.45  # standard deviation, stage 1
    semantic_weight: float = 1.0  # of 1 - cosine to the teacher; the picture's log error counts 1
    codebook_weight: float = 1.0
    commit_weight: float = 0.25
    scale_dropout: float = 0.5  # chance of each scale but the first to be dropped ...
    scale_dropout_share: float = 0.1  # ... in this share of the joint batches
    fit_batches: tuple[int, int, int] = (40, 20, 4)  # for Lloyd, at levels 256, 512 and 1024
    lloyd_rounds: int = 12
    restart_every: int = 200  # joint steps; codes not used since the last time start again
    seed: int = 0
    num_threads: int = 1
    bfloat16: bool = True  # the networks' products; the quantiser is always float32

    def __post_init__(self) -> None:
        for name in ("level_512_share", "scale_dropout", "scale_dropout_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"learning.{name} is {getattr(self, name)}: use 0 to 1")
        if self.batch_size < 4:
            raise ConfigError(f"learning.batch_size is {self.batch_size}: use 4 or more")


class Trainer:
    """The state that the stages share. The same seed and machine give the same weights."""

    def __init__(
        self,
        settings: TokenizerSettings,
        learning: Learning,
        photographs: Sequence[Photograph],
        teacher: Teacher,
        log: Log,
    ) -> None:
        torch.manual_seed(learning.seed)
        torch.set_num_threads(learning.num_threads)
        self.learning, self.photographs, self.teacher, self.log = (
            learning,
            photographs,
            teacher.to(memory_format=torch.channels_last),
            log,
        )
        self.rng = np.random.default_rng()  # see _seed
        self.generator = torch.Generator()
        self.tokenizer = Tokenizer(settings).to(memory_format=torch.channels_last)
        self.used = torch.zeros(settings.num_codes, dtype=torch.bool)

    def train(self) -> Tokenizer:
        """All three stages."""
        learning = self.learning
        self._seed("teacher", 0)
        self._standardise_teacher()
        self._optimise("branches", learning.branch_steps, learning.learning_rate, self._branches)
        self._seed("codebooks", 0)
        self._fit_codebooks()
        self._optimise("joint", learning.joint_steps, learning.learning_rate / 2, self._joint)
        tokenizer = doubled(self.tokenizer).to(memory_format=torch.channels_last)
        self.tokenizer = tokenizer.requires_grad_(False)
        tokenizer.pixel_decoder.requires_grad_(True)
        tokenizer.semantic_decoder.requires_grad_(True)
        self._optimise(
            "decoders", learning.decoder_steps, learning.learning_rate / 2, self._decoders
        )
        return tokenizer.requires_grad_(False).eval()

    def _branches(self, pixels: Tensor, grids: Sequence[Grid], step: int) -> dict[str, Tensor]:
        with self._autocast():
            features = self.tokenizer.features(pixels).float()
            semantic, pixel = features.tensor_split([self.tokenizer.settings.semantic_dim], dim=1)
            energy = sum((branch.square().mean() - 1).square() for branch in (semantic, pixel))
            noise = self.learning.feature_noise
            semantic, pixel = (
                branch + noise * torch.randn(branch.shape, generator=self.generator)
                for branch in (semantic, pixel)
            )
            drawn = self.tokenizer.draw(torch.cat([semantic.detach(), pixel], dim=1))
            meant = self.tokenizer.meaning(semantic)
        losses = self._reconstruction(pixels, drawn, meant)
        return losses | {"energy": 0.1 * torch.as_tensor(energy)}

    def _joint(self, pixels: Tensor, grids: Sequence[Grid], step: int) -> dict[str, Tensor]:
        learning, tokenizer = self.learning, self.tokenizer
        keep = None
        if self.rng.random() < learning.scale_dropout_share:
            keep = [True, *(self.rng.random(len(grids) - 1) >= learning.scale_dropout)]
        with self._autocast():
            features = tokenizer.features(pixels)
        quantized = tokenizer.quantizer(features, grids, keep)
        with self._autocast():
            drawn = tokenizer.draw(quantized.features)
            meant = tokenizer.meaning(quantized.features)
        self.used[quantized.codes[quantized.codes >= 0]] = True
        if (step + 1) % learning.restart_every == 0:
            restarted = restart_dead(
                tokenizer.quantizer, self.used, (features.detach(), grids), self.generator
            )
            self.log(f"  restarted {restarted} of {len(self.used)} codes")
            self.used.zero_()
        return self._reconstruction(pixels, drawn, meant) | {
            "codebook": learning.codebook_weight * quantized.codebook_loss,
            "commit": learning.commit_weight * quantized.commit_loss,
        }

    def _decoders(self, pixels: Tensor, grids: Sequence[Grid], step: int) -> dict[str, Tensor]:
        tokenizer = self.tokenizer
        with torch.no_grad():
            # Without autocast: in bfloat16 the encoder would give other codes than extraction.
            codes = tokenizer.quantizer.encode(tokenizer.features(pixels), grids)
            features = tokenizer.quantizer.decode(codes, grids)
        with self._autocast():
            return self._reconstruction(
                pixels, tokenizer.draw(features), tokenizer.meaning(features)
            )

    def _reconstruction(self, pixels: Tensor, drawn: Tensor, meant: Tensor) -> dict[str, Tensor]:
        error = (drawn.float() - pixels).square().mean(dim=(1, 2, 3))
        with self._autocast():
            taught = self.teacher(pixels)
        similarity = F.cosine_similarity(meant.float(), self.tokenizer.standard(taught), dim=1)
        return {
            "picture": (error + 1e-4).log().mean(),
            "semantic": self.learning.semantic_weight * (1 - similarity).mean(),
        }

    def _optimise(
        self,
        stage: str,
        steps: int,
        learning_rate: float,
        losses: Callable[[Tensor, Sequence[Grid], int], dict[str, Tensor]],
    ) -> None:
        """AdamW with a short warm-up and a cosine down to a fiftieth."""
        parameters = [p for p in self.tokenizer.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.0)
        start, sums = time.monotonic(), dict[str, float]()
        for step in range(steps):
            warm = min(1.0, (step + 1) / 100)
            cosine = 0.51 + 0.49 * math.cos(math.pi * step / steps)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * warm * cosine
            self._seed(stage, step)
            pixels, grids = self._batch()
            parts = losses(pixels, grids, step)
            optimiser.zero_grad()
            torch.autograd.backward(torch.stack(list(parts.values())).sum())
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            if (step + 1) % 200 == 0 or step + 1 == steps:
                count = (step % 200) + 1
                means = ", ".join(f"{name} {value / count:.3f}" for name, value in sums.items())
                rate = (step + 1) / (time.monotonic() - start)
                self.log(f"{stage} {step + 1}/{steps}: {means} ({rate:.1f} steps/s)")
                sums.clear()

    def _seed(self, stage: str, step: int) -> None:
        """Every step has its own chance: what it draws does not depend on the steps before it."""
        seed = int(digest("tokenizer-step", str(self.learning.seed), stage, str(step)), 16)
        self.rng = np.random.default_rng(seed)
        self.generator.manual_seed(seed % 2**63)

    def _batch(self, level: int | None = None, size: int = 0) -> tuple[Tensor, Sequence[Grid]]:
        """A batch of one random schedule, at level 256 or sometimes 512."""
        if level is None:
            level = 512 if self.rng.random() < self.learning.level_512_share else 256
        size = size or (self.learning.batch_size if level == 256 else self.learning.batch_size // 4)
        schedule = SCHEDULES[int(self.rng.integers(len(SCHEDULES)))]
        crops = [
            random_crop(
                self.photographs[int(self.rng.integers(len(self.photographs)))],
                schedule.image_size(level),
                self.rng,
            )
            for _ in range(size)
        ]
        return to_unit(crops), schedule.grids[: NUM_SCALES[level]]

    @torch.no_grad()
    def _fit_codebooks(self) -> None:
        """On crops at all levels, so that every scale gets its unit of length."""
        latents: list[Latents] = []
        sizes = {256: self.learning.batch_size, 512: max(1, self.learning.batch_size // 4), 1024: 1}
        for (level, size), count in zip(sizes.items(), self.learning.fit_batches, strict=True):
            for _ in range(count):
                pixels, grids = self._batch(level, size)
                latents.append((self.tokenizer.features(pixels), grids))
        errors = fit_codebooks(
            self.tokenizer.quantizer, latents, self.learning.lloyd_rounds, self.generator
        )
        self.log(f"codebooks: error {errors[0]:.3f} to {errors[-1]:.3f} in {len(errors)} rounds")

    @torch.no_grad()
    def _standardise_teacher(self) -> None:
        """Mean and deviation of the teacher's channels, so that their cosine says something."""
        taught = [self.teacher(self._batch(256, 4)[0]) for _ in range(16)]
        rows = torch.cat([t.permute(0, 2, 3, 1).flatten(0, 2) for t in taught])
        self.tokenizer.teacher_mean.copy_(rows.mean(0))
        self.tokenizer.teacher_deviation.copy_(rows.std(0).clamp_min(1e-3))

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.learning.bfloat16)
