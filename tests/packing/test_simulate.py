"""Steps wait for their dearest rank: the simulator against loops, bounds and worked examples."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.cost import Coefficients, cost
from packing.plan import Packing, plan
from packing.simulate import Lengths, Packed, pack_lengths, simulate, sum_packs, sum_plan
from packing.strategies import Strategy

TOKENS = Coefficients(per_token=1.0, per_pair=0.0, per_loss=0.0)
STRATEGIES: list[Strategy] = ["fixed_compute", "fixed_length", "batch_padding"]


def lengths(num_tokens: list[int]) -> Lengths:
    """Causal texts, all predicted."""
    tokens = np.array(num_tokens, np.int64)
    return Lengths(tokens, tokens - 1, tokens * (tokens + 1) // 2)


def packs(costs: list[float]) -> Packed:
    """Packs of these costs and of 1, 2, 3, ... tokens, without padding."""
    tokens = np.arange(1, len(costs) + 1)
    values = np.array(costs)
    return Packed(Packing(), 0, {}, tokens * 0 + 1, tokens, tokens, values, values, values)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=60), st.integers(1, 5), st.integers(1, 4))
def test_a_step_takes_as_long_as_its_dearest_rank(
    costs: list[float], ranks: int, micro_steps: int
) -> None:
    per_step = ranks * micro_steps
    steps = len(costs) // per_step
    if not steps:
        with pytest.raises(ValueError, match="fill no step"):
            simulate(packs(costs), num_ranks=ranks, micro_steps=micro_steps)
        return
    loose, tight = (
        simulate(packs(costs), num_ranks=ranks, micro_steps=micro_steps, barrier=barrier)
        for barrier in ("step", "micro_step")
    )
    for t in range(steps):
        dealt = {
            (m, r): costs[t * per_step + m * ranks + r]
            for m in range(micro_steps)
            for r in range(ranks)
        }
        by_rank = [sum(dealt[m, r] for m in range(micro_steps)) for r in range(ranks)]
        assert loose.step_cost[t] == pytest.approx(max(by_rank))
        waits = sum(max(dealt[m, r] for r in range(ranks)) for m in range(micro_steps))
        assert tight.step_cost[t] == pytest.approx(waits)
    # More barriers only wait longer, and no schedule beats ranks that never wait.
    assert (tight.step_cost >= loose.step_cost - 1e-9).all()
    assert tight.imbalance >= loose.imbalance - 1e-9 >= 1 - 2e-9
    assert loose.bound >= sum(costs[: steps * per_step]) / ranks - 1e-6
    assert loose.bound >= max(costs[: steps * per_step])
    assert loose.step_cost.sum() >= loose.bound - 1e-6
    assert 0 < tight.efficiency <= loose.efficiency + 1e-9 <= 1 + 2e-9
    assert sum(loose.shares) == pytest.approx(1)
    assert loose.shares[1] == pytest.approx(0, abs=1e-9)
    assert loose.shares[2] == pytest.approx(1 - 1 / loose.imbalance, abs=1e-9)
    assert loose.num_dropped == len(costs) - steps * per_step
    assert loose.num_tokens == sum(range(1, steps * per_step + 1))


def test_padding_costs_what_the_strategy_pads() -> None:
    names = [f"{i:032x}" for i in range(4)]
    tokens, loss = np.array([10, 4, 6, 4]), np.array([5, 2, 3, 2])
    pairs = tokens * (tokens + 1) // 2
    of = Coefficients(per_token=1.0, per_pair=100.0, per_loss=10_000.0, per_pack=7.0)

    def total(packing: Packing) -> tuple[float, int]:
        made = plan(names, tokens, np.ones(4), packing, budget=4.0)
        packed = sum_plan(made, Lengths(tokens, loss, pairs), of)
        assert np.array_equal(packed.padded_tokens, made.pack_padded_tokens)
        assert np.array_equal(packed.num_tokens, made.pack_tokens)
        alone = cost(tokens, loss, pairs, of)
        assert packed.document_cost.sum() == alone.sum()
        assert packed.dearest.max() == alone.max()
        return packed.cost.sum() - 7.0 * made.num_packs, int(made.pack_padded_tokens.sum())

    head, own = 10_000 * int(loss.sum()), 100 * int(pairs.sum())
    assert total(Packing(tokens_per_pack=24)) == (24 + own + head, 24)
    fixed = Packing("fixed_length", tokens_per_pack=30)
    assert total(fixed) == (30 + own + head, 30)
    padded = Packing("batch_padding", tokens_per_pack=40, batch_size=4)
    assert total(padded) == (40 + 100 * 4 * 55 + head, 40)


def test_equal_packs_keep_every_rank_busy() -> None:
    even = simulate(packs([2.0] * 32), num_ranks=8, micro_steps=2)
    assert even.imbalance == even.efficiency == 1.0
    assert even.throughput == pytest.approx(33 / 2 / 2.0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 150), min_size=1, max_size=60),
    st.builds(
        Packing,
        strategy=st.sampled_from(STRATEGIES),
        tokens_per_pack=st.integers(150, 300),
        token_slack=st.sampled_from([1.0, 1.25]),
        batch_size=st.integers(1, 5),
        window=st.integers(1, 50),
        seed=st.integers(0, 3),
    ),
)
def test_lengths_are_packed_as_a_plan_packs_documents(
    num_tokens: list[int], packing: Packing
) -> None:
    of = Coefficients(per_token=5.0, per_pair=1.0, per_loss=2.0)
    given_ = lengths(num_tokens)
    packed = pack_lengths(given_, packing, of)
    lost = sum(packed.left_out.values())
    assert packed.num_documents.sum() == len(num_tokens) - lost
    assert packed.lower_bound <= packed.num_packs
    assert packed.padded_tokens.max() <= packing.token_cap
    assert (packed.cost >= packed.document_cost - 1e-6).all()
    assert (packed.dearest <= packed.document_cost + 1e-6).all()
    if not lost:
        assert packed.num_tokens.sum() == sum(num_tokens)
        alone = cost(given_.num_tokens, given_.num_loss, given_.num_pairs, of)
        assert packed.document_cost.sum() == pytest.approx(math.fsum(alone))
    again = pack_lengths(given_, packing, of)
    assert np.array_equal(packed.cost, again.cost)


def test_documents_over_a_limit_are_left_out_and_counted() -> None:
    # The mean pack costs 100; 130 tokens are above 125, and the cap is 125 too.
    packed = pack_lengths(lengths([50] * 40 + [130]), Packing(tokens_per_pack=100), TOKENS)
    assert packed.left_out == {"over_token_cap": 1}
    assert packed.num_documents.sum() == 40
    costly = Lengths(np.full(41, 50), np.zeros(41, np.int64), np.array([1] * 40 + [10**6]))
    packed = pack_lengths(costly, Packing(tokens_per_pack=100), Coefficients(1.0, 1.0, 0.0))
    assert packed.left_out == {"over_budget": 1}
    with pytest.raises(ValueError, match="no document fits a pack of 10 tokens"):
        pack_lengths(lengths([50]), Packing("fixed_length", tokens_per_pack=10), TOKENS)


def test_sums_by_pack_are_those_of_the_documents() -> None:
    packed = sum_packs(
        np.array([1, 0, 1]), lengths([3, 5, 7]), Packing("fixed_length", 20), TOKENS, 1, {"a": 0}
    )
    assert packed.num_tokens.tolist() == [5, 10]
    assert packed.cost.tolist() == [20.0, 20.0]
    assert packed.document_cost.tolist() == packed.num_tokens.tolist()
    assert (packed.fill, packed.imbalance, packed.left_out) == (15 / 40, 1.0, {})
