"""Steps wait for their dearest rank: the simulator against loops, bounds and worked examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.cost import Coefficients
from packing.plan import Packing, plan
from packing.simulate import executed_cost, simulate

costs_of_packs = st.lists(st.floats(0.1, 10), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(costs_of_packs, st.integers(1, 5), st.integers(1, 4))
def test_a_step_takes_as_long_as_its_dearest_rank(
    costs: list[float], ranks: int, micro_steps: int
) -> None:
    per_step = ranks * micro_steps
    steps = len(costs) // per_step
    if not steps:
        with pytest.raises(ValueError, match="fill no step"):
            simulate(costs, costs, costs, num_ranks=ranks, micro_steps=micro_steps)
        return
    tokens = np.arange(1, len(costs) + 1)
    loose, tight = (
        simulate(costs, tokens, tokens, num_ranks=ranks, micro_steps=micro_steps, barrier=barrier)
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
    bound = sum(costs[: steps * per_step]) / ranks
    assert loose.step_cost.sum() >= bound - 1e-6
    assert loose.num_dropped == len(costs) - steps * per_step
    assert loose.num_tokens == tokens[: steps * per_step].sum()


def test_padding_costs_what_the_strategy_pads() -> None:
    names = [f"{i:032x}" for i in range(4)]
    tokens, loss = [10, 4, 6, 4], [5, 2, 3, 2]
    pairs = [t * (t + 1) // 2 for t in tokens]
    of = Coefficients(per_token=1.0, per_pair=100.0, per_loss=10_000.0, per_pack=7.0)

    def total(packing: Packing) -> tuple[float, int]:
        made = plan(names, tokens, np.ones(4), packing, budget=4.0)
        costs = executed_cost(made, tokens, loss, pairs, of)
        return costs.sum() - 7.0 * made.num_packs, int(made.pack_padded_tokens.sum())

    head = 10_000 * sum(loss)
    assert total(Packing(tokens_per_pack=24)) == (24 + 100 * sum(pairs) + head, 24)
    fixed = Packing("fixed_length", tokens_per_pack=30)
    assert total(fixed) == (30 + 100 * sum(pairs) + head, 30)
    padded = Packing("batch_padding", tokens_per_pack=40, batch_size=4)
    assert total(padded) == (40 + 100 * 4 * 55 + head, 40)


def test_equal_packs_keep_every_rank_busy() -> None:
    even = simulate(np.ones(32), np.full(32, 5), np.full(32, 8), num_ranks=8, micro_steps=2)
    assert even.imbalance == 1.0
    assert even.fill == 5 / 8
    assert even.throughput == pytest.approx(5.0)
    assert even.most_tokens == 8
