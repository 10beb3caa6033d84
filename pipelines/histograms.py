"""Histograms of SQL expressions, binned by DuckDB: no value leaves the database."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

NUM_BINS = 48


@dataclass(frozen=True)
class Histogram:
    """Counts of an expression's values in bins of equal width, on a plain or logarithmic axis.

    ``passed`` and ``failed`` have one count per bin, ``edges`` one number more. Values beyond the
    edges (``num_beyond`` of them) are counted in the first and the last bin; ``missing`` are NULL
    or not finite.
    """

    edges: tuple[float, ...]
    logarithmic: bool
    passed: tuple[int, ...]
    failed: tuple[int, ...]
    missing: int
    num_beyond: int


def histogram(
    con: duckdb.DuckDBPyConnection,
    rows: str,
    expression: str,
    failure: str = "NULL",
    marks: Sequence[float] = (),
) -> Histogram | None:
    """The values of ``expression`` over the rows of the query ``rows``, split by ``failure``.

    ``failure`` is an SQL expression, NULL where a row passes (`rules.failure_sql`); the axis shows
    all ``marks``. None where the expression is no number or has no value.
    """
    kind = con.sql(f"SELECT ({expression}\n) AS v FROM ({rows}) LIMIT 0").to_arrow_table().schema[0]
    if not (pa.types.is_floating(kind.type) or pa.types.is_integer(kind.type)):
        return None
    values = f"SELECT ({expression}\n)::DOUBLE AS v, ({failure}) IS NOT NULL AS out FROM ({rows})"
    [(low, high, typical, there, total)] = con.execute(
        "SELECT min(v) FILTER (isfinite(v)), max(v) FILTER (isfinite(v)), "
        "approx_quantile(v, [0.005, 0.995]) FILTER (isfinite(v)), "
        f"count(*) FILTER (isfinite(v)), count(*) FROM ({values})"
    ).fetchall()
    if not there:
        return None
    if pa.types.is_integer(kind.type) and high - low < NUM_BINS:
        logarithmic, edges = False, [low - 0.5 + i for i in range(int(high - low) + 2)]
    else:
        ends = _typical_range(low, high, typical, marks)
        logarithmic, edges = _edges(*ends, min(NUM_BINS, max(8, math.ceil(2 * math.sqrt(there)))))
    bins = len(edges) - 1
    first, last = edges[0], edges[-1]
    within = f"greatest({first!r}, least({last!r}, v))"
    if logarithmic:
        start, span = math.log(first), math.log(last) - math.log(first)
        place = f"(ln({within}) - {start!r}) / {span!r}"
    else:
        place = f"({within} - {first!r}) / {last - first!r}"
    counts = con.execute(
        f"SELECT least({bins - 1}, floor({place} * {bins}))::INTEGER AS bin, "
        "count(*) FILTER (NOT out), count(*) FILTER (out), "
        f"count(*) FILTER (v < {first!r} OR v > {last!r}) "
        f"FROM ({values}) WHERE isfinite(v) GROUP BY bin"
    ).fetchall()
    passed, failed = [0] * bins, [0] * bins
    for bin_, ins, outs, _ in counts:
        passed[bin_], failed[bin_] = ins, outs
    return Histogram(
        tuple(edges),
        logarithmic,
        tuple(passed),
        tuple(failed),
        total - there,
        sum(beyond for *_, beyond in counts),
    )


def _typical_range(
    low: float, high: float, typical: Sequence[float], marks: Sequence[float]
) -> tuple[float, float]:
    """The range of the axis: an end is cut off where a few outliers would take most of it."""
    common = typical[1] - typical[0]
    start = typical[0] if typical[0] - low > common else low
    stop = typical[1] if high - typical[1] > common else high
    start, stop = min(start, *marks, stop), max(stop, *marks, start)
    if stop - start <= max(1e-9 * max(abs(start), abs(stop)), 1e-200):  # one value, in the middle
        margin = abs(start) / 10 or 0.5
        return start - margin, stop + margin
    return start, stop


def _edges(start: float, stop: float, bins: int) -> tuple[bool, list[float]]:
    """(logarithmic?, edges): logarithmic for positive values that span a factor of 20 or more."""
    steps = [i / bins for i in range(1, bins)]
    if start > 0 and stop / start >= 20:
        low, high = math.log(start), math.log(stop)
        return True, [start, *(math.exp(low + (high - low) * step) for step in steps), stop]
    return False, [start, *(start + (stop - start) * step for step in steps), stop]
