"""Failed rows tried again: alone, merged byte for byte, and killed in the middle.

The driver that is killed is this file run as a script, with a job as JSON.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import catalog, runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.schema import ERROR, REJECTIONS
from infra.storage import Storage
from operators.caption import Caption
from pipelines import retry as retrying
from pipelines.curate import curate
from pipelines.decide import Decide
from pipelines.duplicates import Duplicates, Perceptual
from pipelines.execution import run_phase
from pipelines.job import Retry
from pipelines.recipe import Recipe
from pipelines.retry import Outcome, check_choice, failed_rows, retry
from pipelines.rules import Rule
from pipelines.sections import Captions, Cheap, Documents, Models, Pool
from pipelines.source import Source
from pipelines.sources import index_phase
from pipelines.status import Look, State

POOL = Pool(unit_rows=2, batch_rows=2)
MISSING = ("china.jpg", "coffee.png", "rocket.jpg")


def make_recipe(workspace: Path, pictures: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "dataset": "photos",
        "workspace": str(workspace),
        "sources": (Source(name="p", kind="parquet", path=str(pictures), part_files=1),),
        "cheap": Cheap(pool=POOL),
        "models": None,
        "decide": Decide(rules=(Rule(name="small", keep="width >= 256"),)),
        "captions": Captions(pool=POOL),
        "documents": Documents(pool=POOL),
    }
    return Recipe(**(values | changes))


def again(recipe: Recipe, what: Retry) -> list[Outcome]:
    check_choice(recipe, what)
    return retry(recipe, what)


def parts(recipe: Recipe) -> dict[str, list[str]]:
    """The hash of every part of every table, wherever its file lies."""
    storage = recipe.storage
    return {
        record.table: [
            hashlib.sha256(storage.read(record.path(part))).hexdigest()
            for part in range(len(record.parts))
        ]
        for record in catalog.records(storage)
    }


def computed(recipe: Recipe) -> dict[str, int]:
    """Rows that each phase computed since the last call."""
    storage = recipe.storage
    told = [storage.read_json(f"runs/{name}") for name in storage.names("runs")]
    storage.remove("runs")
    return {run["table"]: run["rows_computed"] for run in told if "rows_computed" in run}


@pytest.fixture
def linked(photos: Path, tmp_path: Path) -> Path:
    """Two tables of URIs beside photographs, some of which are not there yet."""
    folder = tmp_path / "pictures"
    shutil.copytree(photos, folder)
    (folder / "none.jpg").write_bytes(b"")
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
    late = sorted({"astronaut.png", "flower.jpg"})
    for number, some in enumerate((sorted({*names} - {*late}), late)):
        table = pa.table({"image": some, "caption": [f"A picture of {name}." for name in some]})
        pq.write_table(table, folder / f"{number}.parquet")
    (folder / "away").mkdir()
    for name in MISSING:
        (folder / name).rename(folder / "away" / name)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_files_that_come_later(tmp_path: Path, linked: Path) -> None:
    recipe = make_recipe(tmp_path / "ws", linked)
    curate(recipe)
    before = {r.table: r for r in catalog.records(recipe.storage)}
    assert before["scores/p/cheap"].num_failed == 4
    computed(recipe)
    missing = Retry(stage="load", type="missing")

    # Nothing has come: nothing changes, and nothing that depends on it is looked at.
    assert again(recipe, missing) == [Outcome("scores/p/cheap", 3, 0)]
    assert computed(recipe) == {"scores/p/cheap": 3}
    assert {r.table: r for r in catalog.records(recipe.storage)} == before

    # One has come: it is scored, decided, captioned and made a document, and nothing else is.
    (linked / "away" / MISSING[0]).rename(linked / MISSING[0])
    assert again(recipe, missing) == [Outcome("scores/p/cheap", 3, 1)]
    assert computed(recipe) == {"scores/p/cheap": 3, "captions/photos": 1, "documents/photos": 1}
    after = {r.table: r for r in catalog.records(recipe.storage)}
    for table in ("scores/p/cheap", "captions/photos", "documents/photos"):
        # The other part stays the file that it was.
        assert after[table].parts[1] == before[table].parts[1]
        assert recipe.storage.exists(after[table].path(1))
        assert not recipe.storage.exists(before[table].path(0))
    for name in MISSING[1:]:
        (linked / "away" / name).rename(linked / name)
    # All that failed: `none.jpg` is empty still.
    assert again(recipe, Retry()) == [Outcome("scores/p/cheap", 3, 2)]
    curate(recipe)
    assert computed(recipe) == {"scores/p/cheap": 3, "captions/photos": 2, "documents/photos": 2}

    fresh = make_recipe(tmp_path / "fresh", linked)
    curate(fresh)
    assert parts(recipe) == parts(fresh)
    for ours, theirs in zip(
        catalog.records(recipe.storage), catalog.records(fresh.storage), strict=True
    ):
        assert ours.version == theirs.version


@pytest.mark.usefixtures("ray_session")
def test_a_sidecar_that_was_mended(tmp_path: Path, photos: Path) -> None:
    """Its file is indexed again; the others are not."""
    folder = tmp_path / "pictures"
    shutil.copytree(photos, folder)
    sidecar = folder / "coffee.json"
    whole, stamp = sidecar.read_bytes(), sidecar.stat().st_mtime_ns
    sidecar.write_bytes(whole.replace(b"{", b"["))
    os.utime(sidecar, ns=(stamp, stamp))
    storage = Storage(str(tmp_path / "ws"))
    source = Source(name="p", kind="folder", path=str(folder), part_rows=5)
    phase = index_phase(source)
    broken = run_phase(storage, phase)
    assert broken.num_failed == 1
    sidecar.write_bytes(whole)
    os.utime(sidecar, ns=(stamp, stamp))
    assert run_phase(storage, index_phase(source)) == broken
    mended = run_phase(storage, index_phase(source), Retry())
    assert (mended.num_failed, mended.num_rows) == (0, broken.num_rows)
    assert mended.version == mended.fingerprint == broken.fingerprint != broken.version
    fresh = run_phase(Storage(str(tmp_path / "fresh")), phase_in(tmp_path / "fresh", source))
    for number in range(len(fresh.parts)):
        ours = storage.read(mended.path(number))
        assert ours == (tmp_path / "fresh" / fresh.path(number)).read_bytes()


def phase_in(workspace: Path, source: Source) -> Any:
    return index_phase(source)


def test_a_row_that_failed_in_several_replicas_is_counted_once(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))

    def table(name: str, types: list[str]) -> TableRecord:
        rows = [
            {"doc_id": f"{n}", "error": {"stage": "codes", "type": type_, "message": "m"}}
            for n, type_ in enumerate(types)
        ]
        schema = pa.schema([("doc_id", pa.string()), ERROR.remove_metadata()])
        made = pa.Table.from_pylist(rows, schema=schema)
        storage.write_part(f"{name}/v/part-00000.parquet", made, schema, "doc_id")
        part = Part("v/part-00000.parquet", len(rows), len(rows))
        return TableRecord(name, "f", "r", "doc_id", (part,))

    tokens = [
        table("tokens/photos-256", ["corrupt", "corrupt", *REJECTIONS]),
        table("tokens/photos-256-r1", ["corrupt", "corrupt", *REJECTIONS]),
        table("tokens/photos-256-r2", ["corrupt", "corrupt", "lost"]),
    ]
    assert failed_rows(storage, tokens) == {("codes", "corrupt"): 2, ("codes", "lost"): 1}
    # Those of several sources are different rows.
    scores = [table(f"scores/{name}/cheap", ["corrupt"] * 2) for name in ("a", "b")]
    assert failed_rows(storage, [*scores, *tokens])["codes", "corrupt"] == 4


def test_mistakes_are_told_before_the_work(
    curated: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(recipe: Recipe, what: Retry) -> str:
        with pytest.raises(ConfigError) as raised:
            check_choice(recipe, what)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    said = told(curated, Retry(stage="prob"))
    assert "no failed row is prob:*" in said
    # `half.png` failed when it was indexed and in all tables since, which is one row.
    for row in ("probe:truncated (1)", "index:bad_sidecar (1)", "probe:unknown_format (1)"):
        assert row in said
    assert "no failed row is probe:lost" in told(curated, Retry("probe", "lost"))
    check_choice(curated, Retry("probe", "truncated"))
    check_choice(curated, Retry())
    other = dataclasses.replace(curated, documents=Documents(level=512))
    assert "documents/mixed: its parameters" in told(other, Retry())
    new = dataclasses.replace(curated, dataset="other")
    assert "decisions/other was never made: run `nextscale curate` first" in told(new, Retry())


def test_other_rows_are_no_matter_of_a_retry(
    recipe: Recipe, curate_here: Callable[[Recipe], TableRecord]
) -> None:
    """Gates, rules and duplicates say which rows there are, and a retry computes failed ones."""

    def gated(gate: str) -> Models:
        return Models(gate=gate, aesthetics=None, topics=None)

    copies = Duplicates(memory_gb=0.5)
    made = dataclasses.replace(recipe, models=gated("width > 64"), duplicates=copies)
    curate_here(made)
    check_choice(made, Retry())
    rules = Decide(rules=(Rule(name="small", keep="width >= 100"),))
    changes: tuple[tuple[str, dict[str, Any]], ...] = (
        ("scores/some/models", {"models": gated("width > 128")}),
        (
            "duplicates/mixed/perceptual",
            {"duplicates": Duplicates(memory_gb=0.5, perceptual=Perceptual(radius=2))},
        ),
        ("duplicates/mixed/exact", {"duplicates": dataclasses.replace(copies, gate="width > 99")}),
        ("decisions/mixed", {"decide": rules}),
    )

    def refused() -> None:
        for table, change in changes:
            with pytest.raises(ConfigError, match=f"^{table} is not up to date .*nextscale curate"):
                check_choice(dataclasses.replace(made, **change), Retry())

    refused()
    # A retry that was killed leaves tables older than those before them: that is no change.
    storage = made.storage
    cheap = runs.load_record(storage, "scores/some/cheap")
    assert cheap is not None
    mended = dataclasses.replace(cheap.parts[0], failures="fewer")
    cheap = dataclasses.replace(cheap, parts=(mended, *cheap.parts[1:]))
    runs.save_record(storage, cheap)
    with pytest.raises(ConfigError, match="scores/some/models is not up to date"):
        check_choice(made, Retry())
    runs.finish(storage, cheap, {}, (), time.time(), {"retry": "*:*", "rows_recovered": 1})
    check_choice(made, Retry())
    changes = changes[1:]
    refused()


def test_a_judgement_of_captions_that_is_no_more_goes(
    curated: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, table = curated.storage, "caption_decisions/mixed"
    monkeypatch.setattr(retrying, "curate", lambda recipe, run: None)
    for rules, stays in (((Rule(name="any", keep="true"),), True), ((), False)):
        storage.write_json(f"{table}/_table.json", {})
        retry(dataclasses.replace(curated, captions=Captions(rules=rules)), Retry())
        assert storage.exists(table) == stays


class Endpoint(BaseHTTPRequestHandler):
    """Chat completions that describe a request by its hash; slow, or refusing, on demand."""

    protocol_version = "HTTP/1.1"
    refuse = 0  # as many pictures as this, the same ones each time
    refused: set[str] = set()
    asked: list[str] = []
    pause_s = 0.0

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "seer"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        name = hashlib.sha256(body).hexdigest()
        time.sleep(self.pause_s)
        Endpoint.asked.append(name)
        if len(Endpoint.refused) < self.refuse:
            Endpoint.refused.add(name)
        if name in Endpoint.refused:
            self.answer(400, {"error": {"message": "no"}})
            return
        text = f"A picture whose request begins with {name[:12]} is described here."
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 300, "completion_tokens": 14}
        self.answer(200, {"choices": [choice], "usage": usage})

    def answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Endpoint.refuse, Endpoint.pause_s = 5, 0.0
    Endpoint.refused, Endpoint.asked = set(), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def described_recipe(workspace: Path, photos: Path, url: str) -> Recipe:
    caption = Caption(engine="openai", base_url=url, model="seer", concurrency=1, max_retries=0)
    return make_recipe(
        workspace,
        photos,
        sources=(Source(name="p", kind="folder", path=str(photos), part_rows=100),),
        captions=Captions(operator=caption, pool=Pool(unit_rows=1, batch_rows=1)),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_an_endpoint_that_refused_and_a_retry_that_is_killed(
    tmp_path: Path, photos: Path, endpoint: str
) -> None:
    workspace = tmp_path / "ws"
    recipe = described_recipe(workspace, photos, endpoint)
    curate(recipe)
    before = {r.table: r for r in catalog.records(recipe.storage)}
    assert before["captions/photos"].num_failed == before["documents/photos"].num_failed == 5
    assert len(Endpoint.asked) == 8
    failed = set(Endpoint.refused)
    Endpoint.refuse, Endpoint.refused, Endpoint.asked, Endpoint.pause_s = 0, set(), [], 0.4

    # Killed when two of the five have an answer that is on disk.
    job = {"workspace": str(workspace), "photos": str(photos), "url": endpoint}
    with open(tmp_path / "driver.log", "w") as log:
        driver = subprocess.Popen(
            [sys.executable, __file__, json.dumps(job)],
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
        )
    deadline = time.monotonic() + 120
    units = "captions/photos/*/_units/*.parquet"
    while len(list(workspace.glob(units))) < 2:
        assert driver.poll() is None, (tmp_path / "driver.log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "driver.log").read_text()
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(1)  # its workers learn of it

    # The version in use is the one before: to everything else nothing has happened.
    kept = len(list(workspace.glob(units)))
    assert 2 <= kept < 5
    curate(recipe)
    assert {r.table: r for r in catalog.records(recipe.storage)} == before
    states: list[State] = []
    curate(recipe, run=Look(states))
    told = {state.table: state.why for state in states}
    assert told["captions/photos"] == "8 rows, 5 failed, a retry is half done"
    assert told["documents/photos"] == "8 rows, 5 failed"
    asked = len(Endpoint.asked)
    Endpoint.pause_s = 0.0
    outcomes = again(recipe, Retry(stage="caption"))
    assert outcomes == [Outcome("captions/photos", 5, 5), Outcome("documents/photos", 5, 5)]
    # Only rows that had failed were asked for, and those on disk not again.
    assert set(Endpoint.asked) == failed
    assert len(Endpoint.asked) - asked == 5 - kept
    assert not list(workspace.glob(units))

    fresh = described_recipe(tmp_path / "fresh", photos, endpoint)
    curate(fresh)
    ours, theirs = parts(recipe), parts(fresh)
    captions = [
        pa.concat_tables(
            one.storage.read_table(record.path(part)) for part in range(len(record.parts))
        )
        for one in (recipe, fresh)
        if (record := runs.load_record(one.storage, "captions/photos")) is not None
    ]
    # Seconds that an answer took are its own each time; all else is the same.
    timed = [name for name in captions[0].column_names if name == "latency_s"]
    assert captions[0].drop_columns(timed) == captions[1].drop_columns(timed)
    for table in ours.keys() - ({"captions/photos"} if timed else set()):
        assert ours[table] == theirs[table]

    # The selection is known, nothing is left to do: the same command says so and ends.
    assert again(recipe, Retry(stage="caption")) == []


def main(job: dict[str, str]) -> None:
    from infra.cluster import session

    recipe = described_recipe(Path(job["workspace"]), Path(job["photos"]), job["url"])
    with session(num_cpus=4):
        again(recipe, Retry(stage="caption"))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
