"""What inspected images say together: PSNR, flips and use of the codebook, by scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.charts import LineChart, line_chart
from pipelines.coded_images import CodedImage, Counts, Decibels, Redrawn
from pipelines.stats import table
from tokenize_offline.usage import perplexity


@dataclass(frozen=True)
class ScaleLine:
    """One scale over all images of a role, or all scales: ``name``. PSNR is a mean of decibels.

    ``num_used`` different codes among the targets; ``perplexity`` is exp of their entropy.
    """

    name: str
    num_codes: int
    sampled: float | None  # shares of the codes
    flipped: float
    target_db: float
    input_db: float
    num_used: int
    usage: float  # share of the codebook
    perplexity: float


@dataclass(frozen=True)
class Measures:
    """Of one image, by scale [K]; ``used`` are target codes, scale by scale."""

    num_codes: Counts
    sampled: Counts | None
    flipped: Counts
    target_db: Decibels
    input_db: Decibels
    used: list[Counts]


@dataclass(frozen=True)
class RoleSummary:
    """All images of a role: a condition is drawn at a rate of its own, so it has its own numbers.

    ``lines`` are the scales, then all of them.
    """

    role: str
    num_images: int
    lines: list[ScaleLine]

    @property
    def title(self) -> str:
        """1 target image, 12 target images."""
        return f"{self.num_images:,} {self.role} image{'s' if self.num_images != 1 else ''}"

    @property
    def psnr(self) -> LineChart | None:
        by_kind = {
            "from targets, dB": [line.target_db for line in self.lines[:-1]],
            "from inputs, dB": [line.input_db for line in self.lines[:-1]],
        }
        return line_chart((name, _by_scale(values)) for name, values in by_kind.items())

    @property
    def flips(self) -> LineChart | None:
        by_kind = {"flipped, %": [100 * line.flipped for line in self.lines[:-1]]}
        drawn = [100 * line.sampled for line in self.lines[:-1] if line.sampled is not None]
        if drawn:
            by_kind = {"drawn, %": drawn} | by_kind
        return line_chart((name, _by_scale(values)) for name, values in by_kind.items())

    def text(self) -> list[str]:
        """The lines as columns for the terminal."""
        heads = ("scale", "codes", "drawn", "flipped", "targets dB", "inputs dB")
        rows = [
            (
                line.name,
                f"{line.num_codes:,}",
                "-" if line.sampled is None else f"{line.sampled:.1%}",
                f"{line.flipped:.1%}",
                f"{line.target_db:.2f}",
                f"{line.input_db:.2f}",
                f"{line.num_used:,}",
                f"{line.usage:.1%}",
                f"{line.perplexity:,.1f}",
            )
            for line in self.lines
        ]
        title = f"{self.title}: PSNR up to a scale, the rest at it"
        return [title, *table((*heads, "used", "of all codes", "perplexity"), rows)]


def measure(image: CodedImage, redrawn: Redrawn) -> Measures:
    """The numbers of an image, without its pictures."""
    ends = np.cumsum(image.num_codes)[:-1]
    used = np.split(image.target_codes, ends)
    counts = image.num_codes, image.sampled, image.flipped
    return Measures(*counts, redrawn.target_db, redrawn.input_db, used)


def summarise(role: str, images: Sequence[Measures], codebook_size: int) -> RoleSummary:
    """One or more images of a role and of the same number of scales."""
    num_codes = np.sum([image.num_codes for image in images], axis=0)
    flipped = np.sum([image.flipped for image in images], axis=0)
    drawn = [image.sampled for image in images if image.sampled is not None]
    sampled = np.sum(drawn, axis=0) if len(drawn) == len(images) else None
    target_db = np.mean([image.target_db for image in images], axis=0)
    input_db = np.mean([image.input_db for image in images], axis=0)
    used = np.zeros((len(num_codes), codebook_size), np.int64)
    for image in images:
        for scale, codes in enumerate(image.used):
            used[scale] += np.bincount(codes, minlength=codebook_size)
    lines = []
    every = slice(0, len(num_codes))
    for name, of in [
        *((str(s + 1), slice(s, s + 1)) for s in range(len(num_codes))),
        ("all", every),
    ]:
        total, counts = int(num_codes[of].sum()), used[of].sum(axis=0)
        num_used = int((counts > 0).sum())
        lines.append(
            ScaleLine(
                name,
                total,
                None if sampled is None else float(sampled[of].sum() / total),
                float(flipped[of].sum() / total),
                float(target_db[of][-1]),
                float(input_db[of][-1]),
                num_used,
                num_used / codebook_size,
                float(perplexity(torch.from_numpy(counts))),
            )
        )
    return RoleSummary(role, len(images), lines)


def _by_scale(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(float(scale), value) for scale, value in enumerate(values, 1)]
