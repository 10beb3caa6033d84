"""The recipe of ``nextscale train-tokenizer``: pictures, teacher, network, learning, output.

Every mistake that can be seen without decoding a picture is one line before any work.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra import config
from infra.config import ConfigError
from infra.schedules import NUM_SCALES
from tokenize_offline.learning import Learning
from tokenize_offline.model import TokenizerSettings
from tokenize_offline.oversampling import Oversample
from tokenize_offline.photographs import Pictures
from tokenize_offline.ranks import check_device, num_processes

# Where things are, how fast they go and what is reported: no weight depends on it.
_FREE = (
    *("output", "images", "documents", "oversample", "teacher", "measured_at_most", "frechet"),
    *("device", "read_ahead", "cache_mib"),
    *("log_every", "save_every", "sample_every", "evaluate_every"),
)


@dataclass(frozen=True)
class TrainTokenizer:
    """What to train on, what to train, and where to write it."""

    output: str  # the checkpoint to write, NAME.safetensors; the training lives in NAME.training/
    teacher: str  # EfficientNet-Lite0 weights (safetensors), or a folder or hub id of SigLIP2
    images: tuple[str, ...] = ()  # folders or files of photographs
    documents: tuple[str, ...] = ()  # tables of documents: WORKSPACE/documents/NAME
    oversample: tuple[Oversample, ...] = ()  # faces, text: tokenize_offline/oversampling.py
    exclude: tuple[str, ...] = ()  # file name patterns that are no photographs
    held_out: str = "*"  # file name pattern of those that may be held out for evaluation ...
    held_out_share: float = 0.1  # ... and the share of them that is
    measured_at_most: int = 2_500  # pictures, of those held out, chosen by the seed
    frechet: str = ""  # for the Fréchet distance: a TorchScript file, or "teacher" (EfficientNet)
    short_side: int = 1_600  # pixels; larger photographs are reduced when read
    device: str = ""  # cpu, cuda, cuda:N; "": a GPU if there is one
    read_ahead: int = 2  # threads of each process that decode and cut the next pictures
    # MiB of each process for decoded pictures, and as much for row groups of documents: one for
    # every picture of a step, of some 64 encoded pictures each.
    cache_mib: int = 1_024
    log_every: int = 200  # steps
    save_every: int = 500  # steps; what a killed run has to do again at most
    sample_every: int = 0  # steps of the last two stages; 0: no sample pictures
    evaluate_every: int = 0  # the same, for the quality on held-out pictures; 0: at the end only
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    learning: Learning = field(default_factory=Learning)

    def __post_init__(self) -> None:
        if not self.output.endswith(".safetensors") or "://" in self.output:
            raise ConfigError(
                f"output is {self.output!r}: end it in .safetensors, in a local or mounted folder"
            )
        if not self.images and not self.documents:
            raise ConfigError("images and documents are empty: name folders or tables of pictures")
        if not 0 <= self.held_out_share < 1:
            raise ConfigError(f"held_out_share is {self.held_out_share}: use 0 to below 1")
        for name in ("measured_at_most", "short_side", "read_ahead", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: use 1 or more")
        if self.cache_mib < 0:
            raise ConfigError(f"cache_mib is {self.cache_mib}: use 0 (keep nothing) or more")
        for name in ("sample_every", "evaluate_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: use 0 (never) or more")

    @property
    def folder(self) -> Path:
        """Where the training lives: its state, its log, its sample pictures."""
        return Path(self.output).with_suffix(".training")

    @property
    def log_path(self) -> Path:
        """The log: tokenize_offline/training_log.py."""
        return self.folder / "log.jsonl"

    @property
    def levels(self) -> tuple[int, ...]:
        """Those that the quality is measured at."""
        return (256, 512, 1024) if self.learning.level_1024_share else (256, 512)

    def saves(self, stage: str, step: int) -> bool:
        """Whether the state is saved after so many steps: when it is time, and before measuring."""
        return step % self.save_every == 0 or self.measures(stage, step)

    def measures(self, stage: str, step: int) -> bool:
        """Whether the quality is measured then; before the joint stage there are no codes."""
        return self._due(self.evaluate_every, stage, step)

    def samples(self, stage: str, step: int) -> bool:
        """Whether sample pictures are drawn then."""
        return self._due(self.sample_every, stage, step)

    def _due(self, every: int, stage: str, step: int) -> bool:
        return stage != "branches" and bool(every) and step % every == 0

    def check(self) -> None:
        """Raises ConfigError unless the device is there and the output can be written.

        Nothing is made or written for it.
        """
        check_device(self.device)
        if Path(self.output).is_dir():
            raise ConfigError(f"output {self.output} is a folder: name a file")
        there = next(path for path in self.folder.absolute().parents if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise ConfigError(
                f"output {self.output} cannot be written into {there}: choose another folder"
            )
        for source in map(Path, self.images):
            if source.is_dir() and self.folder.resolve().is_relative_to(source.resolve()):
                raise ConfigError(
                    f"output {self.output} lies in {source} of images, and its samples would "
                    "become training pictures: choose another folder"
                )

    def identity(
        self, pictures: Pictures, contents: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """What must stay the same for a training to be continued.

        Processes, passes and their size may change, as long as a step has as many pictures at every
        level; where pictures and frozen networks lie may, too: ``contents`` are digests of the
        latter, by name.
        """
        tree = config.as_dict(self)
        for name in _FREE:
            del tree[name]
        learning, settings = tree["learning"], self.learning
        for name in ("batch_size", "gradient_accumulation", "num_threads"):
            del learning[name]
        del learning["gradient_checkpointing"]
        del learning["perceptual"]["weights"], learning["perceptual"]["heads"]
        parts = settings.gradient_accumulation * num_processes()
        learning["pictures_per_step"] = {
            f"level_{level}": parts * settings.pictures_at(level)
            for level, fitted in zip(NUM_SCALES, settings.fit_batches, strict=True)
            if fitted or settings.share_of(level)
        }
        tree["pictures"] = f"{len(pictures)} ({pictures.identity[:12]})"
        return tree | {"weights": dict(contents or {})}
