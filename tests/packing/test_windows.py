"""Packing a stream: as in memory, for any cut into batches, nothing lost, mixture even."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.order import order_keys
from packing.plan import MANIFEST, REASONS, Packing, Strategy, plan, plan_windows

STRATEGIES: list[Strategy] = ["fixed_compute", "fixed_length", "batch_padding"]
Row = tuple[int, float, int, int]  # tokens, cost per token, component, reason

documents = st.lists(
    st.tuples(
        st.integers(1, 150),
        st.floats(0.5, 3.0),
        st.integers(0, 2),
        st.sampled_from([0, 0, 0, 0, 1, 2]),
    ),
    max_size=60,
)
packings = st.builds(
    Packing,
    strategy=st.sampled_from(STRATEGIES),
    tokens_per_pack=st.integers(50, 200),
    token_slack=st.sampled_from([1.0, 1.25]),
    batch_size=st.integers(1, 5),
    window=st.integers(1, 50),
)


def manifest(rows: list[Row]) -> pa.Table:
    """Documents d0, d1, ... with a column more than a manifest has."""
    n = len(rows)
    known = {
        "component": [row[2] for row in rows],
        "doc_id": [f"d{i}" for i in range(n)],
        "num_tokens": [row[0] for row in rows],
        "cost": [row[0] * row[1] for row in rows],
        "reason": [REASONS[row[3]] or None for row in rows],
    }
    columns = [pa.array(known.get(field.name, [0] * n), field.type) for field in MANIFEST]
    table = pa.Table.from_arrays(columns, schema=MANIFEST)
    return table.append_column("extra", pa.array(range(n), pa.int64()))


def cut(table: pa.Table, ends: list[int]) -> list[pa.Table]:
    ends = sorted(min(end, len(table)) for end in ends)
    return [
        table.slice(start, stop - start)
        for start, stop in zip([0, *ends], [*ends, len(table)], strict=True)
    ]


def planned(batches: list[pa.Table], packing: Packing, budget: float) -> tuple[pa.Table, pa.Table]:
    """What is packed and what is rejected."""
    tables = list(plan_windows(batches, packing, budget))
    empty = pa.schema([*MANIFEST, ("extra", pa.int64()), ("pack", pa.int64())]).append(
        pa.field("position", pa.int32())
    )
    assert all(table.schema.equals(empty) and len(table) for table in tables)
    # Tables do not cut packs, and hold rows of packs or rejected ones.
    packs = [set(table["pack"].to_pylist()) for table in tables]
    assert sum(len(one - {None}) for one in packs) == len(set().union(*packs) - {None})
    assert all(one == {None} or None not in one for one in packs)
    rows = pa.concat_tables([empty.empty_table(), *tables])
    inside = rows["pack"].is_valid()
    return rows.filter(inside), rows.filter(pa.compute.invert(inside))


@settings(max_examples=200, deadline=None)
@given(documents, packings, st.lists(st.integers(0, 60), max_size=8), st.floats(50, 300))
def test_each_row_is_in_one_pack_or_rejected_for_any_cut(
    rows: list[Row], packing: Packing, ends: list[int], budget: float
) -> None:
    table = manifest(rows)
    if packing.strategy != "fixed_compute":
        budget = float("inf")
    packed, rejected = planned([table], packing, budget)
    again = planned(cut(table, ends), packing, budget)
    assert packed.equals(again[0])
    assert rejected.equals(again[1])

    assert sorted(packed["extra"].to_pylist() + rejected["extra"].to_pylist()) == [
        *range(len(rows))
    ]
    assert rejected["extra"].to_pylist() == sorted(rejected["extra"].to_pylist())
    for row in rejected.to_pylist():
        tokens, _, _, given_ = rows[row["extra"]]
        by_size = "over_token_cap" if tokens > packing.token_cap else "over_budget"
        assert row["reason"] == (REASONS[given_] or by_size)
        assert given_ or tokens > packing.token_cap or row["cost"] > budget
    columns = [name for name in table.column_names if name != "reason"]
    for part in (packed, rejected):
        assert part.select(columns).equals(table.select(columns).take(part["extra"]))
    assert packed["reason"].null_count == len(packed)

    pack, position = packed["pack"].to_numpy(), packed["position"].to_numpy()
    for number in range(int(pack.max(initial=-1)) + 1):
        inside = np.flatnonzero(pack == number)
        tokens, cost, place = (
            packed[name].to_numpy()[inside] for name in ("num_tokens", "cost", "extra")
        )
        assert position[inside].tolist() == list(range(len(inside))) != []
        assert (np.diff(place) > 0).all()  # as they came
        padded = tokens.max() * len(tokens) if packing.strategy == "batch_padding" else tokens.sum()
        assert padded <= packing.token_cap
        assert cost.sum() <= budget * (1 + 1e-8)
    assert (np.diff(pack) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(documents, packings)
def test_one_component_is_planned_as_in_memory(rows: list[Row], packing: Packing) -> None:
    rows = [(tokens, cost, 0, 0) for tokens, cost, _, _ in rows]
    table = manifest(rows)
    names = table["doc_id"].to_pylist()
    in_memory = plan(names, table["num_tokens"], table["cost"], packing)
    zeros = np.zeros(len(rows), np.int64)
    keys = pa.array(order_keys(names, zeros, zeros, packing.seed), pa.uint64())
    table = table.set_column(2, MANIFEST.field("key"), keys).sort_by("key")
    packed, rejected = planned([table], packing, in_memory.budget)
    expected = in_memory.to_table(names)
    for name in ("doc_id", "pack", "position", "num_tokens", "cost"):
        found = packed[name].to_pylist() + rejected[name].to_pylist()
        assert found == expected[name].to_pylist()
    assert rejected["reason"].to_pylist() == expected["reason"].to_pylist()[len(packed) :]


def test_components_are_spread_evenly_over_packs() -> None:
    draw = np.random.default_rng(0)
    one = np.repeat([0, 1, 2], [3_500, 1_400, 100])  # of each window
    component = np.concatenate([draw.permutation(one) for _ in range(4)])
    tokens = np.choose(component, [draw.integers(10, 200, 20_000), 1_900, 7_000])
    pairs = zip(tokens.tolist(), component.tolist(), strict=True)
    table = manifest([(t, 1.0, c, 0) for t, c in pairs])
    packing = Packing("fixed_length", tokens_per_pack=10_000, window=5_000)
    packed, _ = planned([table], packing, float("inf"))
    pack, number = packed["pack"].to_numpy(), int(packed["pack"].to_numpy().max()) + 1
    cells = pack * 3 + packed["component"].to_numpy()
    amounts = np.bincount(cells, packed["num_tokens"].to_numpy(), 3 * number).reshape(-1, 3)
    whole = amounts.sum(axis=0) / amounts.sum()
    for start in range(0, number - 100, 50):
        run = amounts[start : start + 100].sum(axis=0)
        assert np.abs(run / run.sum() - whole).max() < 0.03


def test_memory_does_not_grow_with_the_stream() -> None:
    rows = manifest([(n, 1.0, n % 3, 0) for n in range(1, 2_001)])

    def peak(batches: int) -> int:
        before, most = pa.total_allocated_bytes(), 0
        packing = Packing("fixed_length", tokens_per_pack=5_000, window=2_000)
        for _ in plan_windows((rows for _ in range(batches)), packing, float("inf")):
            most = max(most, pa.total_allocated_bytes() - before)
        return most

    assert peak(40) < 1.5 * peak(8)


def test_nothing_to_pack_is_no_table() -> None:
    assert list(plan_windows([], Packing(), 1.0)) == []
    assert list(plan_windows([manifest([])], Packing(), 1.0)) == []


def test_rows_that_cost_nothing_are_named() -> None:
    with pytest.raises(ValueError, match="document d1 has 5 tokens and cost 0"):
        list(plan_windows([manifest([(5, 1.0, 0, 0), (5, 0.0, 0, 0)])], Packing(), 1.0))
