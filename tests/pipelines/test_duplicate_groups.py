"""Groups against a plain reading of the rule, one row after the other."""

import random
import time
from collections.abc import Iterable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.schema import DUPLICATES
from infra.storage import Storage
from pipelines import duplicate_groups
from pipelines.duplicate_groups import (
    gather,
    group_facts,
    group_part,
    link,
    mark_copies,
    open_database,
)

Row = tuple[str, int, float | None]  # sample_id, key, preference


def one_after_the_other(rows: Iterable[Row], near: set[tuple[int, int]]) -> dict[str, str]:
    """The group of every row: rows best first, each beside those that are kept so far."""
    groups: dict[str, str] = {}
    kept: list[Row] = []
    for row in sorted(rows, key=lambda r: (r[2] is None, -(r[2] or 0), r[0])):
        better = [k for k in kept if k[1] == row[1] or {(k[1], row[1]), (row[1], k[1])} & near]
        groups[row[0]] = better[0][0] if better else row[0]
        if not better:
            kept.append(row)
    return groups


def select(rows: list[Row]) -> str:
    values = ", ".join(
        f"('{id_}', {key}, {'NULL' if p is None else p}::DOUBLE)" for id_, key, p in rows
    )
    bare = "SELECT '' AS sample_id, 0 AS key, 0.0::DOUBLE AS p0 WHERE false"
    return f"FROM (VALUES {values}) AS t(sample_id, key, p0)" if rows else bare


def grouped(parts: list[list[Row]], near: set[tuple[int, int]]) -> list[pa.Table]:
    con = duckdb.connect()
    selects = [select(part) for part in parts]
    gather(con, selects, 1)
    con.execute("CREATE TABLE pairs (a INTEGER, b INTEGER)")
    for pair in sorted(near):
        con.execute("INSERT INTO pairs VALUES (?, ?)", list(pair))
    link(con, "FROM pairs")
    mark_copies(con)
    return [group_part(con, number, sql) for number, sql in enumerate(selects)]


@given(
    st.integers(0, 60),
    st.integers(1, 30),
    st.integers(0, 90),
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 5, 1000]),
)
@settings(max_examples=40, deadline=None)
def test_against_one_row_after_the_other(
    count: int, keys: int, pairs: int, seed: int, batch: int
) -> None:
    draw = random.Random(seed)
    rows = [(f"s{i:03d}", draw.randrange(keys), draw.choice([None, 1, 2, 3])) for i in range(count)]
    near = {(draw.randrange(keys), draw.randrange(keys)) for _ in range(pairs)}
    near = {(a, b) for a, b in near if a != b}
    near |= {(b, a) for a, b in near if draw.random() < 0.3}  # found under two keys
    expected = one_after_the_other(rows, near)
    draw.shuffle(rows)
    parts = [rows[: count // 3], rows[count // 3 :], []]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicate_groups, "BATCH_PAIRS", batch)
        tables = grouped(parts, near)
    for part, table in zip(parts, tables, strict=True):
        assert table.column_names == DUPLICATES.names
        told = {row["sample_id"]: row for row in table.to_pylist()}
        assert told.keys() == {id_ for id_, *_ in part}
        for id_, row in told.items():
            assert row["group"] == expected[id_]
            assert row["representative"] == (expected[id_] == id_)


def test_a_chain_is_not_one_group() -> None:
    """In a chain every second row is kept: each dropped one is near a kept one, no two kept are."""
    rows: list[Row] = [(f"s{i}", i, 10.0 - i) for i in range(6)]
    [table] = grouped([rows], {(i, i + 1) for i in range(5)})
    groups = {row["sample_id"]: row["group"] for row in table.to_pylist()}
    assert groups == {"s0": "s0", "s1": "s0", "s2": "s2", "s3": "s2", "s4": "s4", "s5": "s4"}


def test_long_chains_and_large_groups_are_linear() -> None:
    """What rounds over all pairs, or all pairs of a group, would take hours for."""
    count = 300_000
    con = duckdb.connect()
    chain = f"SELECT 'c' || i AS sample_id, i AS key, -i::DOUBLE AS p0 FROM range({count}) t(i)"
    equal = f"SELECT 'e' || i AS sample_id, -1 AS key, i::DOUBLE AS p0 FROM range({count}) t(i)"
    started = time.perf_counter()
    gather(con, [chain, equal], 1)
    link(con, "SELECT key AS a, key + 1 AS b FROM nodes WHERE key >= 0")
    mark_copies(con)
    first, second = (group_part(con, number, sql) for number, sql in enumerate((chain, equal)))
    assert time.perf_counter() - started < 30
    assert sum(first["representative"].to_pylist()) == count // 2
    assert set(second["group"].to_pylist()) == {f"e{count - 1}"}


def test_the_database_lies_on_disk_and_is_closed_to_all_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside.csv"
    outside.write_text("secret\n1\n")
    folder = tmp_path / "temporary"
    folder.mkdir()
    con = open_database(Storage(str(tmp_path / "ws")), str(folder), 64 << 20)
    # 60 MB of rows, and as much again to sort and count them, under a limit of 64.
    con.execute(
        "CREATE TABLE t AS SELECT md5(i::VARCHAR) AS id, hash(i) AS h FROM range(1500000) t(i) "
        "ORDER BY h"
    )
    assert con.execute("SELECT count(DISTINCT h) FROM t").fetchall() == [(1_500_000,)]
    assert (folder / "groups.duckdb").stat().st_size > 0
    for sql in (
        f"SELECT * FROM read_csv('{outside}')",
        "SET memory_limit = '1TB'",
        f"COPY (SELECT 1) TO '{outside}.copy'",
    ):
        with pytest.raises(duckdb.Error):
            con.execute(sql).fetchall()
    con.close()


def test_facts(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    groups = ["a", "a", "a", "d", "d", "f"]
    rows = pa.table(
        {
            "sample_id": list("abcdef"),
            "group": groups,
            "representative": [i == g for i, g in zip("abcdef", groups, strict=True)],
        }
    )
    for number in range(2):
        part = rows.slice(number * 3, 3)
        storage.write_part(f"t/part-{number}.parquet", part, DUPLICATES, "sample_id")
    facts = group_facts(storage, ["t/part-0.parquet", "t/part-1.parquet"])
    assert facts == {"groups": 2, "copies": 3, "largest": [["a", 3], ["d", 2]]}
