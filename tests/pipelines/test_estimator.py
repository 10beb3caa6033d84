"""Totals from samples: exact where all is known, and intervals that hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipelines.estimator import Total, chained_total, ratio_total, student_t

POSITIVE = st.floats(0.1, 1e3)


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 10, 19, 100, 10_000])
def test_the_quantile_is_that_of_student(freedom: int) -> None:
    assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.02)


def test_what_one_group_cannot_tell() -> None:
    assert student_t(0) == math.inf
    assert ratio_total([3.0], [1.0], 10.0).error == math.inf
    assert ratio_total([3.0, 0.0], [1.0, 0.0], 10.0).error == math.inf
    assert ratio_total([], [], 10.0) == Total(0.0)


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=8), POSITIVE)
def test_the_jackknife_leaves_one_group_out(
    groups: list[tuple[float, float]], whole: float
) -> None:
    y, x = zip(*groups, strict=True)
    found = ratio_total(y, x, whole)
    assert found.value == pytest.approx(whole * sum(y) / sum(x))
    without = [
        whole * (sum(y) - y[i]) / (sum(x) - x[i])  # by hand
        for i in range(len(y))
    ]
    spread = sum((one - found.value) ** 2 for one in without)
    assert found.variance == pytest.approx((len(y) - 1) / len(y) * spread)
    # All of the source is no sample; half of it leaves half of the variance.
    assert ratio_total(y, x, whole, 1.0) == Total(found.value)
    assert ratio_total(y, x, whole, 0.5).variance == pytest.approx(found.variance / 2)


def test_a_chain_of_ratios() -> None:
    y, n, rows, size = [2.0, 0.0, 3.0], [4.0, 2.0, 4.0], [40.0, 30.0, 50.0], [1.0, 1.0, 2.0]
    found = chained_total([(rows, size), (y, n)], 100.0)
    assert found.value == pytest.approx(100 * 120 / 4 * 5 / 10)
    # Groups are left out of both at once.
    without = [100 * 80 / 3 * 3 / 6, 100 * 90 / 3 * 5 / 8, 100 * 70 / 2 * 2 / 6]
    spread = sum((one - found.value) ** 2 for one in without)
    assert found.variance == pytest.approx(2 / 3 * spread)
    assert found.freedom == 2


def test_intervals_hold_the_truth_of_clustered_rows() -> None:
    """95% of them should; as if rows were independent, it would be far fewer."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 80, 400)
    shares = rng.beta(2, 2, 400)  # rows of one file are alike
    kept = rng.binomial(sizes, shares)
    held = naive = 0
    for _ in range(300):
        some = rng.choice(400, 20, replace=False)
        found = ratio_total(kept[some], sizes[some], float(sizes.sum()), 20 / 400)
        held += abs(found.value - kept.sum()) <= found.error
        share = kept[some].sum() / sizes[some].sum()
        of_rows = 1.96 * math.sqrt(share * (1 - share) / sizes[some].sum()) * sizes.sum()
        naive += abs(found.value - kept.sum()) <= of_rows
    assert held >= 270
    assert naive < 200


def test_sums_and_products() -> None:
    a, b = Total(10.0, 4.0, 3), Total(5.0, 1.0, 4)
    assert a + b == Total(15.0, 5.0, 7)
    assert a.times(3) == Total(30.0, 36.0, 3)
    product = a.times_rate(b)
    assert (product.value, product.freedom) == (50.0, 3)
    assert product.variance == pytest.approx(2500 * (4 / 100 + 1 / 25))
    assert Total(0.0).times_rate(Total(1.0, math.inf)) == Total(0.0)
