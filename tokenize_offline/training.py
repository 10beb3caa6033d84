"""Train a tokenizer on photographs: ``nextscale train-tokenizer RECIPE``.

The recipe names folders of photographs, a teacher and where to write; `tokenize_offline.stages`
does the learning. Some photographs are held out by a hash of their names and never trained on:
the quality that is reported is measured on them.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra import config
from infra.config import ConfigError
from tokenize_offline import checkpoint
from tokenize_offline.evaluation import Quality, evaluate
from tokenize_offline.model import TokenizerSettings
from tokenize_offline.photographs import read_photographs, split
from tokenize_offline.stages import Learning, Trainer
from tokenize_offline.teacher import TEACHER_DIM, load_teacher


@dataclass(frozen=True)
class TrainTokenizer:
    """The recipe of ``nextscale train-tokenizer``."""

    images: tuple[str, ...]  # folders or files of photographs
    output: str  # the checkpoint to write, NAME.safetensors
    teacher: str  # EfficientNet-Lite0 weights, safetensors
    exclude: tuple[str, ...] = ()  # file name patterns that are no photographs
    held_out: str = "*"  # file name pattern of those that may be held out for evaluation ...
    held_out_share: float = 0.1  # ... and the share of them that is
    short_side: int = 1_600  # pixels; larger photographs are reduced when read
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    learning: Learning = field(default_factory=Learning)

    def __post_init__(self) -> None:
        if not self.output.endswith(".safetensors"):
            raise ConfigError(f"output is {self.output!r}: end it in .safetensors")
        if not 0 <= self.held_out_share < 1:
            raise ConfigError(f"held_out_share is {self.held_out_share}: use 0 to below 1")
        if self.tokenizer.teacher_dim != TEACHER_DIM:
            raise ConfigError(
                f"tokenizer.teacher_dim is {self.tokenizer.teacher_dim}: set it to {TEACHER_DIM}"
            )


def main(path: str | Path, overrides: Sequence[str] = ()) -> None:
    """``nextscale train-tokenizer PATH [key=value …]``. Raises ConfigError."""
    train_tokenizer(config.load(TrainTokenizer, path, overrides))


def train_tokenizer(recipe: TrainTokenizer, log: Callable[[str], None] = print) -> list[Quality]:
    """Read, train, write the checkpoint; returns the quality on held-out photographs per level.

    Beside the checkpoint, ``NAME.training.json`` keeps the recipe, the files' names, the time and
    the quality. Raises ConfigError for paths that do not exist or hold no photograph.
    """
    start = time.monotonic()
    teacher = load_teacher(recipe.teacher)
    photographs = read_photographs(recipe.images, recipe.short_side, recipe.exclude)
    training, held_out = split(
        photographs, recipe.held_out, recipe.held_out_share, recipe.learning.seed
    )
    if not training:
        raise ConfigError("held_out_share leaves no photograph to train on: lower it")
    log(f"{len(training)} photographs to train on, {len(held_out)} held out")
    tokenizer = Trainer(recipe.tokenizer, recipe.learning, training, teacher, log).train()
    checkpoint.save(tokenizer, recipe.output)
    seconds = time.monotonic() - start
    stored = checkpoint.load(recipe.output)  # what was written, with its float16 weights
    qualities = [evaluate(stored, held_out, level, teacher) for level in (256, 512) if held_out]
    record = {
        "recipe": config.as_dict(recipe),
        "trained_on": [photo.name for photo in training],
        "held_out": [photo.name for photo in held_out],
        "seconds": round(seconds),
        "quality": [dataclasses.asdict(quality) for quality in qualities],
    }
    text = json.dumps(record, indent=2)
    Path(recipe.output).with_suffix(".training.json").write_text(text + "\n", encoding="utf-8")
    for q in qualities:
        log(
            f"level {q.level}: {q.psnr_db:.2f} dB, SSIM {q.ssim:.3f} (thumbnails "
            f"{q.thumbnail16_db:.2f}, {q.thumbnail32_db:.2f} dB), {q.usage_all:.0%} of codes used"
        )
    return qualities
