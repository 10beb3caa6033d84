"""Bounds on the number of packs, against the best packing of few items and against formulas."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.lower_bound import BesideDear, lower_bound, martello_toth
from packing.strategies import Packing


def fewest_bins(sizes: list[int], capacity: int) -> int:
    """By trying every bin for every item."""

    def place(left: list[int], rooms: tuple[int, ...], best: int) -> int:
        if len(rooms) >= best or not left:
            return min(len(rooms), best)
        for i, room in enumerate(rooms):
            if room >= left[0]:
                best = place(left[1:], (*rooms[:i], room - left[0], *rooms[i + 1 :]), best)
        return place(left[1:], (*rooms, capacity - left[0]), best)

    return place(sorted(sizes, reverse=True), (), len(sizes))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=7), st.sampled_from([20, 21]))
def test_the_bound_is_between_the_sum_and_the_best_packing(sizes: list[int], capacity: int) -> None:
    bound = martello_toth(np.array(sizes, np.int64), capacity)
    assert math.ceil(sum(sizes) / capacity) <= bound <= max(fewest_bins(sizes, capacity), 0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=40), st.integers(30, 41))
def test_the_bound_is_that_of_the_definition(sizes: list[int], capacity: int) -> None:
    found = []
    for k in range(capacity // 2 + 1):
        alone = [w for w in sizes if w > capacity - k]
        large = [w for w in sizes if capacity / 2 < w <= capacity - k]
        small = [w for w in sizes if k <= w <= capacity / 2]
        beside = sum(small) - (len(large) * capacity - sum(large))
        found.append(len(alone) + len(large) + max(0, math.ceil(beside / capacity)))
    assert martello_toth(np.array(sizes, np.int64), capacity) == max(found)


def fewest_packs(items: list[tuple[int, int]], cap: int, budget: int) -> int:
    """By trying every pack for every document of (tokens, cost)."""

    def place(left: list[tuple[int, int]], rooms: tuple[tuple[int, int], ...], best: int) -> int:
        if len(rooms) >= best or not left:
            return min(len(rooms), best)
        (t, c), rest = left[0], left[1:]
        for i, (a, b) in enumerate(rooms):
            if a >= t and b >= c:
                best = place(rest, (*rooms[:i], (a - t, b - c), *rooms[i + 1 :]), best)
        return place(rest, (*rooms, (cap - t, budget - c)), best)

    return place(sorted(items, reverse=True), (), len(items))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=7))
def test_no_packing_of_both_sizes_beats_the_bound(items: list[tuple[int, int]]) -> None:
    packing = Packing(tokens_per_pack=20, token_slack=1.0)
    tokens, costs = np.array(items, np.int64).T
    bound = lower_bound(tokens, costs.astype(float), packing, 20.0)
    assert bound <= fewest_packs(items, 20, 20)
    beside = BesideDear()
    for i in range(len(items)):
        beside.add(tokens[i : i + 1], costs[i : i + 1].astype(float), packing, 20.0)
    assert math.ceil(tokens.sum() / 20) <= beside.bound <= bound


def test_dear_documents_waste_tokens_that_nothing_can_fill() -> None:
    packing = Packing(tokens_per_pack=100, token_slack=1.0)
    # Beside (50 tokens, cost 90) fit 10 tokens of cost 1 each, so 40 are wasted in ten packs.
    tokens = np.array([50] * 10 + [10] * 50)
    costs = np.array([90.0] * 10 + [10.0] * 50)
    assert lower_bound(tokens, costs, packing, 100.0) == 14  # 1,000 tokens, cost 1,400
    costs[10:] = 5.0
    assert lower_bound(tokens, costs, packing, 100.0) == 13
    assert lower_bound(tokens, np.full(60, 1.0), packing, 100.0) == 10


def test_memory_follows_the_items_and_not_the_capacity() -> None:
    sizes = np.array([7, 7, 4, 4]) * 10**12
    tracemalloc.start()
    assert martello_toth(sizes, 10**13) == 3
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_items_that_share_no_bin_need_one_each() -> None:
    assert martello_toth(np.array([6, 6, 6, 6]), 10) == 4  # the sum alone says 3
    assert martello_toth(np.array([7, 7, 4, 4]), 10) == 3  # no 4 fits beside a 7


@pytest.mark.parametrize(("strategy", "bound"), [("fixed_compute", 4), ("fixed_length", 2)])
def test_the_tighter_limit_decides(strategy: str, bound: int) -> None:
    packing = Packing(strategy, tokens_per_pack=100, token_slack=1.0)  # type: ignore[arg-type]
    tokens, costs = np.full(4, 40), np.full(4, 6.0)
    assert lower_bound(tokens, costs, packing, budget=10.0) == bound
    assert lower_bound(tokens, costs, packing) == 2
    assert lower_bound(tokens[:0], costs[:0], packing, 10.0) == 0


def test_a_batch_takes_no_more_than_its_size() -> None:
    packing = Packing("batch_padding", tokens_per_pack=1000, batch_size=3)
    assert lower_bound(np.full(7, 40), np.ones(7), packing) == 3
