"""What each strategy does with a given order, on cases small enough to follow by hand."""

import math

import numpy as np
import pytest

from packing import strategies
from packing.strategies import Packing, assign, budget_of, default_budget, padded_tokens


def packs(tokens: list[int], costs: list[float], packing: Packing, budget: float) -> list[int]:
    return assign(np.array(tokens), np.array(costs), packing, budget).tolist()


def test_fixed_compute_obeys_both_limits() -> None:
    packing = Packing(tokens_per_pack=100, token_slack=1.2)
    assert packing.token_cap == 120
    # By cost 0 and 1 go together and 2 fits neither; by tokens 3 joins 2 only.
    assert packs([60, 60, 40, 80], [50.0, 50.0, 60.0, 40.0], packing, 100.0) == [0, 0, 1, 1]
    assert packs([80, 80, 40, 40], [10.0, 10.0, 10.0, 10.0], packing, 100.0) == [0, 1, 1, 0]


def test_fixed_length_ignores_cost_and_slack() -> None:
    packing = Packing("fixed_length", tokens_per_pack=100, token_slack=1.2)
    assert packing.token_cap == 100
    assert math.isinf(default_budget(np.array([50]), np.array([1.0]), packing))
    assert packs([70, 70, 30, 30], [1.0, 1.0, 1e9, 1e9], packing, math.inf) == [0, 1, 1, 0]
    numbers = (np.array([2, 2]), np.array([100, 90]), np.array([70, 60]))
    assert padded_tokens(packing, *numbers).tolist() == [100, 100]


def test_batch_padding_takes_documents_as_they_come() -> None:
    packing = Packing("batch_padding", tokens_per_pack=100, batch_size=3)
    # Three by number; then 40 + 30 + 30 would pad to 3 x 40.
    tokens = [10, 20, 30, 40, 30, 30, 100, 1]
    assert packs(tokens, [1.0] * 8, packing, math.inf) == [0, 0, 0, 1, 1, 2, 3, 4]
    numbers = (np.array([3, 2]), np.array([60, 70]), np.array([30, 40]))
    assert padded_tokens(packing, *numbers).tolist() == [90, 80]


def test_batches_do_not_depend_on_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    packing = Packing("batch_padding", tokens_per_pack=100, batch_size=3)
    tokens = np.random.default_rng(0).integers(1, 100, 200).tolist()
    whole = packs(tokens, [1.0] * 200, packing, math.inf)
    monkeypatch.setattr(strategies, "_SLICE", 7)
    assert packs(tokens, [1.0] * 200, packing, math.inf) == whole


def test_the_budget_needs_three_numbers_in_any_order() -> None:
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 5_000, 10_000)
    costs = tokens * draw.uniform(0.9, 1.4, 10_000) * 1e9
    packing = Packing(tokens_per_pack=4_000, token_slack=1.05)
    whole = default_budget(tokens, costs, packing)
    for _ in range(3):
        order = draw.permutation(10_000)
        assert default_budget(tokens[order], costs[order], packing) == whole
    mean, dearest = math.fsum(costs) / tokens.sum(), costs[tokens <= 4_200].max()
    assert budget_of(mean, dearest, packing) == whole
    assert budget_of(2.0, 7_000.0, packing) == 8_000.0
    assert budget_of(2.0, 8_100.0, packing) == 8_100.0
    assert budget_of(2.0, 9_000.0, packing) == 8_400.0
    assert math.isinf(budget_of(2.0, 9_000.0, Packing("fixed_length")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_slack": math.nan},
        {"token_slack": math.inf},
        {"token_slack": 1e9},
        {"token_slack": 1e308},
        {"tokens_per_pack": 10**13},
        {"tokens_per_pack": 10**400},
        {"tokens_per_pack": 2**31 - 1},
        {"strategy": "fixed_length", "tokens_per_pack": 2**31},
        {"seed": 2**63},
        {"seed": -(2**63) - 1},
    ],
)
def test_numbers_that_no_integer_can_count_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        Packing(**wrong)


def test_the_largest_packs_are_packed() -> None:
    most = 2**31 - 1
    for packing in (Packing("fixed_length", most), Packing("fixed_compute", most, 1.0)):
        assert packing.token_cap == most
        assert packs([most, most // 2, most // 2], [2.0, 1.0, 1.0], packing, 2.0) == [0, 1, 1]


def test_as_many_as_fill_a_pack_exactly_fit() -> None:
    packing = Packing(tokens_per_pack=20_480, token_slack=1.0)
    for parts in (3, 5, 7, 10):
        tokens, costs = [20_480 // parts] * parts, [1.0 / parts] * parts
        assert packs(tokens, costs, packing, 1.0) == [0] * parts
