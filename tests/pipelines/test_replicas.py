"""Replicas of tokens: what they must share, and what is said where they do not."""

import re

import pyarrow as pa
import pytest

from infra import runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.schema import TOKENS
from infra.storage import Storage
from pipelines.replicas import COUNTS, SHARED, check_tables, read_light, replica_table

FACTS = dict.fromkeys(SHARED, 1)
BAD = {"stage": "codes", "type": "corrupt", "message": "bad"}


def rows_of(part, size=9, failed=(4,)):
    return [
        {
            "doc_id": f"{part}{i:02d}",
            "num_tokens": 100 * part + i,
            "num_loss": 90 * part + i,
            "num_pairs": 5000 + i,
            "error": BAD if i in failed else None,
        }
        for i in range(size)
    ]


def write(storage, replica, parts, facts=FACTS):
    """The table of a replica with these rows in its parts."""
    table, made = replica_table("photos-256", replica), []
    schema = pa.schema([field.remove_metadata() for field in TOKENS])
    for number, rows in enumerate(parts):
        file = f"v-1/part-{number:05d}.parquet"
        found = pa.Table.from_pylist(rows, schema=schema)
        storage.write_part(f"{table}/{file}", found, TOKENS, "doc_id")
        made.append(Part(file, len(rows)))
    record = TableRecord(table, table, table, "doc_id", tuple(made), facts)
    runs.save_record(storage, record)
    return record


def test_the_first_replica_is_the_table_that_there_always_was():
    assert replica_table("photos-256") == "tokens/photos-256"
    assert replica_table("photos-256", 2) == "tokens/photos-256-r2"


def read_all(storage, tables):
    """All parts, checked as the packer does."""
    check_tables(tables)
    return [read_light(storage, tables, part) for part in range(len(tables[0].parts))]


@pytest.mark.parametrize("num_replicas", [1, 3])
def test_all_rows_of_the_first_are_told_failed_ones_too(tmp_path, num_replicas):
    storage, parts = Storage(str(tmp_path)), [rows_of(1), [], rows_of(2, failed=())]
    tables = [write(storage, replica, parts) for replica in range(num_replicas)]
    for found, rows in zip(read_all(storage, tables), parts, strict=True):
        assert found["doc_id"].to_pylist() == [row["doc_id"] for row in rows]
        assert found["error"].to_pylist() == [row["error"] for row in rows]
        for name in COUNTS:
            assert found[name].to_pylist() == [row[name] for row in rows]


@pytest.mark.parametrize("name", SHARED)
def test_replicas_of_another_tokenizer_vocabulary_or_level_are_refused(tmp_path, name):
    storage, parts = Storage(str(tmp_path)), [rows_of(1)]
    tables = [write(storage, 0, parts), write(storage, 1, parts, FACTS | {name: 2})]
    with pytest.raises(ConfigError, match=f"tokens/photos-256-r1 has {name} 2, .*nextscale tok"):
        read_all(storage, tables)


def without(rows, i):
    return rows[:i] + rows[i + 1 :]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(lambda rows: without(rows, 2), "202", id="one is missing"),
        pytest.param(lambda rows: without(rows, 8), "208", id="the last is missing"),
        pytest.param(lambda rows: [*rows, rows[0] | {"doc_id": "2x"}], "2x", id="one is more"),
        pytest.param(lambda rows: [rows[0] | {"doc_id": "2"}, *rows[1:]], "2", id="another one"),
        pytest.param(
            lambda rows: [*rows[:6], rows[6] | {"num_tokens": 7}, *rows[7:]], "206", id="longer"
        ),
        pytest.param(
            lambda rows: [*rows[:5], rows[5] | {"error": BAD}, *rows[6:]], "205", id="failed"
        ),
        pytest.param(
            lambda rows: [*rows[:4], rows[4] | {"error": None}, *rows[5:]], "204", id="mended"
        ),
        pytest.param(lambda rows: [], "200", id="none"),
    ],
)
@pytest.mark.parametrize("swap", [False, True])
def test_replicas_of_other_documents_are_refused_by_name(tmp_path, change, named, swap):
    storage = Storage(str(tmp_path))
    parts = [rows_of(1), rows_of(2)]
    changed = [parts[0], change(parts[1])]
    first, other = (changed, parts) if swap else (parts, changed)
    tables = [write(storage, 0, first), write(storage, 1, parts), write(storage, 2, other)]
    if swap:
        tables[1] = write(storage, 1, first)
    with pytest.raises(ConfigError, match=f"document {re.escape(named)} is not the same") as told:
        read_all(storage, tables)
    assert "tokens/photos-256-r2" in str(told.value)
    assert "\n" not in str(told.value)


def test_other_numbers_of_parts_are_refused(tmp_path):
    storage = Storage(str(tmp_path))
    tables = [write(storage, 0, [rows_of(1)]), write(storage, 1, [rows_of(1), rows_of(2)])]
    with pytest.raises(ConfigError, match="has 2 parts, tokens/photos-256 has 1"):
        read_all(storage, tables)
