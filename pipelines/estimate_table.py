"""An estimate as a table for people: a line per phase, a total, money, and what to know of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from infra.config import ConfigError
from pipelines.estimator import Total
from pipelines.progress import clock

Unit = Callable[[float], str]


@dataclass(frozen=True)
class Prices:
    """What an hour of a CPU or GPU and a million VLM tokens cost, in any currency.

    Raises ConfigError for a negative one.
    """

    cpu_hour: float = 0.0
    gpu_hour: float = 0.0
    million_tokens: float = 0.0

    def __post_init__(self) -> None:
        for name, price in vars(self).items():
            if not price >= 0:
                raise ConfigError(f"--{name.replace('_', '-')}-price is {price:g}: at least 0")


@dataclass(frozen=True)
class Line:
    """A phase over the whole source: what it costs, and what becomes of its rows.

    ``cpu_s`` and ``gpu_s`` are seconds of reserved CPUs and GPUs while their worker is busy.
    ``fine`` rows are kept, in decisions, and without error in other tables.
    """

    table: str
    wall_s: Total
    cpu_s: Total
    gpu_s: Total
    bytes: Total
    rows: Total
    fine: Total
    failed: Total
    num_prompt_tokens: Total = field(default_factory=lambda: Total(0.0))
    num_tokens: Total = field(default_factory=lambda: Total(0.0))


HEADS = ("wall", "CPU time", "GPU time", "bytes", "rows in", "fine or kept", "failed", "VLM tokens")


def print_estimate(lines: Sequence[Line], notes: Sequence[str], prices: Prices) -> None:
    """The table on stdout."""
    shown = [["phase", *HEADS], *([line.table, *_cells(line)] for line in lines)]
    shown.append(["total", *_sums(lines)])
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
    used = [i for i in range(len(shown[0])) if i == 0 or any(row[i] != "-" for row in shown[1:])]
    for row in shown:
        cells = [row[i].ljust(widths[i]) if i == 0 else row[i].rjust(widths[i]) for i in used]
        print("  ".join(cells).rstrip())
    money = _money(lines, prices)
    if money.value or money.error:
        print(f"price: {_spread(money.value, money.error, _price)}")
    for note in notes:
        print(f"note: {note}")


def _cells(line: Line) -> list[str]:
    tokens = "-"
    if line.num_tokens.value or line.num_prompt_tokens.value:
        tokens = f"{_told(line.num_prompt_tokens, _number)} in, {_told(line.num_tokens, _number)}"
    return [
        _told(line.wall_s, _clock),
        _told(line.cpu_s, _duration),
        _told(line.gpu_s, _duration),
        _told(line.bytes, _bytes),
        *(_told(total, _number) for total in (line.rows, line.fine, line.failed)),
        tokens,
    ]


def _sums(lines: Sequence[Line]) -> list[str]:
    def told(name: str, unit: Unit) -> str:
        total = _in_step([getattr(line, name) for line in lines])
        return _spread(total.value, total.error, unit) if total.value or total.error else "-"

    tokens = told("num_tokens", _number)
    if tokens != "-":
        tokens = f"{told('num_prompt_tokens', _number)} in, {tokens}"
    costs = [told("wall_s", _clock), told("cpu_s", _duration), told("gpu_s", _duration)]
    return [*costs, told("bytes", _bytes), "-", "-", "-", tokens]


@dataclass(frozen=True)
class _Sum:
    value: float
    error: float


def _in_step(totals: Sequence[Total]) -> _Sum:
    """A sum whose parts come from the same rows, so that their errors add up."""
    return _Sum(sum(t.value for t in totals), sum(t.error for t in totals))


def _money(lines: Sequence[Line], prices: Prices) -> _Sum:
    sums = [
        (prices.cpu_hour / 3600, [line.cpu_s for line in lines]),
        (prices.gpu_hour / 3600, [line.gpu_s for line in lines]),
        (prices.million_tokens / 1e6, [line.num_tokens for line in lines]),
        (prices.million_tokens / 1e6, [line.num_prompt_tokens for line in lines]),
    ]
    parts = [(price, _in_step(totals)) for price, totals in sums]
    return _Sum(sum(p * t.value for p, t in parts), sum(p * t.error for p, t in parts))


def _told(total: Total, unit: Unit) -> str:
    if not total.value and not total.error:
        return "-"
    return _spread(total.value, total.error, unit)


def _spread(value: float, error: float, unit: Unit) -> str:
    if not error:
        return unit(value)
    if math.isinf(error):
        return f"{unit(value)} ± ?"
    if not value:
        return f"< {unit(error)}"
    return f"{unit(value)} ± {unit(error)}"


def _number(value: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.1f}"


def _price(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _bytes(value: float) -> str:
    for size, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f} B"


def _duration(seconds: float) -> str:
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.3g} {name}" if seconds < 1e6 else f"{seconds / size:,.0f} h"
    return f"{seconds:.2g} s"


def _clock(seconds: float) -> str:
    return clock(math.ceil(seconds))
