"""Ids and sampling are the same in Python and in SQL."""

import duckdb
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import schema
from infra.schema import digest, doc_id, sample_id, uniform, uniform_sql

# DuckDB takes no lone surrogates; ids are hex in any case.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@given(st.lists(TEXT, min_size=1, max_size=20), st.integers(-(2**63), 2**63))
@settings(max_examples=50, deadline=None)
def test_uniform_is_its_sql_twin(ids: list[str], seed: int) -> None:
    table = pa.table({"i": list(range(len(ids))), "id": pa.array(ids, pa.string())})
    with duckdb.connect() as con:
        con.register("t", table)
        found = con.execute(f"SELECT {uniform_sql('id', seed)} FROM t ORDER BY i").fetchall()
    assert [value for (value,) in found] == [uniform(id_, seed) for id_ in ids]


def test_uniform_is_uniform_and_depends_on_the_seed() -> None:
    ids = [sample_id("s", str(i)) for i in range(4000)]
    values = [uniform(id_, 1) for id_ in ids]
    assert all(0 <= value < 1 for value in values)
    tenths = [sum(int(value * 10) == i for value in values) for i in range(10)]
    assert max(tenths) < 500 > 300 < min(tenths)
    other = [uniform(id_, 2) for id_ in ids]
    both = sum(a < 0.5 and b < 0.5 for a, b in zip(values, other, strict=True))
    assert 900 < both < 1100


def test_ids_are_fixed_for_ever() -> None:
    """Tables at rest hold them: these values must never change."""
    assert sample_id("web", "a/b.jpg") == "c5c7df91f009664c6fa936d942e7fb85"
    assert doc_id("d", "t2i", ["00", "01"]) == "c73f3ea1bfb2f8bfee87422bb558c15c"
    assert uniform("00", 0) == 0.7771048379122639


@given(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=4))
def test_digests_of_other_parts_differ(a: list[str], b: list[str]) -> None:
    assert (digest(*a) == digest(*b)) == (a == b)


def test_parts_of_a_digest_do_not_run_together() -> None:
    assert sample_id("ab", "c") != sample_id("a", "bc")
    assert doc_id("d", "t", ["a", "b"]) != doc_id("d", "t", ["ab"])
    assert doc_id("d", "t", ["a", "b"]) != doc_id("d", "t", ["b", "a"])
    assert len(digest()) == 32


def test_a_name_that_is_no_unicode_has_an_id() -> None:
    assert len(sample_id("s", "a\udcff.jpg")) == 32


def test_every_column_has_a_meaning() -> None:
    tables = [v for v in vars(schema).values() if isinstance(v, pa.Schema)]
    assert len(tables) >= 5
    for field in (field for table in tables for field in table):
        assert field.metadata[b"meaning"], field.name
        assert b"unit" in field.metadata
