"""Classes are counted over all parts, whatever rows lack."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.runs import Part, TableRecord
from infra.schema import FRAMES
from infra.storage import Storage
from pipelines.class_counts import ClassCount, class_counts

BAD = {"stage": "frames", "type": "too_few_frames", "message": "none qualifies"}


def clip(name: str, *candidates: tuple[str | None, bool | None]) -> dict[str, Any]:
    told = [{"class": class_, "kept": kept, "image": b"x"} for class_, kept in candidates]
    return {"sample_id": name, "candidates": told}


@pytest.mark.parametrize("num_parts", [1, 3])
def test_all_candidates_are_counted(tmp_path: Path, num_parts: int) -> None:
    rows = [
        clip("a", ("object", True), ("static", False), ("object", False)),
        clip("b"),
        {"sample_id": "c", "error": BAD},
        clip("d", (None, False), ("cut", True), ("object", True), (None, None)),
        clip("e", ("static", False), ("object", True)),
    ]
    storage, parts = Storage(str(tmp_path)), []
    bare = pa.schema([field.remove_metadata() for field in FRAMES])
    for number in range(num_parts):
        some = pa.Table.from_pylist(rows[number::num_parts], schema=bare)
        file = f"v-1/part-{number:05d}.parquet"
        storage.write_part(f"frames/d-256/{file}", some, FRAMES, "sample_id")
        parts.append(Part(file, len(some)))
    record = TableRecord("frames/d-256", "f", "s", "sample_id", tuple(parts))
    assert class_counts(storage, record) == [
        ClassCount("object", 4, 3),
        ClassCount("", 2, 0),
        ClassCount("static", 2, 0),
        ClassCount("cut", 1, 1),
    ]
    assert class_counts(storage, TableRecord("frames/d-256", "f", "s", "sample_id", ())) == []
