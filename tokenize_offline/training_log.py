"""What a training reports: one JSON line every so many steps, and the same for people to read.

    {"stage": "joint", "step": 200, "losses": {"picture": -4.1, …}, "learning_rate": 5e-4,
     "gradient_norm": 0.8, "pictures_per_s": 17.2, "usage": [1.0, 0.9, …], "perplexity": […]}

``usage`` and ``perplexity`` are those of `tokenize_offline.usage`, by scale and since the line
before, over all processes; null for scales that no picture had.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infra.config import ConfigError


class StepSums:
    """Sums over the steps since the last line, kept on the device: no step waits for a number."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.pictures = 0  # of all ranks
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """Of the values that were added."""
        return list(self._sums)

    @property
    def steps(self) -> int:
        """How many there were: every step adds its gradient's norm."""
        return self._counts["gradient_norm"]

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Scalars by name; each name is averaged over its own number of additions."""
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> Tensor:
        """Of every name, in the order of `names`."""
        return torch.stack([value / self._counts[name] for name, value in self._sums.items()])


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """One line more."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(entry)) + "\n")


def keep_until(path: Path, stages: Sequence[str], stage: str, step: int) -> None:
    """Drop what a resumed run writes again: lines after ``step`` of ``stage``, and a torn one.

    Raises ConfigError for a line that is none of this log's.
    """
    if not path.exists():
        return
    done, kept = (stages.index(stage), step), []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            continue
        try:
            entry = json.loads(line)
            place = stages.index(entry["stage"]), int(entry["step"])
        except (ValueError, TypeError, LookupError):
            raise ConfigError(
                f"line {number} of {path} is none of a training's log: remove the line, or the file"
            ) from None
        if place <= done:
            kept.append(line)
    beside = path.with_name(f".{path.name}.writing")
    beside.write_bytes(b"".join(kept))
    os.replace(beside, path)


def measured_levels(path: Path, stage: str, step: int) -> set[int]:
    """The levels whose quality after ``step`` of ``stage`` the log has."""
    if not path.exists():
        return set()
    entries = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {
        entry["quality"]["level"]
        for entry in entries
        if "quality" in entry and (entry["stage"], entry["step"]) == (stage, step)
    }
