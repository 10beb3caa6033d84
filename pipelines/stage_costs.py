"""Seconds per row of a phase's stages, and of a worker's start, from the batches of its units."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.estimator import Total, ratio_total
from pipelines.phase import Stage


@dataclass(frozen=True)
class StageCost:
    """What a worker of a stage is busy with.

    ``per_row_s`` without its start; ``start_s`` is what its first batch takes longer than such a
    batch does, as a mean over workers; ``longest_s`` is the busiest worker's time in the sample.
    """

    per_row_s: Total
    start_s: float
    longest_s: float


def stage_costs(stages: Sequence[Stage], units: Sequence[dict[str, Any]]) -> list[StageCost]:
    """The cost of each stage from the summaries of units (`pipelines.work.Work`)."""
    return [_cost([unit["stages"][number] for unit in units]) for number in range(len(stages))]


def _cost(units: Sequence[dict[str, Any]]) -> StageCost:
    firsts: list[tuple[int, float]] = []
    others: list[tuple[int, float]] = []
    batches: list[list[float]] = []  # rows, seconds less the operators' of first batches
    busy_s: dict[str, float] = {}
    for unit in units:
        rows_of_unit = max(sum(rows for rows, _, _ in unit["batches"]), 1)
        for number, (rows, load_s, operators_s) in enumerate(unit["batches"]):
            first = unit["is_first"] and number == 0
            (firsts if first else others).append((rows, operators_s))
            around = load_s + unit["write_s"] * rows / rows_of_unit
            batches.append([rows, around + (0.0 if first else operators_s), float(first)])
            total = load_s + operators_s + unit["write_s"] * rows / rows_of_unit
            busy_s[unit["worker"]] = busy_s.get(unit["worker"], 0.0) + total
    rows_of_others = sum(rows for rows, _ in others)
    start_s = 0.0
    if rows_of_others:
        rate = sum(seconds for _, seconds in others) / rows_of_others
        extra = [max(0.0, seconds - rate * rows) for rows, seconds in firsts]
        start_s = sum(extra) / len(extra) if extra else 0.0
    else:
        # Every batch was a worker's first: what of it was the start cannot be told.
        rate = sum(seconds for _, seconds in firsts) / max(sum(rows for rows, _ in firsts), 1)
    rows = [batch[0] for batch in batches]
    seconds = [batch[1] + (rate * batch[0] if batch[2] else 0.0) for batch in batches]
    per_row = ratio_total(seconds, rows, 1.0)
    return StageCost(per_row, start_s, max(busy_s.values(), default=0.0))
