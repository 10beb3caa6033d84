"""What ``nextscale verify A B`` says of two tables: all that differs, and nothing else."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.schema import DECISIONS, TOKENS
from infra.storage import Storage
from pipelines.compare_tables import main

BARE = pa.schema([field.remove_metadata() for field in TOKENS])


def row(number: int) -> dict[str, Any]:
    codes = [(number + i) % 50 for i in range(10)]
    segments = [
        {"kind": "text", "loss": True, "text_ids": [number, 7]},
        {"kind": "image", "role": "target", "input_codes": codes, "target_codes": codes[:]},
    ]
    return {"doc_id": f"{number:03d}", "task": "t2i", "segments": segments, "num_tokens": 12}


def write(root: Path, parts: list[list[dict[str, Any]]], name: str = "tokens/photos-256") -> Path:
    storage, made = Storage(str(root)), []
    for number, rows in enumerate(parts):
        file = f"v/part-{number:05d}.parquet"
        storage.write_part(f"{name}/{file}", pa.Table.from_pylist(rows, BARE), TOKENS, "doc_id")
        made.append(Part(file, len(rows)))
    facts = {"tokenizer_id": "t", "level": 256}
    runs.save_record(storage, TableRecord(name, "f", "f", "doc_id", tuple(made), facts))
    return root


def lines_of(
    ours: Path, theirs: Path, capsys: pytest.CaptureFixture[str], name: str = "tokens/photos-256"
) -> tuple[int, list[str]]:
    status = main(name, str(theirs / name), str(ours))
    return status, [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]


def test_equal_rows_in_other_parts_are_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(n) for n in range(30)]
    ours = write(tmp_path / "a", [rows])
    theirs = write(tmp_path / "elsewhere" / "b", [rows[20:], rows[:20]])
    assert lines_of(ours, theirs, capsys) == (0, ["rows: 30, all equal"])


def test_every_difference_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = [row(n) for n in range(3, 31)]
    changed[0]["segments"][1]["input_codes"][:3] = [51, 52, 53]
    changed[1]["segments"][1]["target_codes"][4] = 51
    changed[2]["segments"][0]["text_ids"] = [5, 7, 9]
    changed[2]["num_tokens"] = 13
    ours = write(tmp_path / "a", [[row(n) for n in range(30)]])
    theirs = write(tmp_path / "b", [changed])
    record = runs.load_record(Storage(str(theirs)), "tokens/photos-256")
    assert record is not None
    other = dataclasses.replace(record, facts={"tokenizer_id": "u", "level": 256})
    runs.save_record(Storage(str(theirs)), other)
    status, lines = lines_of(ours, theirs, capsys)
    assert status == 1
    assert lines == [
        "tokenizer_id: t and u",
        "rows: 30 and 28",
        "only in the first: 3, for example 000",
        "only in the second: 1, for example 030",
        "segments differs in 3 of 27",
        "num_tokens differs in 1 of 27",
        "text_ids in these: 1 of 7 differ (14.2857%)",
        "input_codes in these: 3 of 30 differ (10.0000%)",
        "target_codes in these: 1 of 30 differ (3.3333%)",
    ]


def test_columns_that_one_has_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = write(tmp_path / "a", [[row(0)]])
    theirs = write(tmp_path / "b", [[row(0)]])
    file = Storage(str(theirs)).path("tokens/photos-256/v/part-00000.parquet")
    table = Storage(str(theirs)).read_table("tokens/photos-256/v/part-00000.parquet")
    pq.write_table(table.drop_columns(["source"]), file)
    status, lines = lines_of(ours, theirs, capsys)
    assert status == 1
    assert "only the first has the columns source" in lines


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    ours = write(tmp_path / "a", [[row(0)]])
    with pytest.raises(ConfigError, match="nowhere is no table of the workspace"):
        main("tokens/photos-256", "nowhere", str(ours))
    storage = Storage(str(ours))
    rows = pa.Table.from_pylist([{"sample_id": "x"}], DECISIONS)
    storage.write_part("decisions/photos/v/part-00000.parquet", rows, DECISIONS, "sample_id")
    part = (Part("v/part-00000.parquet", 1),)
    runs.save_record(storage, TableRecord("decisions/photos", "f", "f", "sample_id", part))
    with pytest.raises(ConfigError, match="name two tables of one kind"):
        main("tokens/photos-256", "decisions/photos", str(ours))
