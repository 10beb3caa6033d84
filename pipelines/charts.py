"""Charts as plain numbers for the SVG macros of templates/charts.html: bars, cuts, ticks, lines.

Coordinates are those of the view box: x from 0 to `WIDTH`, y from 0 (top) to `HEIGHT`.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.histograms import Histogram

WIDTH, HEIGHT = 960.0, 150.0
MAX_POINTS = 600


@dataclass(frozen=True)
class Axis:
    """Maps values from ``low`` to ``high`` onto 0 .. ``length``."""

    low: float
    high: float
    length: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        if self.logarithmic:
            start = math.log(self.low)
            share = (math.log(value) - start) / (math.log(self.high) - start)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(share * self.length, 2)

    def ticks(self, count: int = 6) -> list[tuple[float, str]]:
        """(place, label) of round values inside the axis, about ``count`` of them."""
        values = _decades(self.low, self.high) if self.logarithmic else []
        if len(values) < 3:
            values = _round_steps(self.low, self.high, count)
        return [(self.place(value), number(value)) for value in values]


@dataclass(frozen=True)
class Bar:
    """One bin: counts that passed at the bottom, counts that failed above them."""

    x: float
    width: float
    passed_y: float
    passed_height: float
    failed_y: float
    failed_height: float
    title: str


@dataclass(frozen=True)
class BarChart:
    bars: tuple[Bar, ...]
    cuts: tuple[tuple[float, str], ...]
    ticks: tuple[tuple[float, str], ...]
    note: str


@dataclass(frozen=True)
class Line:
    name: str
    points: str  # of an SVG polyline
    first: str
    last: str


@dataclass(frozen=True)
class LineChart:
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def bar_chart(of: Histogram, cuts: Sequence[float] = ()) -> BarChart:
    """A histogram with vertical lines at the cuts."""
    axis = Axis(of.edges[0], of.edges[-1], WIDTH, of.logarithmic)
    most = max(1, *(p + f for p, f in zip(of.passed, of.failed, strict=True)))
    bars = []
    sides = itertools.pairwise(of.edges)
    for (left, right), passed, failed in zip(sides, of.passed, of.failed, strict=True):
        if not passed + failed:
            continue
        x = axis.place(left)
        low, top = (round(HEIGHT * n / most, 2) for n in (passed, passed + failed))
        counts = f"{passed:,} pass, {failed:,} fail" if any(of.failed) else f"{passed:,}"
        title = f"{number(left)} to {number(right)}: {counts}"
        width = max(axis.place(right) - x - 1, 0.5)
        bars.append(Bar(x, width, HEIGHT - low, low, HEIGHT - top, top - low, title))
    notes = [f"highest bar: {most:,}"]
    if of.missing:
        notes.append(f"{of.missing:,} without a value")
    if of.num_beyond:
        notes.append(f"{of.num_beyond:,} beyond the axis, counted in its outer bars")
    marks = tuple((axis.place(cut), number(cut)) for cut in cuts)
    return BarChart(tuple(bars), marks, tuple(axis.ticks()), "; ".join(notes))


def line_chart(series: Iterable[tuple[str, Sequence[tuple[float, float]]]]) -> LineChart | None:
    """Lines over one pair of axes, named in the order given; None where no line has two points."""
    named = [(name, points) for name, points in series if len({x for x, _ in points}) > 1]
    if not named:
        return None
    xs = [x for _, points in named for x, _ in points]
    ys = [y for _, points in named for _, y in points]
    across = Axis(min(xs), max(xs), WIDTH)
    margin = (max(ys) - min(ys)) / 20 or 0.5
    up = Axis(min(ys) - margin, max(ys) + margin, HEIGHT)
    lines = []
    for name, points in named:
        step = math.ceil(len(points) / MAX_POINTS)
        drawn = [*points[:-1:step], points[-1]]
        places = " ".join(f"{across.place(x)},{round(HEIGHT - up.place(y), 2)}" for x, y in drawn)
        lines.append(Line(name, places, number(points[0][1]), number(points[-1][1])))
    y_ticks = tuple((round(HEIGHT - y, 2), label) for y, label in up.ticks(4))
    return LineChart(tuple(lines), tuple(across.ticks()), y_ticks)


def number(value: float | None) -> str:
    """A value for people: three or four significant digits, whole numbers in full."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    whole = abs(value) >= 1000 or value == int(value)
    return f"{value:,.0f}" if whole and abs(value) < 1e9 else f"{value:.4g}"


def _round_steps(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between low and high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= 0.7 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded, since 3 * 0.1 is no tick label.
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from low to high; the powers alone where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [s * 10.0**p for p in powers for s in (1, 2, 5) if low <= s * 10.0**p <= high]
    if len(found) <= 9:
        return found
    return [10.0**p for p in powers if low <= 10.0**p <= high]
