"""Clips become facts and frames; a bad one costs its own row."""

import hashlib
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.frames import frames_of
from infra.pixels import DecodeError
from infra.schema import ERROR_TYPE, FILE_TYPE
from infra.video_process import worker_process
from operators import clip_probe
from operators.clip_probe import ClipProbe
from tests.clips import number_of, write_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "ten.mp4", [100 * i for i in range(100)])
    write_clip(folder / "turned.mp4", [100 * i for i in range(30)], rotation=90)
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


def batch(
    folder: Path, *places: dict[str, Any] | None, errors: list[Any] | None = None
) -> pa.Table:
    base = {"root": str(folder), "offset": 0, "stream": 0}
    rows = [None if place is None else base | place for place in places]
    found = errors or [None] * len(rows)
    return pa.table({"file": pa.array(rows, FILE_TYPE), "error": pa.array(found, ERROR_TYPE)})


def numbers(table: pa.Table, row: int = 0) -> list[int]:
    frames = frames_of(table)[row]
    assert frames is not None
    return [number_of(frame.rgb) for frame in frames if frame.rgb is not None]


def test_facts_and_frames_of_a_clip(folder: Path) -> None:
    table = ClipProbe(num_frames=5, short_side=96)(batch(folder, {"uri": "ten.mp4"}))
    (row,) = table.drop_columns(["frames", "file"]).to_pylist()
    assert row["error"] is None
    assert (row["width"], row["height"], row["codec"]) == (320, 192, "h264")
    assert row["aspect"] == pytest.approx(0.6)
    assert row["duration_s"] == pytest.approx(10, abs=0.3)
    assert row["sha256"] == hashlib.sha256((folder / "ten.mp4").read_bytes()).hexdigest()
    length = row["duration_s"]
    assert numbers(table) == [int(length * (i + 0.5) / 5 * 10 + 1e-6) for i in range(5)]
    (frames,) = frames_of(table)
    assert frames is not None
    for frame in frames:
        assert frame.partner_s is not None
        assert frame.timestamp_s is not None
        assert frame.partner_s - frame.timestamp_s == pytest.approx(0.1)
    assert set(table.column_names) == {"file", "error", *ClipProbe.writes.names}
    for name in ClipProbe.writes.names:
        assert table.schema.field(name).type == ClipProbe.writes.field(name).type


def test_candidates_of_a_span_are_told_by_time(folder: Path) -> None:
    span = {"uri": "ten.mp4", "start_s": 1.0, "end_s": 5.5}
    probe = ClipProbe(every_s=2.0, short_side=96)
    table = probe(batch(folder, span, span | {"end_s": 5.0}, span | {"end_s": 1.05}))
    assert [numbers(table, row) for row in range(3)] == [[10, 30, 50], [10, 30], [10]]
    assert table["duration_s"].to_pylist() == pytest.approx([4.5, 4.0, 0.05])
    assert table["sha256"].null_count == 3
    last = frames_of(table)[2]
    assert last is not None
    assert last[0].partner is None


def test_at_most_so_many_candidates_are_decoded(folder: Path) -> None:
    probe = ClipProbe(every_s=0.5, max_candidates=5, short_side=96)
    chosen = numbers(probe(batch(folder, {"uri": "ten.mp4"})))
    assert len(chosen) == 5
    assert chosen[0] == 0
    assert chosen[-1] >= 95
    assert probe.times(0.0, 1e9)[-1] == pytest.approx(1e9, rel=1e-3)


def test_a_bad_clip_costs_its_own_row(folder: Path) -> None:
    earlier = {"stage": "load", "type": "missing", "message": "gone"}
    table = ClipProbe(short_side=96)(
        batch(
            folder,
            {"uri": "bad.mp4"},
            None,
            {"uri": "turned.mp4"},
            {"uri": "ten.mp4", "start_s": 50.0},
            {"uri": "ten.mp4", "start_s": 3.0, "end_s": 2.0},
            {"uri": "ten.mp4"},
            errors=[None, None, None, None, None, earlier],
        )
    )
    types = [error and error["type"] for error in table["error"].to_pylist()]
    assert types == ["unknown_format", "missing_file", None, "outside", "outside", "missing"]
    frames = frames_of(table)
    assert [one is None for one in frames] == [True, True, False, True, True, True]
    assert table["width"].to_pylist() == [None, None, 320, None, None, None]


def test_hangs_and_crashes_are_failed_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = {"uri": "ten.mp4"}
    for function, type_, limit_s in (
        (_hang, "timeout", 0.5),
        (_crash, "decoder_crashed", 60.0),
    ):
        probe = ClipProbe(short_side=96, limit_s=limit_s)
        monkeypatch.setattr(clip_probe, "open_clip", function)
        (error,) = probe(batch(folder, clip))["error"].to_pylist()
        assert (error["stage"], error["type"]) == ("probe", type_)
    monkeypatch.undo()
    assert ClipProbe(short_side=96)(batch(folder, clip))["error"].to_pylist() == [None]


def test_one_child_serves_all_and_is_not_pickled(folder: Path) -> None:
    probe = ClipProbe(short_side=96)
    probe(batch(folder, {"uri": "turned.mp4"}))
    child = worker_process().call(os.getpid)
    copy = pickle.loads(pickle.dumps(probe))
    assert copy == probe
    copy(batch(folder, {"uri": "turned.mp4"}))
    assert worker_process().call(os.getpid) == child


@pytest.mark.parametrize(
    "wrong", [{"short_side": 0}, {"every_s": 0.0}, {"num_frames": 0}, {"limit_s": float("inf")}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClipProbe(**wrong)


def test_no_rows_are_no_rows(folder: Path) -> None:
    table = ClipProbe()(batch(folder))
    assert table.num_rows == 0
    assert frames_of(table) == []


def _hang(*_: object) -> None:
    signal.pause()


def _crash(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_an_error_is_raised_where_no_frame_can_be_had(folder: Path) -> None:
    with pytest.raises(DecodeError):
        clip_probe.open_clip(ClipProbe(), batch(folder, {"uri": "bad.mp4"})["file"][0].as_py())
