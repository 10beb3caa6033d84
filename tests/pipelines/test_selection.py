"""What there is to pack: copies, sums and the budget, against Python over the rows."""

import hashlib
import math

import numpy as np
import pyarrow as pa
import pytest

from infra import catalog, runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.schema import DECISIONS, TOKENS
from infra.storage import Storage
from packing.cost import Coefficients, cost
from packing.plan import Packing
from packing.strategies import default_budget
from pipelines.pack_phase import PackComponent
from pipelines.replicas import COUNTS
from pipelines.selection import _repeated, budget_of, copies_of, select

OF = Coefficients(0.1234567890123456, 3e-5, 1.7)


def write(storage, table, rows, schema, key, per_part=17):
    bare, parts = pa.schema([field.remove_metadata() for field in schema]), []
    for number, start in enumerate(range(0, len(rows), per_part)):
        here = pa.Table.from_pylist(rows[start : start + per_part], schema=bare)
        storage.write_part(f"{table}/v/part-{number:05d}.parquet", here, schema, key)
        parts.append(Part(f"v/part-{number:05d}.parquet", len(here)))
    spec = hashlib.md5(table.encode()).hexdigest()
    record = TableRecord(table, spec, spec, key, tuple(parts))
    runs.save_record(storage, record)
    return record


def tokens_of(storage, rng, name="photos-256", size=60, samples=()):
    rows = [
        {
            "doc_id": f"{name}-{i:03d}",
            "task": "t2i" if rng.random() < 0.7 else "text",
            "sample_ids": rng.choice(samples, rng.integers(4)).tolist() if samples else [],
            "num_tokens": int(rng.integers(1, 400)),
            "num_loss": int(rng.integers(0, 300)),
            "num_pairs": int(rng.integers(400, 90_000)),
            "error": {"stage": "codes"} if rng.random() < 0.1 else None,
        }
        for i in range(size)
    ]
    return rows, write(storage, f"tokens/{name}", rows, TOKENS, "doc_id")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_stages", range(3))
@pytest.mark.parametrize("grouped_rows", [25, 1 << 21])
def test_copies_and_sums_are_those_of_the_rows(
    tmp_path, monkeypatch, seed, num_stages, grouped_rows
):
    """A document has the least of its samples' copies, these the product of their stages."""
    monkeypatch.setattr("pipelines.selection.GROUPED_ROWS", grouped_rows)
    storage, rng = Storage(str(tmp_path)), np.random.default_rng(seed)
    samples = [hashlib.md5(f"s{n}".encode()).hexdigest() for n in range(60)]
    rows, tokens = tokens_of(storage, rng, samples=samples)
    stages, records = [], []
    for name, share in (("decisions", 0.8), ("caption_decisions", 0.4))[:num_stages]:
        stage = {id_: int(rng.integers(4)) for id_ in samples if rng.random() < share}
        told = [{"sample_id": id_, "copies": n} for id_, n in stage.items()]
        records.append(write(storage, f"{name}/photos", told, DECISIONS, "sample_id"))
        stages.append(stage)
    packing = Packing(tokens_per_pack=300, token_slack=1.1)
    for tasks in ((), ("t2i",)):
        component = PackComponent("p", tokens, (), tuple(records), copies=3, tasks=tasks)
        due = [
            3
            * min(
                (math.prod(stage.get(id_, 1) for stage in stages) for id_ in row["sample_ids"]),
                default=1,
            )
            for row in rows
        ]
        fine = [row["error"] is None and row["task"] in (tasks or (row["task"],)) for row in rows]
        with catalog.connect(storage, views=False) as con:
            [totals] = select(con, storage, [component], packing, OF)
            parts = range(1, len(tokens.parts))
            found = copies_of(con, component, 0, parts)
        if num_stages:
            flat = np.concatenate(found)
            wanted = np.array(due[17:])
            assert flat[fine[17:]].tolist() == wanted[fine[17:]].tolist()
        else:
            assert found is None
        chosen = [(row, n) for row, n, is_fine in zip(rows, due, fine, strict=True) if is_fine]
        assert totals.num_documents == len(chosen)
        assert totals.most_copies == max(n for _, n in chosen)
        for name in COUNTS:
            assert getattr(totals, name) == sum(row[name] * n for row, n in chosen)
        repeated = [row for row, n in chosen for _ in range(n)]
        counts = [np.array([r[name] for r in repeated]) for name in COUNTS]
        costs = cost(*counts, OF)
        within = costs[counts[0] <= packing.token_cap]
        assert totals.dearest == within.max()
        mine = budget_of([component], [totals], packing, OF)
        assert math.isclose(mine, default_budget(counts[0], costs, packing), rel_tol=1e-12)


