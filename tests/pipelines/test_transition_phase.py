"""From frames to captions and documents of clips: parts, errors, retries, what is read."""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from infra import runs
from infra.pixels import encode_jpeg
from infra.runs import Part, TableRecord
from infra.schedules import nearest
from infra.schema import DECISIONS, FRAMES, SAMPLES, doc_id, sample_id
from infra.storage import Storage
from operators.transitions import Transitions
from pipelines.caption_phase import caption_decision
from pipelines.decide import Decide, decide
from pipelines.execution import run_phase
from pipelines.inputs import DatasetPart, DocumentInput, KeptInput, dataset_parts
from pipelines.job import Job, Retry
from pipelines.phase import Phase, check_columns
from pipelines.rules import Rule
from pipelines.scored import ScoredPart, rule_columns
from pipelines.sections import Pool
from pipelines.source import Source
from pipelines.transition_phase import (
    FramesInput,
    clip_document_phase,
    transition_phase,
    transition_schema,
)
from tests.pipelines.test_caption_phase import HOSTILE
from tokenize_offline.extract_codes import ExtractCodes

Run = Callable[[Storage, Phase], TableRecord]
SAID = "The cup slides to the left."
FAILED = {"stage": "frames", "type": "timeout", "message": "the decoder hangs"}
LEVEL = 256


@dataclasses.dataclass
class Clips:
    """Kept clips of two sources, their frames in slices, and the places of these."""

    storage: Storage
    sources: tuple[Source, ...]
    samples: tuple[TableRecord, ...]
    decisions: TableRecord
    parts: tuple[DatasetPart, ...]
    frames: TableRecord

    def transitions(self, **settings: Any) -> Phase:
        pool = Pool(batch_rows=4, unit_rows=5)
        operator = Transitions(**settings)
        return transition_phase("films", self.parts, self.frames, operator, pool=pool)

    def documents(self, captions: TableRecord, decisions: TableRecord | None = None) -> Phase:
        return clip_document_phase(
            "films",
            self.parts,
            self.frames,
            captions,
            level=LEVEL,
            pool=Pool(batch_rows=3, unit_rows=4),
            decisions=decisions,
        )


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    return make_clips(Storage(str(tmp_path / "workspace")))


def make_clips(storage: Storage, num_kept: int = 100) -> Clips:
    """Of 25 clips of each source every fifth is rejected; every seventh that is kept has failed."""
    sources = tuple(Source(name=name, kind="folder", path="/films") for name in ("old", "new"))
    samples, judged = [], []
    for source in sources:
        rows = [
            {
                "sample_id": sample_id(source.name, f"{number}.mp4"),
                "source": source.name,
                "key": f"{number}.mp4",
                "uri": f"{number % 3}.mp4",
                "start_s": 10.0 * number,
                "media": "video",
                "caption": f"Clip {number} of a cup." if number % 3 else None,
                "metadata": "{}",
            }
            for number in range(25)
        ]
        samples.append(write(storage, f"samples/{source.name}", SAMPLES, [rows[:15], rows[15:]]))
        judged += [rows[:15], rows[15:]]
    decisions = [
        [
            {
                "sample_id": row["sample_id"],
                "status": "kept" if number % 5 and number < num_kept else "rejected",
            }
            for number, row in enumerate(part)
        ]
        for part in judged
    ]
    decided = write(storage, "decisions/films", DECISIONS, decisions)
    parts = dataset_parts(sources, tuple(samples), slice_rows=8)
    assert [part.slices for part in parts] == [2, 2] * 4
    chosen = KeptInput(parts, decided, media=False)
    frames = [
        [frames_of(row) for row in chosen.rows(storage, number).to_pylist()]
        for number in range(len(parts))
    ]
    made = write(storage, f"frames/films-{LEVEL}", FRAMES, frames)
    return Clips(storage, sources, tuple(samples), decided, parts, made)


def frames_of(sample: dict[str, Any]) -> dict[str, Any]:
    number = int(sample["key"].partition(".")[0])
    if number % 7 == 1:
        return {"sample_id": sample["sample_id"], "error": FAILED}
    candidates = []
    for place in range(2 + 2 * (number % 4)):
        image = picture(sample["source"], number, place) if place % 2 == 0 else None
        candidates.append(
            {
                "timestamp_s": sample["start_s"] + 2.0 * place,
                "kept": image is not None,
                "flow": [1.0] * 128,
                "width": LEVEL,
                "height": LEVEL,
                "cropped": 0.0,
                "image": image,
            }
        )
    return {"sample_id": sample["sample_id"], "candidates": candidates}


