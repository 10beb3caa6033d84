"""infra/tables.md says what the code says, and its queries run."""

from collections.abc import Callable
from dataclasses import replace

import duckdb
import pytest

from infra import catalog
from infra.runs import TableRecord, load_record, save_record
from pipelines.duplicates import Duplicates
from pipelines.recipe import Recipe
from pipelines.rules import Rule
from pipelines.sections import Captions
from pipelines.tables_doc import GROUPS, LEDGER, PATH, QUERIES, TABLES, document


@pytest.fixture
def con(
    curated: Recipe,
    curate_here: Callable[[Recipe], TableRecord],
    write_tokens: Callable[[Recipe], None],
) -> duckdb.DuckDBPyConnection:
    """All tables that a recipe of pictures can make."""
    judged = Captions(rules=(Rule(name="said", keep="len(text) > 0"),))
    curate_here(replace(curated, duplicates=Duplicates(), captions=judged))
    write_tokens(curated)
    tokens = load_record(curated.storage, "tokens/mixed-256")
    assert tokens is not None
    for number in range(len(tokens.parts)):
        part = curated.storage.read(tokens.path(number))
        curated.storage.write(f"tokens/mixed-256-r1/{tokens.parts[number].file}", part)
    save_record(curated.storage, replace(tokens, table="tokens/mixed-256-r1"))
    return catalog.connect(curated.storage)


def test_the_file_is_current() -> None:
    assert PATH.read_text(encoding="utf-8") == document(), "run `python -m pipelines.tables_doc`"


def test_there_are_ten_queries_or_more() -> None:
    assert len(QUERIES) >= 10


@pytest.mark.parametrize("question", [question for question, _ in QUERIES])
def test_queries_answer(con: duckdb.DuckDBPyConnection, question: str) -> None:
    rows = con.sql(dict(QUERIES)[question]).fetchall()
    assert rows


def test_views_have_the_columns_that_the_document_names(con: duckdb.DuckDBPyConnection) -> None:
    labels = {"dataset", "pack_set"}
    for name, _, _, schema in TABLES:
        view = name.replace("<kind>", "exact")
        assert set(con.sql(f"SELECT * FROM {view}").columns) - labels == set(schema.names) - labels
    assert con.sql("SELECT * FROM ledger").columns == list(LEDGER)
    scores = con.sql("SELECT * FROM scores").columns
    cheap = [f.name for operator in GROUPS["cheap"] for f in operator.writes if f.name != "image"]
    assert scores == ["sample_id", "source", "key", "caption", *cheap, "cheap_error"]


def test_every_column_of_the_runs_is_named(con: duckdb.DuckDBPyConnection) -> None:
    text = document().partition("## runs")[2].partition("##")[0]
    missing = [name for name in con.sql("SELECT * FROM runs").columns if f"`{name}`" not in text]
    assert missing == []
