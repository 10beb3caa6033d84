"""Histograms count every value once, on an axis that fits them."""

import math

import duckdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.histograms import NUM_BINS, Histogram, histogram

CON = duckdb.connect()


def of(
    values: list[float | None], failure: str = "NULL", marks: tuple[float, ...] = ()
) -> Histogram | None:
    CON.execute("CREATE OR REPLACE TABLE given (v DOUBLE)")
    if values:
        CON.executemany("INSERT INTO given VALUES (?)", [[value] for value in values])
    return histogram(CON, "SELECT * FROM given", "v", failure, marks)


numbers = st.none() | st.floats(-1e12, 1e12) | st.sampled_from([math.nan, math.inf, 0.0])


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, max_size=60), st.lists(st.floats(-1e3, 1e3), max_size=2))
@example([1e-300, 1e300], [])
@example([5.0, 5.0], [5.0])
def test_every_value_is_counted_once(values: list[float | None], marks: list[float]) -> None:
    shown = of(values, "CASE WHEN v < 0 THEN 'low' END", tuple(marks))
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if shown is None:
        assert not finite
        return
    assert sum(shown.failed) == sum(v < 0 for v in finite)
    assert sum(shown.passed) == sum(v >= 0 for v in finite)
    assert shown.missing == len(values) - len(finite)
    assert len(shown.edges) == len(shown.passed) + 1 == len(shown.failed) + 1 <= NUM_BINS + 1
    assert all(a < b for a, b in zip(shown.edges, shown.edges[1:], strict=False))
    assert all(shown.edges[0] <= mark <= shown.edges[-1] for mark in marks)
    outside = sum(not shown.edges[0] <= v <= shown.edges[-1] for v in finite)
    assert shown.num_beyond == outside


def test_bins_hold_what_their_edges_say() -> None:
    shown = of([i / 100 for i in range(100)], marks=(0.0, 1.0))
    assert shown is not None
    assert not shown.logarithmic
    for left, right, count in zip(shown.edges, shown.edges[1:], shown.passed, strict=False):
        assert abs(count - 100 * (right - left)) <= 1


def test_few_whole_numbers_get_a_bin_each() -> None:
    CON.execute("CREATE OR REPLACE TABLE given AS SELECT unnest([1, 1, 3])::INTEGER AS n")
    shown = histogram(CON, "SELECT * FROM given", "n")
    assert shown is not None
    assert shown.edges == (0.5, 1.5, 2.5, 3.5)
    assert shown.passed == (2, 0, 1)


def test_wide_positive_values_are_logarithmic() -> None:
    shown = of([10.0**i for i in range(7)])
    assert shown is not None
    assert shown.logarithmic
    assert sum(shown.passed) == 7
    assert max(shown.passed) == 1


def test_one_outlier_does_not_take_the_axis() -> None:
    shown = of([*(i / 1000 for i in range(1000)), -500.0])
    assert shown is not None
    assert shown.edges[0] > -1
    assert shown.num_beyond >= 1
    assert shown.passed[0] >= 1


@pytest.mark.parametrize("expression", ["'a'", "v > 1", "NULL::INTEGER"])
def test_what_is_no_number_has_none(expression: str) -> None:
    CON.execute("CREATE OR REPLACE TABLE given AS SELECT 1.0::DOUBLE AS v")
    assert histogram(CON, "SELECT * FROM given", expression) is None