def picture(source: str, number: int, place: int) -> bytes:
    """A plain frame of the level, in a colour of its own."""
    height, width = nearest(1, 1).image_size(LEVEL)
    colour = np.array([200 if source == "old" else 50, 10 * number, 20 * place], np.uint8)
    return encode_jpeg(np.broadcast_to(colour, (height, width, 3)).copy(), 90)


def write(
    storage: Storage, table: str, schema: pa.Schema, parts: list[list[dict[str, Any]]]
) -> TableRecord:
    """A table of these rows, as if a phase had made it."""
    files = []
    for number, rows in enumerate(parts):
        bare = pa.schema([field.remove_metadata() for field in schema])
        made = pa.Table.from_pylist(rows, schema=bare)
        file = f"{runs.version_of(table)}/part-{number:05d}.parquet"
        storage.write_part(f"{table}/{file}", made, schema, "sample_id")
        failed = sum(row.get("error") is not None for row in rows)
        files.append(Part(file, len(rows), failed))
    record = TableRecord(table, table, table, "sample_id", tuple(files))
    runs.save_record(storage, record)
    return record


def rows_of(storage: Storage, record: TableRecord) -> list[list[dict[str, Any]]]:
    """By part."""
    return [storage.read_table(record.path(n)).to_pylist() for n in range(len(record.parts))]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Settings that lead to a real server, and what it says first: texts or (status, body)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    says: list[Any] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet: two would wait for each other

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kinds = [part["type"] for part in body["messages"][0]["content"]]
            assert kinds == ["text", "image_url", "text", "image_url", "text"]
            with lock:
                text = says.pop(0) if says else SAID
            status, answer = text if isinstance(text, tuple) else (200, completion(text))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    yield {"engine": "openai", "base_url": url, "model": "seer", "retry_wait_s": 0.01}, says
    server.shutdown()
    server.server_close()
    thread.join()


def completion(text: str) -> bytes:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    usage = {"completion_tokens": 9, "prompt_tokens": 700}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


