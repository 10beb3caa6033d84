"""Answers at rest: each is kept once, whatever is killed or run again, and found by its sample."""

from pathlib import Path

import pyarrow as pa

from infra.runs import Part, TableRecord
from infra.storage import Storage
from operators.caption_answers import ANSWER
from pipelines.inputs import dataset_parts
from pipelines.responses import (
    RESPONSES,
    answered,
    answers_about,
    folder_of,
    keep_answers,
    merge_answers,
)
from pipelines.source import Source

PART = "responses/d/web/p00000"
NEXT = "responses/d/web/p00001"


def answers(*rows: tuple[str, str, str, str]) -> pa.Table:
    names = ("folder", "sample_id", "key", "text")
    told = [dict(zip(names, row, strict=True)) for row in rows]
    schema = pa.schema([("folder", pa.string()), *RESPONSES, ("__inference_error__", pa.string())])
    return pa.Table.from_pylist(told, schema=schema)


def test_answers_are_kept_once_whatever_is_killed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))

    def kept() -> list[tuple[str, str]]:
        tables = [storage.read_table(f"{PART}/{name}") for name in storage.names(PART)]
        found = pa.concat_tables(tables).to_pylist()
        return sorted((row["key"], row["text"]) for row in found)

    one = answers(
        (PART, "a", "k1", "first"), (PART, "a", "k2", "other"), (NEXT, "b", "k3", "elsewhere")
    )
    told = keep_answers(one, storage)
    assert told.to_pylist() == [{"kept": 3, "failed": 0, "message": ""}]
    keep_answers(one, storage)  # a task that is run again
    assert kept() == [("k1", "first"), ("k2", "other")]
    merge_answers(storage, PART)
    keep_answers(answers((PART, "a", "k1", "later"), (PART, "c", "k4", "new")), storage)
    assert len(storage.names(PART)) == 2
    merge_answers(storage, PART)
    assert kept() == [("k1", "first"), ("k2", "other"), ("k4", "new")]
    merge_answers(storage, PART)
    merge_answers(storage, "responses/d/web/p00007")  # nothing there
    assert len(storage.names(PART)) == 1
    assert storage.names("responses/d/web") == ["p00000", "p00001"]


def test_answers_are_found_by_sample(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert answers_about(storage, PART, ["a"]) == [[]]
    keep_answers(
        answers((PART, "a", "k1", "A."), (PART, "a", "k2", "B."), (PART, "b", "k3", "C.")), storage
    )
    assert answered(storage, PART) == {("a", "k1"), ("a", "k2"), ("b", "k3")}
    assert answered(storage, NEXT) == set()
    found = answers_about(storage, PART, ["b", "z", "a"])
    assert [[row["text"] for row in rows] for rows in found] == [["C."], [], ["A.", "B."]]
    keep_answers(answers((PART, "z", "k4", "D.")), storage)  # another file is seen at once
    assert answers_about(storage, PART, ["z"])[0][0]["text"] == "D."
    merge_answers(storage, PART)
    assert answers_about(storage, PART, ["b", "z", "a"])[1:] == [
        [{**dict.fromkeys(ANSWER.names), "key": "k4", "text": "D."}],
        found[2],
    ]


def test_failures_are_counted_and_not_kept(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    failed = pa.table({"__inference_error__": ["out of memory " * 99, ""], "key": ["k", None]})
    told = keep_answers(failed, storage).to_pylist()
    assert [(row["kept"], row["failed"], len(row["message"])) for row in told] == [(0, 1, 300)]
    assert storage.names("responses") == []


def test_another_source_in_front_moves_no_answer() -> None:
    def folders(*names: str) -> list[str]:
        sources = tuple(Source(name=name, kind="folder", path=name) for name in names)
        parts = (Part("a", 1), Part("b", 1))
        samples = tuple(TableRecord(f"samples/{n}", "f", "r", "sample_id", parts) for n in names)
        return [folder_of("d", place) for place in dataset_parts(sources, samples)]

    assert folders("web") == [PART, NEXT]
    assert folders("new", "web")[2:] == [PART, NEXT]
    assert len(set(folders("new", "web"))) == 4
