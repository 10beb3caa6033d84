"""Chart geometry: places, round ticks, bars that add up, lines that fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.charts import HEIGHT, MAX_POINTS, WIDTH, Axis, bar_chart, line_chart, number
from pipelines.histograms import Histogram


def test_axis() -> None:
    assert Axis(2, 4, 100).place(3) == 50
    assert Axis(1, 100, 100, logarithmic=True).place(10) == 50
    assert [label for _, label in Axis(0, 1, 100).ticks(5)] == [
        "0",
        "0.2",
        "0.4",
        "0.6",
        "0.8",
        "1",
    ]
    logarithmic = [label for _, label in Axis(40, 3_000, 100, logarithmic=True).ticks()]
    assert logarithmic == ["50", "100", "200", "500", "1,000", "2,000"]


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e9))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    ticks = Axis(low, low + span, 100).ticks()
    assert len(ticks) <= 14
    assert all(-0.1 <= x <= 100.1 for x, _ in ticks)


def test_bars_stand_on_each_other_and_cuts_are_placed() -> None:
    of = Histogram((0.0, 1.0, 2.0, 3.0), False, (2, 0, 1), (2, 0, 0), missing=3, num_beyond=1)
    chart = bar_chart(of, [1.5])
    first, last = chart.bars
    assert (first.passed_y, first.passed_height) == (HEIGHT / 2, HEIGHT / 2)
    assert (first.failed_y, first.failed_height) == (0, HEIGHT / 2)
    assert last.failed_height == 0
    assert chart.cuts == ((WIDTH / 2, "1.5"),)
    assert first.title == "0 to 1: 2 pass, 2 fail"
    assert chart.note == (
        "highest bar: 4; 3 without a value; 1 beyond the axis, counted in its outer bars"
    )


def test_lines_share_their_axes_and_are_thinned() -> None:
    long = [(float(i), 10.0 - i / 1000) for i in range(5_000)]
    chart = line_chart(
        [("loss", long), ("short", [(0.0, 3.0), (10.0, 2.0)]), ("one", [(0.0, 1.0)])]
    )
    assert chart is not None
    assert [line.name for line in chart.lines] == ["loss", "short"]
    points = [tuple(map(float, p.split(","))) for p in chart.lines[0].points.split()]
    assert len(points) <= MAX_POINTS + 1
    assert points[0][0] == 0
    assert points[-1][0] == WIDTH
    assert all(0 <= y <= HEIGHT for _, y in points)
    assert (chart.lines[0].first, chart.lines[0].last) == ("10", "5.001")


def test_no_line_no_chart() -> None:
    assert line_chart([("loss", [(1.0, 2.0)])]) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.123456, "0.1235"),
        (5, "5"),
        (1234567.8, "1,234,568"),
        (3e12, "3e+12"),
        (-0.5, "-0.5"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_for_people(value: float | None, shown: str) -> None:
    assert number(value) == shown