@pytest.mark.parametrize("whole", [True, False])
def test_every_clip_comes_once_with_its_own_frames(clips: Clips, whole: bool) -> None:
    clip_input = FramesInput(clips.parts, clips.frames, whole=whole)
    assert clip_input.num_parts == (4 if whole else 8)
    frames = rows_of(clips.storage, clips.frames)
    samples = {
        row["sample_id"]: row
        for record in clips.samples
        for part in rows_of(clips.storage, record)
        for row in part
    }
    if whole:
        frames = [frames[n] + frames[n + 1] for n in range(0, 8, 2)]
    for number, expected in enumerate(frames):
        rows = clip_input.rows(clips.storage, number)
        assert rows.nbytes < 20_000  # no pictures
        loaded = clip_input.load(clips.storage, rows)
        assert loaded.column_names == list(clip_input.columns)
        assert loaded.schema.field("candidates").type == FRAMES.field("candidates").type
        for row, frame in zip(loaded.to_pylist(), expected, strict=True):
            assert row.pop("candidates") == frame["candidates"]
            assert row.pop("error") == frame["error"]
            assert row == {k: v for k, v in samples[row["sample_id"]].items() if k != "error"}
        # Any few of the rows, such as a micro-batch or those of a retry, come the same.
        some = pa.array([0, len(rows) // 2, len(rows) - 1])
        assert clip_input.load(clips.storage, rows.take(some)).equals(loaded.take(some))
        nothing = clip_input.load(clips.storage, rows.slice(0, 0))
        assert (len(nothing), nothing.schema) == (0, loaded.schema)


def test_images_are_read_where_they_are_looked_at(clips: Clips, endpoint: Any) -> None:
    settings, _ = endpoint
    assert "candidates" not in clips.transitions().input.columns
    assert "candidates" not in clips.transitions(engine="given").input.columns
    assert "candidates" in clips.transitions(**settings).input.columns


@pytest.mark.parametrize("engine", ["none", "given"])
def test_without_a_model(clips: Clips, run_alone: Run, engine: str) -> None:
    phase = clips.transitions(engine=engine)
    check_columns(phase)
    captions = run_alone(clips.storage, phase)
    rows = rows_of(clips.storage, captions)
    # Parts are those of the dataset, as decisions are, and rows those of the frames.
    decisions = rows_of(clips.storage, clips.decisions)
    for part, judged in zip(rows, decisions, strict=True):
        kept = {row["sample_id"] for row in judged if row["status"] == "kept"}
        assert {row["sample_id"] for row in part} == kept
    failed = [row for part in rows for row in part if row["error"]]
    types = {row["error"]["type"] for row in failed}
    assert types == ({"timeout"} if engine == "none" else {"timeout", "no_caption"})
    documents = clips.documents(captions)
    check_columns(documents)
    made = run_alone(clips.storage, documents)
    assert made.facts == {"level": LEVEL, "dataset": "films"}
    told = {row["sample_id"]: row for part in rows for row in part}
    count = 0
    for row in [row for part in rows_of(clips.storage, made) for row in part]:
        [sample] = row["sample_ids"]
        assert row["doc_id"] == doc_id("films", "interleaved", [sample])
        assert row["task"] == "interleaved"
        assert row["error"] == told[sample]["error"]
        count += 1
        if row["error"] is None:
            kinds = [one["kind"] for one in row["segments"]]
            texts = [told[sample]["text"]] if told[sample]["text"] else []
            assert kinds == ["text"] * len(texts) + ["image"] * (len(kinds) - len(texts))
            assert [one["text"] for one in row["segments"][: len(texts)]] == texts
    assert count == len(told)


def test_from_frames_to_tokens(clips: Clips, run_alone: Run, endpoint: Any) -> None:
    settings, _ = endpoint
    captions = run_alone(clips.storage, clips.transitions(**settings))
    documents = run_alone(clips.storage, clips.documents(captions))
    # Parts of documents are those of the frames.
    sizes = [part.num_rows for part in clips.frames.parts]
    assert [part.num_rows for part in documents.parts] == sizes
    rows = {row["doc_id"]: row for part in rows_of(clips.storage, documents) for row in part}
    assert any(row["source"] == "new" for row in rows.values())
    fine = [row for row in rows.values() if row["error"] is None]
    for row in fine:
        segments = row["segments"]
        if segments[0]["kind"] == "text":
            assert segments[0]["text"].startswith("Clip ")
            segments = segments[1:]
        assert [one["kind"] for one in segments[::2]] == ["image"] * len(segments[::2])
        assert [one["text"] for one in segments[1::2]] == [SAID] * len(segments[1::2])
        assert all(one["loss"] for one in segments)
    two = DocumentInput(documents).rows(clips.storage, 0).filter(pc.field("error").is_null())[:2]
    batch = DocumentInput(documents).load(clips.storage, two)
    for row in ExtractCodes()(batch).to_pylist():
        assert row["error"] is None
        # The document's end is a text of its own where a picture stands before it.
        kinds = [one["kind"] for one in rows[row["doc_id"]]["segments"]]
        assert [one["kind"] for one in row["segments"]] == [*kinds, "text"]
        # Every position is predicted but the first, before which nothing stands.
        assert row["num_loss"] == row["num_tokens"] - 1


def test_a_clip_that_failed_for_a_moment_is_mended_alone(
    clips: Clips, run_alone: Run, endpoint: Any, tmp_path: Path
) -> None:
    settings, says = endpoint
    settings |= {"cache": str(tmp_path / "answers.sqlite"), "concurrency": 1, "max_retries": 0}
    says += [SAID, SAID, SAID, (503, b"down"), (400, b"refused")]
    phase = clips.transitions(**settings)
    first = run_alone(clips.storage, phase)
    before = rows_of(clips.storage, first)
    failed = {
        row["sample_id"]: row["error"]["type"] for part in before for row in part if row["error"]
    }
    own = {id_ for id_, type_ in failed.items() if type_ != "timeout"}
    assert sorted(failed[id_] for id_ in own) == ["http_400", "http_503"]
    documents = clips.documents(first)
    made = run_alone(clips.storage, documents)
    assert sum(part.num_failed for part in made.parts) == len(failed)
    # A retry tries them, and not what failed before it came here.
    job = Job(clips.storage, phase, "unused", first, Retry(), again=True)
    tried = {id_ for part in range(4) for id_ in job.split(part).rows["sample_id"].to_pylist()}
    assert tried == own
    says += ["Told in the retry."] * 2
    second = run_alone(clips.storage, phase)
    assert not says  # two were asked for, and no more
    for old, new in zip(before, rows_of(clips.storage, second), strict=True):
        for one, other in zip(old, new, strict=True):
            if one["sample_id"] not in own:
                assert other == one
            else:
                assert other["error"] is None
                texts = [said["text"] for said in other["transitions"]]
                assert sorted(set(texts) - {SAID}) == ["Told in the retry."]
    # Documents take over what was fine.
    mended = clips.documents(second)
    assert mended.row_spec == documents.row_spec
    job = Job(clips.storage, mended, "unused", made)
    tried = {id_ for part in range(8) for id_ in job.split(part).rows["sample_id"].to_pylist()}
    assert tried == failed.keys()


def test_more_clips_leave_the_others_alone(tmp_path: Path, run_alone: Run) -> None:
    storage = Storage(str(tmp_path / "workspace"))
    few = make_clips(storage, num_kept=8)
    captions = run_alone(storage, few.transitions())
    documents = run_alone(storage, few.documents(captions))
    all_ = make_clips(storage)
    ids = [
        {row["sample_id"] for part in rows_of(storage, record) for row in part}
        for record in (captions, all_.frames)
    ]
    job = Job(storage, all_.transitions(), "unused", captions)
    tried = {id_ for part in range(4) for id_ in job.split(part).rows["sample_id"].to_pylist()}
    failed = {r["sample_id"] for p in rows_of(storage, all_.frames) for r in p if r["error"]}
    assert tried == (ids[1] - ids[0]) | failed
    more = run_alone(storage, all_.transitions())
    job = Job(storage, all_.documents(more), "unused", documents)
    tried = {id_ for part in range(8) for id_ in job.split(part).rows["sample_id"].to_pylist()}
    assert tried == (ids[1] - ids[0]) | failed


def test_other_frames_make_other_captions(clips: Clips) -> None:
    """Even where nobody looks at them: whether a clip has failed comes with them."""
    other = dataclasses.replace(clips, frames=dataclasses.replace(clips.frames, row_spec="other"))
    assert other.transitions().row_spec != clips.transitions().row_spec
    asked: Any = {"engine": "openai", "base_url": "http://localhost/v1", "model": "m"}
    specs = {
        clips.transitions(**settings).row_spec
        for settings in ({}, asked, asked | {"prompt": "What?"}, asked | {"language": "en"})
    }
    assert len(specs) == 4
    same = clips.transitions(**asked | {"concurrency": 3, "base_url": "http://there/v1"})
    assert same.row_spec in specs


def test_rules_judge_clips_by_their_texts(clips: Clips, run_alone: Run, endpoint: Any) -> None:
    settings, says = endpoint
    refusal = "I'm sorry, but I can't help with that."
    says += [refusal] * 3
    captions = run_alone(clips.storage, clips.transitions(**settings, concurrency=1))
    rules = (
        Rule(name="checked", keep="len(checks) = 0"),
        Rule(name="told", keep="len(transitions) >= 2"),
    )
    Decide(rules=rules).check(rule_columns(transition_schema()))
    scored = tuple(ScoredPart(part, ()) for part in dataset_parts(clips.sources, clips.samples))
    judged = decide(clips.storage, caption_decision("films", scored, captions, rules))
    documents = run_alone(clips.storage, clips.documents(captions, judged))
    kept = {
        row["sample_id"]
        for part in rows_of(clips.storage, captions)
        for row in part
        if not row["error"] and not row["checks"] and len(row["transitions"]) >= 2
    }
    made = [row for part in rows_of(clips.storage, documents) for row in part]
    assert {sample for row in made for sample in row["sample_ids"]} == kept
    assert not any(row["error"] for row in made)
    bridges = {one["text"] for row in made for one in row["segments"] if one["kind"] == "text"}
    assert SAID in bridges
    assert refusal not in bridges


def test_hostile_answers_stay_texts(clips: Clips, run_alone: Run, endpoint: Any) -> None:
    settings, says = endpoint
    says += HOSTILE
    captions = run_alone(clips.storage, clips.transitions(**settings))
    documents = run_alone(clips.storage, clips.documents(captions))
    made = [row for part in rows_of(clips.storage, documents) for row in part]
    texts = {one["text"] for row in made for one in row["segments"] or () if one["text"]}
    expected = {text.encode("utf-8", "replace").decode().strip() for text in HOSTILE}
    # As with captions: one that says nothing makes no document.
    [empty] = [row for row in made if row["error"] and row["error"]["type"] == "no_text"]
    [told] = [
        row
        for part in rows_of(clips.storage, captions)
        for row in part
        if row["sample_id"] == empty["sample_ids"][0]
    ]
    assert told["error"] is None
    assert "empty" in told["checks"]
    lost = {said["text"] for said in told["transitions"]}
    assert expected - lost <= texts
    assert len(expected & texts) >= len(HOSTILE) - 4


def test_captions_of_other_clips_are_a_bug(clips: Clips, run_alone: Run) -> None:
    captions = run_alone(clips.storage, clips.transitions())
    part = rows_of(clips.storage, captions)[0]
    write(clips.storage, "captions/films", transition_schema(), [part[1:]] * 4)
    [record] = [runs.load_record(clips.storage, "captions/films")]
    assert record is not None
    with pytest.raises(AssertionError, match="of the same clips"):
        clips.documents(record).input.rows(clips.storage, 0)


def test_workers_write_the_same(
    clips: Clips, run_alone: Run, endpoint: Any, ray_session: None
) -> None:
    settings, _ = endpoint
    storage = clips.storage
    captions = run_alone(storage, clips.transitions(**settings))
    written = [storage.read(captions.path(n)) for n in range(4)]
    storage.remove("captions")
    again = run_phase(storage, clips.transitions(**settings))  # units of other sizes, in any order
    assert [storage.read(again.path(n)) for n in range(4)] == written
