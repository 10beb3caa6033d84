"""Groups of shards and routes: bounds held, and every row of the plan on its way once."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.runs import Part, TableRecord
from infra.storage import Storage
from packing.plan import PLAN
from pipelines import shard_groups
from pipelines.shard_groups import SLICE, cut_groups, plan_groups, read_routes, write_routes

here = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(shard_groups, "PLAN_FILES_PER_ROUTE", 2)


def write_plan(storage: Storage, rows: list[dict[str, int]], per_file: int) -> list[str]:
    files = []
    for start in range(0, len(rows), per_file):
        numbered = [row | {"row": start + i} for i, row in enumerate(rows[start:][:per_file])]
        files.append(f"plan/{start:06d}.parquet")
        storage.write_part(files[-1], pa.Table.from_pylist(numbered, schema=PLAN), PLAN, "row")
    return files


@here
@given(
    tokens=st.lists(st.integers(1, 5_000), min_size=1, max_size=40),
    per_shard=st.integers(1, 5),
    limit=st.integers(1, 100_000),
    least=st.integers(1, 50),
)
def test_groups_end_at_shards_and_are_no_larger_than_asked(
    tmp_path: Path, tokens: list[int], per_shard: int, limit: int, least: int
) -> None:
    storage = Storage(str(tmp_path))
    rejected = {"num_tokens": 10**9}
    plan = write_plan(
        storage, [{"pack": i, "num_tokens": n} for i, n in enumerate(tokens)] + [rejected], 7
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_groups, "GROUP_BYTES", limit)
        patch.setattr(shard_groups, "MIN_GROUPS", least)
        groups = plan_groups(storage, plan, len(tokens), per_shard, 64)
    starts = groups.starts.tolist()
    assert starts[0] == 0
    assert starts[-1] == len(tokens)
    assert len(groups) == len(starts) - 1
    shards = [tokens[i : i + per_shard] for i in range(0, len(tokens), per_shard)]
    weights = [sum(4 * n + 256 for n in shard) for shard in shards]
    assert len(groups) >= min(least, len(shards)) / 2
    bound = min(limit, sum(weights) // least)
    edges = [start // per_shard for start in starts[:-1]] + [len(shards)]
    for start, first, end in zip(starts, edges, edges[1:], strict=False):
        assert start % per_shard == 0
        assert first < end
        assert end == first + 1 or sum(weights[first:end]) <= bound


def test_every_row_is_routed_to_the_part_of_its_replica(tmp_path: Path) -> None:
    storage, rng = Storage(str(tmp_path)), np.random.default_rng(0)
    num_parts, num_replicas = (3, 2), (1, 3)
    tables = [
        [
            TableRecord(f"{c}-{r}", "", "", "doc_id", (Part("p", 9),) * num_parts[c])
            for r in range(num_replicas[c])
        ]
        for c in range(2)
    ]
    rows, expected = [], {}
    for i in range(200):
        component, copy = int(rng.integers(2)), int(rng.integers(7))
        part = int(rng.integers(num_parts[component]))
        row = {"component": component, "copy": copy, "part": part, "token_row": i}
        row |= {"num_segments": 2, "first_segment": 1, "num_tokens": 5}
        if i % 10:
            row |= {"pack": i // 4, "position": i % 4}
            number = part + (3 + 2 * (copy % 3) if component else 0)
            expected.setdefault(number, []).append(i)
        rows.append(row)
    plan = write_plan(storage, rows, 30)
    for _ in range(2):
        num_routes = write_routes(storage, "shuffle", plan, tables)
        assert num_routes == 4
    for number in range(9):
        found = read_routes(storage, "shuffle", number, num_routes)
        assert found is not None
        assert found["token_row"].to_pylist() == expected[number]
        for row in found.to_pylist():
            assert {name: row[name] for name in SLICE} == {
                name: rows[row["token_row"]][name] for name in SLICE
            }
    storage.remove("shuffle/routes/000001")
    before = storage.find("shuffle")
    write_routes(storage, "shuffle", plan, tables)
    assert set(before) < set(storage.find("shuffle"))


def test_a_part_that_nothing_is_packed_of_has_no_rows(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    table = TableRecord("t", "", "", "doc_id", (Part("p", 9),) * 2)
    row = {"component": 0, "copy": 0, "part": 1, "token_row": 0, "pack": 0, "position": 0}
    rejected = {"component": 0, "copy": 0, "part": 0, "token_row": 0}
    plan = write_plan(storage, [row, rejected, rejected], 1)
    assert write_routes(storage, "shuffle", plan, [[table]]) == 2
    assert read_routes(storage, "shuffle", 0, 2) is None
    assert read_routes(storage, "shuffle", 1, 2) is not None


@given(st.lists(st.integers(0, 9)))
def test_rows_are_cut_at_their_groups(groups: list[int]) -> None:
    groups.sort()
    rows = pa.table({"n": np.arange(len(groups))})
    cut = cut_groups(rows, np.array(groups, np.int64))
    assert {g: table["n"].to_pylist() for g, table in cut.items()} == {
        g: [i for i, other in enumerate(groups) if other == g] for g in set(groups)
    }
