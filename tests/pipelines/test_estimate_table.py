"""What the person at the terminal reads."""

import math

import pytest

from infra.config import ConfigError
from pipelines.estimate_table import Line, Prices, print_estimate
from pipelines.estimator import Total


def line(table: str, **changes: Total) -> Line:
    zero = Total(0.0)
    names = ("wall_s", "cpu_s", "gpu_s", "bytes", "rows", "fine", "failed")
    return Line(table, **(dict.fromkeys(names, zero) | changes))


def exact(value: float, error: float = 0.0) -> Total:
    return Total(value, (error / 1.96) ** 2, 100_000)


def test_lines_total_and_price(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        line(
            "scores/p/cheap",
            wall_s=exact(3661, 60),
            cpu_s=exact(7200, 720),
            bytes=exact(2.5e9, 1e8),
            rows=exact(1e6),
            fine=exact(999_000, 500),
            failed=Total(0.0, (300 / 1.96) ** 2, 100_000),
        ),
        line(
            "captions/p",
            cpu_s=exact(3600, 360),
            wall_s=Total(60.0, math.inf),
            num_prompt_tokens=exact(3e8),
            num_tokens=exact(1e8, 1e7),
        ),
    ]
    prices = Prices(cpu_hour=0.5, million_tokens=2.0)
    print_estimate(lines, ["of a sample"], prices)
    said = capsys.readouterr().out.splitlines()
    assert "GPU time" not in said[0]  # nothing uses one
    first = " ".join(said[1].split())
    assert first == (
        "scores/p/cheap 1:01:01 ± 0:01:00 2 h ± 12 min 2.5 GB ± 100 MB 1 M 999,000 ± 500 < 300 -"
    )
    assert "0:01:00 ± ?" in said[2]
    assert "300 M in, 100 M ± 10 M" in said[2]
    # Errors of phases over the same rows add up.
    assert " ".join(said[3].split()).startswith("total 1:02:01 ± ? 3 h ± 18 min")
    assert said[4] == "price: 802 ± 20"
    assert said[5] == "note: of a sample"


def test_bounds_are_in_totals_and_price(capsys: pytest.CaptureFixture[str]) -> None:
    print_estimate([line("captions/p", gpu_s=exact(0, 7200))], [], Prices(gpu_hour=2.0))
    said = [" ".join(text.split()) for text in capsys.readouterr().out.splitlines()]
    assert said == ["phase GPU time", "captions/p < 2 h", "total < 2 h", "price: < 4"]


def test_a_price_asks_for_none(capsys: pytest.CaptureFixture[str]) -> None:
    print_estimate([line("t", cpu_s=exact(1))], [], Prices())
    assert "price" not in capsys.readouterr().out


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(ConfigError, match="--gpu-hour-price is -1: at least 0"):
        Prices(0.1, -1.0)
