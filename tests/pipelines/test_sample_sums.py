"""Sums over a table of the sample: rows, tokens, and bytes as files grow."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.runs import Part, TableRecord
from infra.schema import ERROR_TYPE, REJECTIONS
from infra.storage import Storage
from pipelines.drawn import Drawn
from pipelines.estimator import Total
from pipelines.sample_sums import Sums, add_up
from pipelines.source import Source

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("text", pa.string()),
        ("prompt_hash", pa.string()),
        ("num_prompt_tokens", pa.int32()),
        ("num_tokens", pa.int32()),
        ("error", ERROR_TYPE),
    ]
)
ROWS = 2_000
WORDS = [f"word{n}" for n in range(300)]


def row(number: int) -> dict[str, Any]:
    """Texts that repeat, scores that do not, and every tenth row failed or rejected."""
    rng = np.random.default_rng(number)
    error = None
    if number % 10 == 0:
        type_ = REJECTIONS[0] if number % 20 else "lost"
        error = {"stage": "s", "type": type_, "message": ""}
    return {
        "sample_id": hashlib.md5(str(number).encode()).hexdigest(),
        "text": " ".join(rng.choice(WORDS, 8)),
        "prompt_hash": "h",
        "num_prompt_tokens": 300,
        "num_tokens": 10 + number % 3 if error is None else None,
        "error": error,
    }


def sums_of(storage: Storage, numbers: range, groups: int = 10) -> Sums:
    table = pa.Table.from_pylist([row(number) for number in numbers], schema=SCHEMA)
    storage.write_part("captions/d/v/part-00000.parquet", table, SCHEMA, "sample_id")
    record = TableRecord("captions/d", "", "", "sample_id", (Part("v/part-00000.parquet", 1),))
    some = np.random.default_rng(0).permutation(len(numbers)) % groups
    place = {row(number)["sample_id"]: int(some[i]) for i, number in enumerate(numbers)}
    sizes = np.bincount(list(place.values()), minlength=groups).astype(float)
    share = len(numbers) / ROWS
    drawn = Drawn(
        source=Source(name="p", kind="folder", path="x"),
        rows=table,
        groups=place,
        whole=float(ROWS),
        sizes=sizes,
        held=sizes,
        taken=sizes,
        share=share,
        num_parts=1,
        num_rows=Total(float(ROWS)),
        index_s=Total(0.0),
    )
    return add_up(storage, record, [drawn])


def test_totals_and_what_they_miss(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    found = sums_of(storage, range(0, ROWS, 7)).totals(1)
    whole = sums_of(storage, range(ROWS)).totals(1)
    assert (whole["rows"].value, whole["fine"].value, whole["failed"].value) == (2000, 1800, 100)
    assert whole["num_prompt_tokens"].value == 300 * ROWS
    assert {name for name, total in whole.items() if total.error} == set()
    size = len(storage.read("captions/d/v/part-00000.parquet"))
    assert whole["bytes"].value == pytest.approx(size)
    for name, truth in whole.items():
        assert abs(found[name].value - truth.value) <= found[name].error + 1e-6, name
        assert found[name].error < 0.7 * truth.value
    # Nothing of the measuring is left behind.
    assert [path for path, *_ in storage.find()] == ["captions/d/v/part-00000.parquet"]


def test_bytes_grow_as_files_do(tmp_path: Path) -> None:
    """Texts repeat more in larger files: bytes by rows would be far too many."""
    small = sums_of(Storage(str(tmp_path)), range(0, ROWS, 20))
    storage = Storage(str(tmp_path))
    by_rows = len(storage.read("captions/d/v/part-00000.parquet")) * 20
    sums_of(storage, range(ROWS))
    truth = len(storage.read("captions/d/v/part-00000.parquet"))
    found = small.totals(1)["bytes"]
    assert by_rows > 1.2 * truth
    assert abs(found.value - truth) < 0.5 * abs(by_rows - truth)
    # In ten files of 200 rows, each has what repeats.
    assert small.totals(10)["bytes"].value > found.value


def test_a_table_without_rows(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    found = sums_of(storage, range(0)).totals(4)
    assert (found["rows"].value, found["fine"].value) == (0, 0)
    size = len(storage.read("captions/d/v/part-00000.parquet"))
    assert found["bytes"].value == pytest.approx(4 * size)
