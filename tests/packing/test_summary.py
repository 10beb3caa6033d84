"""What a streamed plan comes to, against the same sums over the whole plan at once."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing import summary
from packing.plan import MANIFEST, PLAN, Packing, Strategy, plan, plan_windows
from packing.summary import Summary

STRATEGIES: list[Strategy] = ["fixed_compute", "fixed_length", "batch_padding"]


def rows_of(amounts: np.ndarray) -> pa.Table:
    """Packs of one document of each component that they hold: [packs, components] tokens."""
    pack, component = np.nonzero(amounts)
    n = len(pack)
    known = {
        "component": component,
        "num_tokens": amounts[pack, component],
        "cost": amounts[pack, component].astype(float),
        "pack": pack,
    }
    columns = [
        pa.array(known[field.name]).cast(field.type)
        if field.name in known
        else pa.nulls(n, field.type)
        for field in PLAN
    ]
    return pa.Table.from_arrays(columns, schema=PLAN)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 150), st.floats(0.5, 3.0)), max_size=60),
    st.builds(
        Packing,
        strategy=st.sampled_from(STRATEGIES),
        tokens_per_pack=st.integers(50, 200),
        token_slack=st.sampled_from([1.0, 1.25]),
        batch_size=st.integers(1, 5),
        window=st.integers(1, 50),
    ),
)
def test_sums_are_those_of_the_plan(rows: list[tuple[int, float]], packing: Packing) -> None:
    names = [f"d{i}" for i in range(len(rows))]
    tokens = np.array([t for t, _ in rows], np.int64)
    made = plan(names, tokens, tokens * np.array([c for _, c in rows]), packing)
    table = made.to_table(names)
    found = Summary(packing, made.budget)
    # Tables end between packs, wherever that is.
    ends = np.flatnonzero(np.diff(made.pack, append=-2)) + 1
    for start, stop in zip([0, *ends[:-1]], ends, strict=False):
        found.add(table.slice(start, stop - start))
    assert (found.num_packs, found.rejected) == (made.num_packs, made.rejected())
    assert found.num_documents == (made.pack >= 0).sum()
    assert found.num_tokens == made.pack_tokens.sum() == found.tokens.sum()
    assert found.imbalance == pytest.approx(made.imbalance)
    assert found.token_fill == pytest.approx(made.token_fill)
    assert found.lower_bound <= made.lower_bound <= made.num_packs
    assert found.lower_bound >= made.lower_bound - 1
    assert found.mixture.tolist() == [1.0] * bool(made.num_packs) + [0.0] * (not made.num_packs)
    assert found.deviation.tolist() == [0.0]


def test_sizes_beyond_the_levels_are_rounded_down() -> None:
    draw = np.random.default_rng(0)
    cap = 40 * summary.LEVELS
    tokens = draw.integers(1, cap + 1, 20_000)
    for packing in (Packing("fixed_length", cap), Packing(tokens_per_pack=cap, token_slack=1.0)):
        names = [f"d{i}" for i in range(len(tokens))]
        costs = tokens * draw.uniform(0.9, 1.0, len(tokens))
        made = plan(names, tokens, costs, packing)
        found = Summary(packing, made.budget)
        found.add(made.to_table(names))
        assert 0.9999 * made.lower_bound <= found.lower_bound <= made.lower_bound


def test_deviation_is_the_worst_stretch_in_the_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    shares = np.array([0.6, 0.3, 0.1])
    amounts = draw.multinomial(1_000, shares, 3_000)
    amounts[1_000:1_050, 0] += 300
    table = rows_of(amounts)
    monkeypatch.setattr(summary, "MIN_STRETCH", 40)
    runs = np.stack([amounts[i : i + 40].sum(axis=0) for i in range(2_961)])
    expected = np.abs(runs / runs.sum(axis=1, keepdims=True) - shares).max(axis=0)

    def deviation(relative: np.ndarray) -> np.ndarray:
        found = Summary(Packing(), 1e9, relative.tolist())
        for start in range(0, 3_000, 17):
            pack = table["pack"].to_numpy()
            found.add(table.filter(pa.array((pack >= start) & (pack < start + 17))))
        assert found.tokens.tolist() == amounts.sum(axis=0).tolist()
        assert found.mixture == pytest.approx(amounts.sum(axis=0) / amounts.sum())
        return found.deviation

    assert deviation(7 * shares) == pytest.approx(expected)
    # Of fewer, longer stretches it is the same to within their length.
    monkeypatch.setattr(summary, "MAX_STRETCHES", 512)
    assert deviation(shares) == pytest.approx(expected, rel=0.25)


def test_packs_come_once_and_in_order() -> None:
    table = rows_of(np.array([[10], [20], [30]]))
    found = Summary(Packing(), 1e9)
    found.add(table.slice(0, 1))
    for wrong in (table.slice(0, 1), table.slice(2)):
        with pytest.raises(ValueError, match="follow 1 packs"):
            found.add(wrong)
    found.add(table.slice(1))
    assert found.num_packs == 3


def test_what_windows_leave_over_hardly_moves_the_mixture() -> None:
    # No pack of the longer documents is full, so that all would be tried again.
    n = 40_000
    draw = np.random.default_rng(0)
    component = np.tile([0, 0, 0, 1], n // 4)
    tokens = np.where(component == 0, 100, draw.integers(250, 350, n))
    known = {"component": component, "num_tokens": tokens, "cost": tokens.astype(float)}
    columns = [
        pa.array(known[field.name]).cast(field.type)
        if field.name in known
        else pa.nulls(n, field.type)
        for field in MANIFEST
    ]
    table = pa.Table.from_arrays(columns, schema=MANIFEST)
    packing = Packing("fixed_length", tokens_per_pack=2_000, window=16_000)
    found = Summary(packing, float("inf"), (1, 1))
    for part in plan_windows([table], packing, float("inf")):
        found.add(part)
    assert found.deviation.max() < 0.05  # of so few packs; 0.48 if all were
