"""The curves of a training run, from its log: for the report, and as a page beside the log."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import html
from infra.config import ConfigError
from infra.storage import Storage
from pipelines.charts import LineChart, line_chart

TEMPLATES = Path(__file__).parent / "templates"
MOST_SOURCES = 12  # lines of a chart: the sources with most targets

Step = dict[str, Any]
Point = tuple[float, float]


@dataclass(frozen=True)
class TrainingCharts:
    """Charts of one run; None where its log has nothing to draw one from."""

    log: str
    steps: int
    losses: LineChart
    scales: LineChart | None
    tasks: LineChart | None
    sources: LineChart | None
    speed: LineChart | None
    mfu: LineChart | None
    gradients: LineChart | None


def training_charts(log: str) -> TrainingCharts | None:
    """The charts of a trainer's JSON lines; None before its second step. Raises ConfigError."""
    steps = read_log(log)
    named = {"all": "loss", "text": "text_loss", "vision": "vision_loss"}
    losses = line_chart((name, _points(steps, _get(key))) for name, key in named.items())
    if losses is None:
        return None

    def one(name: str, key: str) -> LineChart | None:
        return line_chart([(name, _points(steps, _get(key)))])

    return TrainingCharts(
        log=log,
        steps=len(steps),
        losses=losses,
        scales=_by_scale(steps),
        tasks=_by_name(steps, "tasks"),
        sources=_by_name(steps, "sources"),
        speed=one("tokens/s", "tokens_per_s"),
        mfu=one("MFU", "mfu"),
        gradients=one("norm before clipping", "gradient_norm"),
    )


def write_train_page(log: str, path: str) -> str | None:
    """Write the page of one run's curves; None where there is nothing to draw yet."""
    of = training_charts(log)
    return (
        None if of is None else html.write_page(path, html.render(TEMPLATES, "train.html", of=of))
    )


def read_log(log: str) -> list[Step]:
    """The steps of a log, without a last line that is half written. Raises ConfigError."""
    folder, name = os.path.split(log)
    try:
        lines = Storage(folder or ".").read(name).decode("utf-8", "replace").splitlines(True)
        # The trainer appends while we read.
        steps = [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
    except FileNotFoundError:
        raise ConfigError(f"training log {log} does not exist: check the path") from None
    except ValueError as error:
        raise ConfigError(f"training log {log} holds a line that is no JSON: {error}") from None
    for number, step in enumerate(steps, start=1):
        if not isinstance(step, dict) or not isinstance(step.get("step"), int):
            raise ConfigError(f"training log {log}, line {number}: no step of ours")
    return steps


def _get(key: str) -> Callable[[Step], float | None]:
    return lambda step: step.get(key)


def _by_scale(steps: list[Step]) -> LineChart | None:
    num_scales = max(len(step.get("scale_losses") or ()) for step in steps)

    def of(scale: int) -> Callable[[Step], float | None]:
        return lambda step: dict(enumerate(step.get("scale_losses") or ())).get(scale)

    return line_chart((f"scale {s + 1}", _points(steps, of(s))) for s in range(num_scales))


def _by_name(steps: list[Step], key: str) -> LineChart | None:
    """A line per task or source, those with most targets; None where there is only one."""
    targets: dict[str, int] = {}
    for step in steps:
        for name, share in (step.get(key) or {}).items():
            targets[name] = targets.get(name, 0) + share["num_targets"]
    if len(targets) < 2:
        return None
    most = sorted(targets, key=lambda name: (-targets[name], name))[:MOST_SOURCES]

    def of(name: str) -> Callable[[Step], float | None]:
        return lambda step: ((step.get(key) or {}).get(name) or {}).get("loss")

    return line_chart((name, _points(steps, of(name))) for name in most)


def _points(steps: list[Step], value: Callable[[Step], float | None]) -> list[Point]:
    found = ((float(step["step"]), value(step)) for step in steps)
    return [(x, float(y)) for x, y in found if y is not None]
