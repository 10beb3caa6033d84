"""What the report shows of each rule: its scores with the cut drawn in, and pictures just at it."""

from collections.abc import Callable
from dataclasses import dataclass

import duckdb

from pipelines.charts import BarChart, bar_chart, number
from pipelines.contact_sheets import Choice, Picture
from pipelines.decided import Arrivals, Decided
from pipelines.histograms import histogram
from pipelines.thresholds import Cut, Threshold, thresholds

Show = Callable[[list[Choice]], list[Picture]]
MAX_CHARTS = 4  # of one rule


@dataclass(frozen=True)
class Edge:
    """Samples nearest to a cut: the last that pass and the first that fail."""

    cut: str
    kept: list[Picture]
    rejected: list[Picture]


@dataclass(frozen=True)
class ScoreChart:
    """A score over the rows that reached a rule, split by whether they pass it."""

    expression: str
    chart: BarChart
    edges: list[Edge]


@dataclass(frozen=True)
class RuleSection:
    name: str
    condition: str
    arrived: int
    passed: int
    missing: int
    scores: list[ScoreChart]

    @property
    def rejected(self) -> int:
        return self.arrived - self.passed


def rule_sections(
    con: duckdb.DuckDBPyConnection, made: Decided, show: Show, num_pictures: int
) -> list[RuleSection]:
    """One section per rule, in order; edges of ``num_pictures`` on either side."""
    return [_section(con, at, show, num_pictures) for at in made.arrivals(con)]


def _section(
    con: duckdb.DuckDBPyConnection, at: Arrivals, show: Show, num_pictures: int
) -> RuleSection:
    rule = at.rule
    [(arrived, passed, missing)] = con.execute(
        "SELECT count(*), count(*) FILTER (failure IS NULL), "
        "count(*) FILTER (ends_with(failure, ':missing')) "
        f"FROM (SELECT ({at.failure}) AS failure FROM ({at.rows}))"
    ).fetchall()
    condition = rule.expression if rule.top is None else f"the best {rule.top:.4g} by {rule.by}"
    scores = []
    for threshold in thresholds(rule)[:MAX_CHARTS]:
        cuts = threshold.cuts if at.cut is None else _quantile_cut(con, at.cut)
        shown = histogram(con, at.rows, threshold.expression, at.failure, [cut.at for cut in cuts])
        if shown is None:
            continue
        chart = bar_chart(shown, [cut.at for cut in cuts])
        edges = []
        for cut in cuts:
            kept, rejected = _nearest(con, at, threshold, cut, num_pictures)
            edges.append(Edge(number(cut.at), show(kept), show(rejected)))
        scores.append(ScoreChart(threshold.expression, chart, edges))
    return RuleSection(rule.name, condition, arrived, passed, missing, scores)


def _quantile_cut(con: duckdb.DuckDBPyConnection, table: str) -> tuple[Cut, ...]:
    rows = con.execute(f"SELECT score::DOUBLE FROM {table} WHERE isfinite(score)").fetchall()
    return tuple(Cut(score, above=True) for (score,) in rows)


def _nearest(
    con: duckdb.DuckDBPyConnection, at: Arrivals, of: Threshold, cut: Cut, limit: int
) -> tuple[list[Choice], list[Choice]]:
    """(kept, rejected) samples nearest to a cut, with their scores."""

    def nearest(condition: str) -> list[Choice]:
        rows = con.execute(
            f"SELECT sample_id, v FROM (SELECT sample_id, ({of.expression}\n)::DOUBLE AS v, "
            f"({at.failure}) AS failure FROM ({at.rows})) WHERE isfinite(v) AND {condition} "
            f"ORDER BY abs(v - {cut.at!r}), sample_id LIMIT {limit}"
        ).fetchall()
        return [Choice(sample_id, number(value)) for sample_id, value in rows]

    # A rule of several conditions may fail for another reason: then it is not this cut's.
    wrong_side = f"v {'<=' if cut.above else '>='} {cut.at!r}"
    return nearest("failure IS NULL"), nearest(f"failure IS NOT NULL AND {wrong_side}")
