"""What is computed and what is taken over, against a plain reading of the rule."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.runs import Part, TableRecord
from infra.schema import ERROR, REJECTIONS, SAMPLES, column
from infra.storage import Storage
from pipelines.job import Job, Retry
from pipelines.phase import Phase, Stage
from pipelines.workers import compact

SCHEMA = pa.schema([column("id", pa.string(), "", ""), column("v", pa.int64(), "", ""), ERROR])
STAGES, TYPES = ("probe", "load"), ("missing", "truncated", *REJECTIONS)
ERRORS = st.none() | st.builds(
    lambda stage, type_: {"stage": stage, "type": type_, "message": "m"},
    st.sampled_from(STAGES),
    st.sampled_from(TYPES),
)
IDS = st.sampled_from([f"id{n}" for n in range(12)])
RETRIES = st.builds(Retry, st.none() | st.sampled_from(STAGES), st.none() | st.sampled_from(TYPES))


@dataclass(frozen=True)
class Ids:
    """Rows with these ids, and with the errors that they come with."""

    errors: tuple[tuple[str, Any], ...]
    columns: ClassVar[tuple[str, ...]] = ("id", "error")
    is_remote: ClassVar[bool] = False

    def rows(self, storage: Storage, part: int) -> pa.Table:
        rows = [{"id": id_, "error": error} for id_, error in self.errors]
        schema = pa.schema([("id", pa.string()), ERROR.remove_metadata()])
        return pa.Table.from_pylist(rows, schema=schema)

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        return rows


def write(storage: Storage, rows: list[dict[str, Any]], schema: pa.Schema, key: str) -> TableRecord:
    table = pa.Table.from_pylist(rows, schema=schema)
    storage.write_part("t/v-old/part-00000.parquet", table, schema, key)
    failed = sum(row["error"] is not None for row in rows)
    return TableRecord("t", "f", "s", key, (Part("v-old/part-00000.parquet", len(rows), failed),))


def make_phase(rows: Any, schema: pa.Schema = SCHEMA, key: str = "id") -> Phase:
    return Phase("t", key, schema, rows, 1, (Stage(()),), {}, ())


@settings(max_examples=150, deadline=None)
@given(
    old=st.dictionaries(IDS, ERRORS),
    wanted=st.dictionaries(IDS, st.none() | st.just({"stage": "a", "type": "b", "message": ""})),
    retry=st.none() | RETRIES,
    again=st.booleans(),
)
def test_rows_are_computed_or_taken_over(
    old: dict[str, Any], wanted: dict[str, Any], retry: Retry | None, again: bool
) -> None:
    again = again and retry is not None
    with TemporaryDirectory() as folder:
        storage = Storage(folder)
        rows = [{"id": id_, "v": 1, "error": error} for id_, error in old.items()]
        previous = write(storage, rows, SCHEMA, "id")
        job = Job(storage, make_phase(Ids(tuple(wanted.items()))), "t/n", previous, retry, again)
        split = job.split(0)
        table = storage.read_table(previous.path(0))
        taken = set(table["id"].filter(split.taken).to_pylist())

        def tried(id_: str) -> bool:
            error = old.get(id_)
            if error is None or error["type"] in REJECTIONS:
                return False
            if not again:
                return True
            assert retry is not None
            fits = retry.stage in (None, error["stage"]) and retry.type in (None, error["type"])
            return fits and wanted[id_] is None

        assert taken == {id_ for id_ in wanted if id_ in old and not tried(id_)}
        assert split.rows["id"].to_pylist() == [id_ for id_ in wanted if id_ not in taken]
        assert split.num_taken == len(taken)
        assert split.tried is not None
        assert set(split.tried.to_pylist()) == {id_ for id_ in wanted if tried(id_)}
        same = retry is not None and taken == set(wanted) == set(old)
        assert job.stays(0, split) == same
        # What is compacted is what is wanted.
        computed = [{"id": id_, "v": 2, "error": None} for id_ in split.rows["id"].to_pylist()]
        unit = pa.Table.from_pylist(computed, schema=SCHEMA)
        storage.write_part(job.unit_path(0, 0), unit, SCHEMA, "id")
        compact(job, 0, [0])
        made = storage.read_table("t/n/part-00000.parquet")
        assert made["id"].to_pylist() == sorted(wanted)
        assert set(made["id"].filter(pa.compute.equal(made["v"], 1)).to_pylist()) == taken


def test_without_a_version_before_everything_is_computed(tmp_path: Path) -> None:
    job = Job(Storage(str(tmp_path)), make_phase(Ids((("a", None),))), "t/n", None, Retry())
    assert job.split(0).rows["id"].to_pylist() == ["a"]
    assert not job.stays(0, job.split(0))


@dataclass(frozen=True)
class Files:
    """The files of a source."""

    uris: tuple[str, ...]
    columns: ClassVar[tuple[str, ...]] = tuple(SAMPLES.names)
    is_remote: ClassVar[bool] = False

    def rows(self, storage: Storage, part: int) -> pa.Table:
        return pa.table({"uri": pa.array(self.uris, pa.string())})

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        return rows


def test_a_file_of_a_source_is_indexed_again_as_a_whole(tmp_path: Path) -> None:
    """A sample belongs to its file, or to the table that its URI stands in."""
    error = {"stage": "index", "type": "no_image", "message": "m"}
    rows = [
        (key, uri, failed)
        for key, uri, failed in (
            ("a.tar/1", "a.tar", False),
            ("a.tar/2", "a.tar", True),
            ("b.tar/1", "b.tar", False),
            ("c.parquet#0", "http://x/#1", False),
            ("c.parquet#1", "c.parquet", True),
            ("d.parquet#0", "http://x/#1", False),
            ("e#1.jpg", "e#1.jpg", True),
            ("f#1.jpg", "f#1.jpg", False),
        )
    ]
    samples = [
        dict.fromkeys(SAMPLES.names)
        | {"sample_id": key, "key": key, "uri": uri, "error": error if failed else None}
        for key, uri, failed in rows
    ]
    storage = Storage(str(tmp_path))
    previous = write(storage, samples, SAMPLES, "sample_id")
    files = Files(("a.tar", "b.tar", "c.parquet", "d.parquet", "e#1.jpg", "f#1.jpg"))
    job = Job(
        storage, make_phase(files, SAMPLES, "sample_id"), "t/n", previous, Retry(), again=True
    )
    split = job.split(0)
    assert split.rows["uri"].to_pylist() == ["a.tar", "c.parquet", "e#1.jpg"]
    taken = storage.read_table(previous.path(0))["key"].filter(split.taken).to_pylist()
    assert taken == ["b.tar/1", "d.parquet#0", "f#1.jpg"]
    assert split.tried is not None
    assert split.tried.to_pylist() == ["a.tar/2", "c.parquet#1", "e#1.jpg"]
