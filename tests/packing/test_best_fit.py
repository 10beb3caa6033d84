"""Best-fit-decreasing in two dimensions: valid, tight, bounded."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.best_fit import best_fit_decreasing, pack_in_windows

CAPACITY = 1_000
items = st.lists(st.tuples(st.integers(0, CAPACITY), st.integers(1, CAPACITY)), min_size=1)


@settings(max_examples=200, deadline=None)
@given(items, st.integers(1, 40))
def test_every_item_lies_in_one_bin_and_no_bin_overflows(
    sizes: list[tuple[int, int]], window: int
) -> None:
    first, second = np.array(sizes, np.int64).T
    for bins in (
        best_fit_decreasing(first, second, CAPACITY),
        pack_in_windows(first, second, CAPACITY, window),
    ):
        assert bins.shape == first.shape
        assert set(bins) == set(range(bins.max() + 1))  # numbered without gaps, none missing
        for size in (first, second):
            assert np.bincount(bins, weights=size).max() <= CAPACITY


@settings(max_examples=100, deadline=None)
@given(items)
def test_no_two_bins_could_be_one(sizes: list[tuple[int, int]]) -> None:
    """A bin is opened only for an item that fits nowhere, up to the bounded look-around."""
    first, second = np.array(sizes, np.int64).T
    bins = best_fit_decreasing(first, second, CAPACITY)
    fill = np.maximum(np.bincount(bins, weights=first), np.bincount(bins, weights=second))
    assert (np.sort(fill)[:-1] * 2 > CAPACITY).sum() >= len(fill) - 1 - 16


def test_exact_fits_are_found() -> None:
    sizes = np.array([600, 400, 700, 300, 500, 500], np.int64)
    bins = best_fit_decreasing(sizes, np.ones(6, np.int64), CAPACITY)
    assert bins[0] == bins[1]
    assert bins[2] == bins[3]
    assert bins[4] == bins[5]


def test_the_other_size_decides_when_it_is_short() -> None:
    first, second = np.array([500, 500, 400], np.int64), np.array([900, 200, 300], np.int64)
    bins = best_fit_decreasing(first, second, CAPACITY)
    assert bins[1] == bins[2] != bins[0]


def test_badly_filled_bins_are_tried_again_but_not_for_ever() -> None:
    # Halves of 600 never pair; with 400s in the next window they do.
    first = np.array([600] * 10 + [400] * 10, np.int64)
    assert pack_in_windows(first, first, CAPACITY, 10).max() + 1 == 10
    lonely = np.full(1_000, 600, np.int64)
    assert pack_in_windows(lonely, lonely, CAPACITY, 10).max() + 1 == 1_000


@pytest.mark.parametrize("kind", ["equal", "lonely", "tiny", "opposed"])
def test_no_input_makes_it_quadratic(kind: str) -> None:
    def run(n: int) -> float:
        rng = np.random.default_rng(0)
        first = {
            "equal": np.full(n, 50, np.int64),
            "lonely": np.full(n, 600, np.int64),
            "tiny": rng.integers(1, 3, n),
            "opposed": rng.integers(1, 900, n),
        }[kind]
        second = 901 - first if kind == "opposed" else first
        start = time.process_time()
        pack_in_windows(first, second, CAPACITY, 1_024)
        return time.process_time() - start

    short, long = (min(run(n) for _ in range(3)) for n in (8_000, 32_000))
    assert long < 8 * max(short, 0.01)  # linear is 4, quadratic 16
