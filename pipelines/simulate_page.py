"""The page of ``nextscale simulate``: Figure 13 of the paper, from these documents.

Time runs to the right, one line per rank. Whatever a rank does not spend on documents is padding,
or waiting for the dearest rank.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra import html
from packing.simulate import Floats, Packed, Simulation, deal
from pipelines.charts import WIDTH, Axis
from pipelines.scenario import BASELINE, Outcome, Result, many

TEMPLATES = Path(__file__).parent / "templates"
MAX_RANKS = 12  # lines of a timeline
BASELINE_STEPS = 4  # a timeline is as long as so many of the baseline's
MAX_STEPS = 200
ROW, GAP = 13.0, 4.0


@dataclass(frozen=True)
class Bar:
    """A rank in one step: documents from ``x`` on, padding behind them; widths of the view box."""

    x: float
    y: float
    documents: float
    padding: float
    title: str


@dataclass(frozen=True)
class Timeline:
    """The first steps of a way to pack, and what became of all ranks' time over all steps."""

    name: str
    shares: tuple[float, float, float]
    throughput: float | None
    bars: list[Bar]
    ends: list[float]  # where steps end
    width: float  # up to the end of the last step that is drawn
    height: float


@dataclass(frozen=True)
class Line:
    """A way to pack on so many ranks; without ``shares`` its packs fill no step."""

    name: str
    throughput: float | None
    imbalance: float
    efficiency: float
    tokens_per_s: float
    shares: tuple[float, float, float] | None


def write_simulation(result: Result, path: str) -> str:
    """Write the page; returns where it is."""
    scenario = result.scenario
    shown = [n for n in sorted(scenario.ranks) if result.baseline(n) is not None]
    ranks = shown[0] if shown else 0
    of_ranks = [(n, [_line(result, outcome, n) for outcome in result.outcomes]) for n in shown]
    axis = _axis(result, ranks) if ranks else None
    timelines = [_timeline(result, outcome, ranks, axis) for outcome in result.outcomes if axis]
    lengths = result.documents.lengths
    page = html.render(
        TEMPLATES,
        "simulate.html",
        source=result.documents.name,
        assumed=result.documents.assumed,
        scenario=scenario,
        baseline=BASELINE,
        many=many,
        num_documents=len(lengths),
        mean_tokens=round(float(lengths.num_tokens.mean())),
        tokens_per_pack=result.tokens_per_pack,
        outcomes=result.outcomes,
        most_tokens=max(int(o.packed.padded_tokens.max()) for o in result.outcomes),
        of_ranks=of_ranks,
        ranks=ranks,
        shown_ranks=min(ranks, MAX_RANKS),
        timelines=[found for found in timelines if found is not None],
        ticks=_ticks(result, axis) if axis else [],
        time_unit="s" if scenario.tflops else "PFLOP",
    )
    return html.write_page(path, page)


def _line(result: Result, outcome: Outcome, ranks: int) -> Line:
    run = outcome.runs[ranks]
    if run is None:
        return Line(outcome.name, None, 0.0, 0.0, 0.0, None)
    speed = result.tokens_per_s(run)
    relative = result.relative(outcome, ranks)
    return Line(outcome.name, relative, run.imbalance, run.efficiency, speed, run.shares)


def _axis(result: Result, ranks: int) -> Axis:
    base = result.baseline(ranks)
    assert base is not None
    mean = float(base.step_cost.mean())
    return Axis(0.0, BASELINE_STEPS * mean, WIDTH)


def _ticks(result: Result, axis: Axis) -> list[tuple[float, str]]:
    per_second = result.scenario.tflops * 1e12
    return Axis(0.0, axis.high / (per_second or 1e15), WIDTH).ticks()


def _timeline(result: Result, outcome: Outcome, ranks: int, axis: Axis) -> Timeline | None:
    run = outcome.runs[ranks]
    if run is None:
        return None
    cost, documents = _phases(outcome.packed, run, result)
    unit = "micro-step" if result.scenario.zero == 3 else "step"
    bars: list[Bar] = []
    ends: list[float] = []
    start = 0.0
    for step, (all_cost, all_documents) in enumerate(zip(cost, documents, strict=True)):
        longest = float(all_cost.max())
        x = axis.place(start)
        for rank in range(min(ranks, MAX_RANKS)):
            mine, useful = float(all_cost[rank]), float(all_documents[rank])
            wide = [
                max(axis.place(min(start + value, axis.high)) - x, 0.0) for value in (useful, mine)
            ]
            title = (
                f"{unit} {step}, rank {rank}: {mine / 1e15:.3g} PFLOP, of it "
                f"{1 - useful / mine:.1%} padding; waits {1 - mine / longest:.1%} of the {unit}"
            )
            bars.append(Bar(x, rank * (ROW + GAP), wide[0], wide[1] - wide[0], title))
        start += longest
        if start >= axis.high:
            break
        ends.append(axis.place(start))
    height = min(ranks, MAX_RANKS) * (ROW + GAP) - GAP
    relative = result.relative(outcome, ranks)
    width = axis.place(min(start, axis.high))
    return Timeline(outcome.name, run.shares, relative, bars, ends, width, height)


def _phases(packed: Packed, run: Simulation, result: Result) -> tuple[Floats, Floats]:
    """Cost and cost of documents of the first phases between barriers, each [phases, ranks]."""
    found = []
    for values in (packed.cost, packed.document_cost):
        dealt = deal(values, run.num_ranks, run.micro_steps)[:MAX_STEPS]
        waits_often = result.scenario.barrier == "micro_step"
        found.append(dealt.reshape(-1, run.num_ranks) if waits_often else dealt.sum(axis=1))
    return np.asarray(found[0]), np.asarray(found[1])
