"""Plans: nothing lost, doubled or over a limit; decided by ids and seed alone."""

import hashlib
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.plan import PLAN, REASONS, Packing, Plan, Strategy, plan

STRATEGIES: list[Strategy] = ["fixed_compute", "fixed_length", "batch_padding"]


def ids(n: int) -> list[str]:
    return [hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest() for i in range(n)]


def mixture(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and a cost with a quadratic part, as of captioned images, text and long documents."""
    rng = np.random.default_rng(seed)
    text = rng.lognormal(5.3, 1.0, n).clip(8, 4_000).astype(int)
    kind = rng.choice(3, n, p=[0.75, 0.23, 0.02])
    image = rng.integers(3_419, 3_790, n)
    tokens = np.choose(kind, [text, image, 4 * image])
    return tokens, tokens * 71_040.0 + tokens.astype(float) ** 2


documents = st.lists(
    st.tuples(st.integers(1, 150), st.floats(0.5, 3.0), st.integers(0, 3)), max_size=60
)
packings = st.builds(
    Packing,
    strategy=st.sampled_from(STRATEGIES),
    tokens_per_pack=st.integers(50, 200),
    token_slack=st.sampled_from([1.0, 1.1, 1.25]),
    batch_size=st.integers(1, 5),
    window=st.integers(1, 50),
    seed=st.integers(0, 3),
)


@settings(max_examples=200, deadline=None)
@given(documents, packings)
def test_each_copy_is_in_one_pack_or_rejected_with_a_reason(
    rows: list[tuple[int, float, int]], packing: Packing
) -> None:
    tokens = np.array([t for t, _, _ in rows], np.int64)
    cost = tokens * np.array([c for _, c, _ in rows])
    copies = np.array([n for _, _, n in rows], np.int64)
    p = plan(ids(len(rows)), tokens, cost, packing, copies=copies)

    found = sorted(zip(p.document.tolist(), p.copy.tolist(), strict=True))
    assert found == [(d, c) for d, n in enumerate(copies.tolist()) for c in range(n)]
    rejected = p.pack < 0
    assert np.array_equal(rejected, p.reason > 0)
    assert np.array_equal(
        rejected, (tokens > packing.token_cap)[p.document] | (cost > p.budget)[p.document]
    )
    assert np.array_equal(p.num_tokens, tokens[p.document])

    assert (p.pack_padded_tokens <= packing.token_cap).all()
    assert (p.pack_cost <= p.budget * (1 + 1e-8)).all()
    assert (p.pack_tokens <= p.pack_padded_tokens).all()
    assert p.num_packs >= p.lower_bound
    for pack in range(p.num_packs):
        inside = p.pack == pack
        assert p.position[inside].tolist() == list(range(inside.sum()))
        assert p.pack_documents[pack] == inside.sum() > 0
        assert p.pack_tokens[pack] == p.num_tokens[inside].sum()
        assert p.pack_cost[pack] == pytest.approx(p.cost[inside].sum())
    assert p.pack.max(initial=-1) == p.num_packs - 1
    table = p.to_table(ids(len(rows)))
    assert table.schema.equals(PLAN)
    assert table["reason"].null_count == (~rejected).sum()
    assert sum(p.rejected().values()) == rejected.sum() == table["pack"].null_count


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_plan_depends_on_ids_and_seed_not_on_order(strategy: Strategy) -> None:
    tokens, cost = mixture(2_000)
    names = np.array(ids(2_000))
    packing = Packing(strategy, window=500, seed=3)

    def rows(p: Plan, names: np.ndarray) -> list[dict[str, object]]:
        return p.to_table(names.tolist()).to_pylist()

    expected = rows(plan(names.tolist(), tokens, cost, packing), names)
    order = np.random.default_rng(0).permutation(2_000)
    shuffled = names[order]
    again = plan(shuffled.tolist(), tokens[order], cost[order], packing)
    assert rows(again, shuffled) == expected
    other = plan(names.tolist(), tokens, cost, Packing(strategy, window=500, seed=4))
    assert rows(other, names) != expected


def test_fixed_compute_balances_cost_and_fills_its_packs() -> None:
    tokens, cost = mixture(30_000)
    p = plan(ids(30_000), tokens, cost, Packing(window=8_192))
    assert p.imbalance < 1.01
    assert p.num_packs <= 1.005 * p.lower_bound
    length = plan(ids(30_000), tokens, cost, Packing("fixed_length", window=8_192))
    assert length.num_packs <= 1.005 * length.lower_bound
    assert length.imbalance > 1.05 > p.imbalance
    padding = plan(ids(30_000), tokens, cost, Packing("batch_padding"))
    assert padding.token_fill < 0.6 < 0.99 < length.token_fill


def test_the_order_of_packs_and_documents_says_nothing_of_size() -> None:
    tokens, cost = mixture(30_000)
    p = plan(ids(30_000), tokens, cost, Packing(window=8_192))
    place = np.arange(p.num_packs)
    assert abs(np.corrcoef(place, p.pack_documents)[0, 1]) < 0.1
    inside = p.pack >= 0
    place_in_pack = p.position[inside] / p.pack_documents[p.pack[inside]]
    assert abs(np.corrcoef(place_in_pack, p.num_tokens[inside])[0, 1]) < 0.1


def test_over_size_documents_are_named_by_their_reason() -> None:
    packing = Packing(tokens_per_pack=100, token_slack=1.25)
    tokens, cost = [10, 126, 100, 125], [10.0, 126.0, 100.1, 99.0]
    p = plan(ids(4), tokens, cost, packing, budget=100.0)
    reasons = {int(d): REASONS[r] for d, r in zip(p.document, p.reason, strict=True)}
    assert reasons == {0: "", 1: "over_token_cap", 2: "over_budget", 3: ""}
    assert p.rejected() == {"over_token_cap": 1, "over_budget": 1}
    assert math.isinf(plan(ids(4), tokens, cost, Packing("fixed_length")).budget)


def test_the_default_budget_holds_the_dearest_document_within_the_slack() -> None:
    tokens, cost = np.full(1_000, 10), np.full(1_000, 10.0)
    packing = Packing(tokens_per_pack=100, token_slack=1.25)
    assert plan(ids(1_000), tokens, cost, packing).budget == 100.0
    tokens[7], cost[7] = 100, 110.0
    p = plan(ids(1_000), tokens, cost, packing)
    assert (p.budget, p.rejected()) == (110.0, {})
    cost[7] = 150.0
    p = plan(ids(1_000), tokens, cost, packing)
    assert p.budget == pytest.approx(1.25 * 100, rel=0.01)
    assert p.rejected() == {"over_budget": 1}


def test_nothing_to_pack_is_an_empty_plan() -> None:
    for strategy in STRATEGIES:
        p = plan([], [], [], Packing(strategy))
        assert (p.num_packs, p.lower_bound, p.imbalance, p.token_fill) == (0, 0, 1.0, 1.0)
        everything_out = plan(["a"], [10**6], [1.0], Packing(strategy))
        assert everything_out.num_packs == 0
        assert everything_out.rejected() == {"over_token_cap": 1}


def test_mistakes_name_the_document_or_the_value() -> None:
    with pytest.raises(ValueError, match="document b is given more than once"):
        plan(["a", "b", "b"], [1, 1, 1], [1.0, 1.0, 1.0], Packing())
    with pytest.raises(ValueError, match="document b has 0 tokens"):
        plan(["a", "b"], [1, 0], [1.0, 1.0], Packing())
    with pytest.raises(ValueError, match="2 ids, 1 token counts"):
        plan(["a", "b"], [1], [1.0], Packing())
    with pytest.raises(ValueError, match=r"token_slack is 0\.9"):
        Packing(token_slack=0.9)
    with pytest.raises(ValueError, match="window is 0"):
        Packing(window=0)
    with pytest.raises(ValueError, match="tokens_per_pack is 0"):
        Packing(tokens_per_pack=0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(max_size=40).filter(lambda t: "\0" not in t), min_size=1, unique=True),
    st.integers(-3, 3),
    st.randoms(use_true_random=False),
)
def test_ids_may_be_any_texts(names: list[str], seed: int, draw: random.Random) -> None:
    names = [name for name in names if name.isascii() or name.isprintable()]
    packing = Packing(tokens_per_pack=5, seed=seed)
    shuffled = draw.sample(names, len(names))

    def order(given: list[str]) -> list[str]:
        return (
            plan(given, [1] * len(given), [1.0] * len(given), packing)
            .to_table(given)["doc_id"]
            .to_pylist()
        )

    assert order(shuffled) == order(names)
    if names:
        with pytest.raises(ValueError, match="more than once"):
            plan([*names, names[0]], [1] * (len(names) + 1), [1.0] * (len(names) + 1), packing)


def test_the_permutation_is_fair() -> None:
    n = 20_000
    place = {name: i for i, name in enumerate(plan_order(ids(n), seed=5))}
    first = np.array([place[name] for name in ids(n)[: n // 2]])
    # Half of the ids fall anywhere: the mean place is that of a uniform draw, to 4 sigma.
    assert abs(first.mean() - n / 2) < 4 * n / math.sqrt(12 * n // 2)
    assert np.bincount(first * 16 // n, minlength=16).min() > n / 32 * 0.85


def plan_order(names: list[str], seed: int) -> list[str]:
    one = Packing("batch_padding", batch_size=1, seed=seed)
    made = plan(names, [1] * len(names), [1.0] * len(names), one)
    return [names[i] for i in made.document.tolist()]
