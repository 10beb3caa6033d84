"""infra/tables.md says what the code says, and its queries run."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import duckdb
import pyarrow as pa
import pytest

from infra import catalog
from infra.runs import Part, TableRecord, load_record, save_record
from infra.storage import Storage
from operators.shots import Shots
from pipelines.duplicates import Duplicates
from pipelines.recipe import Recipe
from pipelines.rules import Rule
from pipelines.scored import score_schema
from pipelines.sections import Captions
from pipelines.tables_doc import GROUPS, LEDGER, PATH, QUERIES, TABLES, document


@pytest.fixture
def con(
    curated: Recipe,
    curate_here: Callable[[Recipe], TableRecord],
    write_tokens: Callable[[Recipe], None],
    write_frames: Callable[[Recipe, Sequence[str]], TableRecord],
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
    write_frames(curated, ["object", "camera"])
    samples = load_record(curated.storage, "samples/some")
    assert samples is not None
    for number in range(len(samples.parts)):
        part = curated.storage.read(samples.path(number))
        curated.storage.write(f"videos/some/{samples.parts[number].file}", part)
    save_record(curated.storage, replace(samples, table="videos/some"))
    write_shots(curated.storage)
    return catalog.connect(curated.storage)


def write_shots(storage: Storage) -> None:
    spans = [{"start_s": 0.0, "end_s": 4.5}, {"start_s": 4.5, "end_s": 9.0}]
    shots = pa.table({"sample_id": ["a"], "spans": [spans], "num_shots": [2]})
    schema = score_schema((Shots(),))
    for field in schema:
        if field.name not in shots.column_names:
            shots = shots.append_column(field.remove_metadata(), pa.nulls(1, field.type))
    file = "v-1/part-00000.parquet"
    storage.write_part(f"shots/some/{file}", shots, schema, "sample_id")
    save_record(storage, TableRecord("shots/some", "f", "s", "sample_id", (Part(file, 1),)))


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
