"""Videos become clips: one row each, ids of their own, and nothing is lost on the way."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from infra import runs
from infra.runs import TableRecord
from infra.schema import sample_id
from infra.storage import Storage
from operators.shots import Shots
from pipelines.clip_samples import clip_phase, shot_phase
from pipelines.execution import run_phase
from pipelines.inputs import SampleInput
from pipelines.job import Retry
from pipelines.phase import Phase
from pipelines.sections import Pool
from pipelines.source import Source
from pipelines.sources import index_phase

FPS = 10
Run = Callable[[Storage, Phase], TableRecord]


def write_film(path: Path, lengths_s: tuple[int, ...], num_streams: int = 1) -> None:
    """A film whose shots of these lengths are of one colour each, another one in each stream."""
    colours = [(200, 30, 30), (20, 20, 180), (240, 240, 240), (10, 90, 10)]
    with av.open(str(path), "w") as container:
        streams = []
        for _ in range(num_streams):
            stream = container.add_stream("h264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.time_base = Fraction(1, FPS)
            streams.append(stream)
        for shift, stream in enumerate(streams):
            times = lengths_s if shift == 0 else lengths_s[::-1]
            for number, length_s in enumerate(times):
                picture = np.full((48, 64, 3), colours[(number + shift) % 4], np.uint8)
                for _ in range(length_s * FPS):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films, one with two streams, and a file that is none; do not write here."""
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "a.mp4", (3, 4, 1, 5))
    write_film(folder / "b.mp4", (2, 6), num_streams=2)
    (folder / "a.txt").write_text("A film.")
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    rows = [
        {"video": "a.mp4", "start": 1, "end": 7, "motion": 5.5},
        {"video": "a.mp4", "start": 1, "end": 7, "motion": 6.5},
        {"video": "a.mp4", "start": 9, "end": 4},
        {"video": "gone.mp4"},
    ]
    (folder / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def made(storage: Storage, source: Source, shots: Shots, run: Run) -> pa.Table:
    """All samples of a source after its three phases."""
    videos = run(storage, index_phase(source, f"videos/{source.name}"))
    cuts = run(storage, shot_phase(source, videos, shots, Pool(unit_rows=1)))
    samples = run(storage, clip_phase(source, videos, cuts))
    assert (videos.table, cuts.table, samples.table) == (
        f"videos/{source.name}",
        f"shots/{source.name}",
        f"samples/{source.name}",
    )
    assert len(videos.parts) == len(cuts.parts) == len(samples.parts)
    tables = [storage.read_table(samples.path(part)) for part in range(len(samples.parts))]
    return pa.concat_tables(tables)


def test_a_clip_is_a_sample(films: Path, tmp_path: Path, run_alone: Run) -> None:
    source = Source(name="s", kind="folder", path=str(films), media="video", part_rows=2)
    samples = made(Storage(str(tmp_path)), source, Shots(), run_alone)
    rows = {row["key"]: row for row in samples.to_pylist()}
    fine = {key: (r["start_s"], r["end_s"]) for key, r in rows.items() if r["error"] is None}
    assert fine == {
        "a.mp4#t=0.000,3.000": (0.0, 3.0),
        "a.mp4#t=3.000,7.000": (3.0, 7.0),
        "a.mp4#t=8.000,13.000": (8.0, 13.0),
        "b.mp4#t=0.000,2.000": (0.0, 2.0),
        "b.mp4#t=2.000,8.000": (2.0, 8.0),
    }
    for key, row in rows.items():
        assert row["sample_id"] == sample_id("s", key)
        assert row["uri"] == key.partition("#")[0]
        assert row["caption"] == ("A film." if row["uri"] == "a.mp4" else None)
        assert row["media"] == "video"
    assert rows["broken.mp4"]["error"]["stage"] == "shots"
    assert rows["broken.mp4"]["start_s"] is None


def test_streams_have_shots_of_their_own(films: Path, tmp_path: Path, run_alone: Run) -> None:
    source = Source(name="s", kind="folder", path=str(films), media="video", video_stream=1)
    samples = made(Storage(str(tmp_path)), source, Shots(), run_alone)
    kinds = {row["key"]: row["error"] and row["error"]["stage"] for row in samples.to_pylist()}
    assert kinds == {
        "a.mp4#track=1": "shots",  # there is none
        "b.mp4#track=1&t=0.000,6.000": None,
        "b.mp4#track=1&t=6.000,8.000": None,
        "broken.mp4#track=1": "shots",
    }


def test_spans_of_a_table_are_cut_further(films: Path, tmp_path: Path, run_alone: Run) -> None:
    source = Source(name="s", kind="jsonl", path=str(films), media="video")
    storage = Storage(str(tmp_path))
    samples = made(storage, source, Shots(min_clip_s=1.0), run_alone).to_pylist()
    second = (films / "t.jsonl").read_bytes().index(b"\n") + 1
    fine = {r["key"]: json.loads(r["metadata"])["motion"] for r in samples if not r["error"]}
    assert fine == {
        "t.jsonl#0&t=1.000,3.000": 5.5,
        "t.jsonl#0&t=3.000,7.000": 5.5,
        f"t.jsonl#{second}&t=1.000,3.000": 6.5,
        f"t.jsonl#{second}&t=3.000,7.000": 6.5,
    }
    assert sorted(r["error"]["type"] for r in samples if r["error"]) == ["bad_span", "missing"]
    # What reads samples finds where the clips lie.
    record = runs.load_record(storage, "samples/s")
    assert record is not None
    rows = SampleInput(source, record)
    files = rows.load(storage, rows.rows(storage, 0)).to_pylist()
    assert {(row["file"]["start_s"], row["file"]["end_s"]) for row in files if row["file"]} == {
        (1.0, 3.0),
        (3.0, 7.0),
    }


def test_the_fingerprint_follows_the_shots(films: Path, tmp_path: Path, run_alone: Run) -> None:
    source = Source(name="s", kind="folder", path=str(films), media="video")
    storage = Storage(str(tmp_path))
    videos = run_alone(storage, index_phase(source, "videos/s"))
    seen = set()
    for shots in (Shots(), Shots(threshold=20.0), Shots(limit_s=5.0), Shots(min_clip_s=1.0)):
        phase = shot_phase(source, videos, shots, Pool(workers=3))
        seen.add(phase.row_spec)
        record = replace(videos, table="shots/s", row_spec=phase.row_spec)
        seen.add(clip_phase(source, videos, record).row_spec)
    assert len(seen) == 2 * 3  # a limit changes nothing that is made


def test_a_file_that_was_missing_is_tried_again(
    ray_session: None, films: Path, tmp_path: Path, run_alone: Run
) -> None:
    root = tmp_path / "films"
    shutil.copytree(films, root)
    source = Source(name="s", kind="jsonl", path=str(root), media="video")
    storage = Storage(str(tmp_path / "ws"))

    def keys(run: Run) -> set[tuple[str, bool]]:
        rows = made(storage, source, Shots(), run).to_pylist()
        return {(row["key"], row["error"] is None) for row in rows}

    first = keys(run_alone)
    last = (root / "t.jsonl").read_bytes().rindex(b"\n") + 1
    gone = f"t.jsonl#{last}"
    write_film(root / "gone.mp4", (3, 4))
    mended = keys(lambda storage, phase: run_phase(storage, phase, Retry()))
    assert first - mended == {(gone, False)}
    assert mended - first == {(f"{gone}&t={span}", True) for span in ("0.000,3.000", "3.000,7.000")}
