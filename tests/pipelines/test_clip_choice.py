"""Clips are chosen by their ids and classes alone: some of every mix, whatever else there is."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.runs import Part, TableRecord
from infra.schema import FRAMES, digest, uniform
from infra.storage import Storage
from pipelines.clip_choice import MAX_PARTS, choose_clips

FEW = {"stage": "frames", "type": "too_few_frames", "message": ""}


def table(storage: Storage, parts: list[list[tuple[list[str | None], Any]]]) -> TableRecord:
    """A table of frames: (classes, error) of each clip, by part."""
    written = []
    for number, clips in enumerate(parts):
        rows = [
            {
                "sample_id": digest(str(number), str(row)),
                "candidates": [{"class": one, "image": b"x" * 1000} for one in classes],
                "error": error,
            }
            for row, (classes, error) in enumerate(clips)
        ]
        bare = pa.schema([field.remove_metadata() for field in FRAMES])
        file = f"v-1/part-{number:05d}.parquet"
        data = pa.Table.from_pylist(rows, schema=bare)
        storage.write_part(f"frames/d-256/{file}", data, FRAMES, "sample_id")
        written.append(Part(file, len(rows)))
    return TableRecord("frames/d-256", "f", "s", "sample_id", tuple(written))


def mixes(storage: Storage, record: TableRecord, limit: int) -> list[str]:
    found = []
    for clip in choose_clips(storage, record, limit):
        [row] = storage.read_rows(record.path(clip.part), [clip.row]).to_pylist()
        assert row["sample_id"] == clip.sample_id
        assert clip.u == uniform(clip.sample_id, 0)
        classes = " ".join(sorted({one["class"] or "" for one in row["candidates"]}))
        found.append(row["error"]["type"] if row["error"] else classes)
    return found


def test_every_mix_has_its_turn_and_failures_come_last(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    common: list[tuple[list[str | None], Any]] = [(["object", "static"], None)] * 40
    rare: list[tuple[list[str | None], Any]] = [(["cut"], None), (["static", "object"], None)]
    record = table(storage, [common, [*rare, ([], FEW), ([], FEW), ([None], None)]])
    found = mixes(storage, record, 10)
    assert Counter(found) == {"object static": 6, "cut": 1, "too_few_frames": 2, "": 1}
    assert found[:6] == ["object static"] * 6
    assert found[-2:] == ["too_few_frames"] * 2
    assert len(mixes(storage, record, 3)) == 3
    assert len(mixes(storage, record, 100)) == 45


def test_others_change_nothing_within_a_mix(tmp_path: Path) -> None:
    few, many = Storage(str(tmp_path / "few")), Storage(str(tmp_path / "many"))
    clips: list[tuple[list[str | None], Any]] = [(["camera"], None)] * 30
    others: list[tuple[list[str | None], Any]] = [(["object"], None)] * 5
    alone = choose_clips(few, table(few, [clips]), 6)
    beside = choose_clips(many, table(many, [clips, others]), 12)
    assert beside[:6] == alone
    lowest = sorted(uniform(digest("0", str(row)), 0) for row in range(30))[:6]
    assert [clip.u for clip in alone] == lowest


def test_pictures_are_not_read_nor_all_of_many_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    record = table(storage, [[(["object"], None)]] * (2 * MAX_PARTS + 3))
    read: list[pa.Table] = []
    whole = Storage.read_table

    def counted(self: Storage, path: str, columns: list[str] | None = None) -> pa.Table:
        read.append(whole(self, path, columns))
        return read[-1]

    monkeypatch.setattr(Storage, "read_table", counted)
    assert choose_clips(storage, record, 24)
    assert MAX_PARTS / 2 < len(read) <= MAX_PARTS
    assert "image" not in str(read[0].schema)


def test_an_empty_table(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert choose_clips(storage, table(storage, [[]]), 24) == []
    assert choose_clips(storage, TableRecord("frames/d-256", "f", "s", "sample_id", ()), 24) == []