def test_the_budget_of_a_mixture_is_that_of_its_shares(tmp_path):
    storage, rng = Storage(str(tmp_path)), np.random.default_rng(0)
    components = [
        PackComponent(name, tokens_of(storage, rng, name, size)[1], share=share)
        for name, size, share in (("a-256", 50, 3.0), ("b-256", 20, 1.0))
    ]
    packing = Packing(tokens_per_pack=5_000, token_slack=1.5)
    with catalog.connect(storage, views=False) as con:
        a, b = select(con, storage, components, packing, OF)
    means = [float(cost(t.num_tokens, t.num_loss, t.num_pairs, OF)) / t.num_tokens for t in (a, b)]
    wanted = 5_000 * (0.75 * means[0] + 0.25 * means[1])
    assert math.isclose(budget_of(components, [a, b], packing, OF), wanted)
    assert budget_of(components, [a, b], Packing("fixed_length"), OF) == math.inf


@pytest.mark.parametrize("cut", [1, 2, 3, 100])
def test_repeated_values_are_found_over_the_ends_of_batches(cut):
    values = pa.array([1, 2, 2, 2, 5, 6, 6, 9], pa.uint64())
    batches = [
        pa.record_batch([values.slice(at, cut)], names=["h"]) for at in range(0, len(values), cut)
    ]
    assert sorted(set(_repeated(batches))) == [2, 6]


def test_an_id_that_is_there_twice_is_named_with_its_tables(tmp_path):
    storage, rng = Storage(str(tmp_path)), np.random.default_rng(0)
    rows, first = tokens_of(storage, rng, "a-256")
    repeated = next(row for row in rows if row["error"] is None and row["task"] == "text")
    other = write(storage, "tokens/b-256", [repeated], TOKENS, "doc_id")
    within = write(storage, "tokens/c-256", [repeated, repeated], TOKENS, "doc_id", 1)
    packing = Packing(tokens_per_pack=300)

    def refused(*components):
        with (
            catalog.connect(storage, views=False) as con,
            pytest.raises(ConfigError, match=f"document {repeated['doc_id']} is in") as told,
        ):
            select(con, storage, components, packing, OF)
        assert "\n" not in str(told.value)
        return str(told.value)

    assert "tokens/a-256 and again in tokens/b-256" in refused(
        PackComponent("a", first), PackComponent("b", other)
    )
    assert "tokens/c-256 and again in tokens/c-256" in refused(PackComponent("c", within))
    # The same table in parts that have no document in common.
    halves = [PackComponent(task, first, tasks=(task,)) for task in ("t2i", "text")]
    with catalog.connect(storage, views=False) as con:
        totals = select(con, storage, halves, packing, OF)
    assert sum(one.num_documents for one in totals) == sum(row["error"] is None for row in rows)


def test_nothing_to_pack_is_told_with_the_task(tmp_path):
    storage, rng = Storage(str(tmp_path)), np.random.default_rng(0)
    _, tokens = tokens_of(storage, rng)
    with catalog.connect(storage, views=False) as con:
        component = PackComponent("p", tokens, tasks=("edit", "i2t"))
        with pytest.raises(ConfigError, match=r"holds no document of task edit or i2t to pack"):
            select(con, storage, [component], Packing(tokens_per_pack=9), OF)
