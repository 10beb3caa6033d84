"""The demo itself: once without trouble, once killed over and over, with the same bytes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra import catalog
from infra.catalog import records
from infra.storage import Storage
from pipelines.demo_source import write_demo_source

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TABLES = ("samples", "scores", "decisions", "captions", "documents", "tokens", "packs")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "photographs"
    write_demo_source(folder)
    return folder


def command(module, photographs, workspace, *more):
    source = {"name": "photographs", "kind": "folder", "path": str(photographs)}
    short = ("train.steps=3", "train.warmup_steps=1")
    overrides = (f"workspace={workspace}", f"sources=[{json.dumps(source)}]", *short)
    return [sys.executable, "-m", module, *more, *overrides]


def run_demo(photographs, workspace, timeout_s):
    return subprocess.run(
        command("pipelines.demo", photographs, workspace),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def contents(workspace):
    """Every file of every table by its hash, and what the records say of it."""
    storage = Storage(str(workspace))
    files = {}
    for kind in TABLES:
        for path, _, _ in storage.find(kind):
            if "listing-" not in path:
                files[path] = hashlib.sha256(storage.read(path)).hexdigest()
    return files


@pytest.fixture(scope="module")
def demo(photographs, tmp_path_factory):
    """The workspace of an uninterrupted demo, and what it printed."""
    workspace = tmp_path_factory.mktemp("demo") / "workspace"
    done = run_demo(photographs, workspace, timeout_s=900)
    assert done.returncode == 0, done.stderr
    return workspace, done.stdout, done.stderr


def test_every_input_row_ends_exactly_once(demo, photographs):
    workspace, _, _ = demo
    con = catalog.connect(Storage(str(workspace)))
    pictures = [
        path
        for path in photographs.iterdir()
        if path.suffix not in (".json", ".txt") and not path.name.startswith(".")
    ]
    rows = con.sql("SELECT key, status, reason, failed_type FROM ledger").fetchall()
    assert sorted(key for key, *_ in rows) == sorted(path.name for path in pictures)
    assert {status for _, status, _, _ in rows} == {"kept", "rejected", "failed"}
    assert all(reason for _, status, reason, _ in rows if status == "rejected")
    assert all(kind for _, status, _, kind in rows if status == "failed")


def test_the_packs_hold_every_kept_document_once(demo):
    con = catalog.connect(Storage(str(demo[0])))
    [(kept,)] = con.sql("SELECT count(*) FROM ledger WHERE status = 'kept'").fetchall()
    [(packed, distinct)] = con.sql(
        "SELECT count(pack), count(DISTINCT doc_id) FILTER (pack IS NOT NULL) FROM pack_plan"
    ).fetchall()
    assert kept == packed == distinct > 50


def test_the_demo_tells_what_came_of_it(demo):
    _, said, _ = demo
    for word in ("kept", "rejected", "failed", "tokens", "packs", "loss", "nextscale sql"):
        assert word in said
    [report] = [line.split()[-1] for line in said.splitlines() if line.startswith("report")]
    page = Path(report).read_text()
    assert "<svg" in page
    assert "data:image/jpeg" in page


def test_the_losses_go_down(demo):
    [log] = Path(demo[0]).glob("train/*/*/log.jsonl")
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["vision_loss"] < steps[0]["vision_loss"]


def test_a_second_run_skips_all_phases(demo, photographs):
    workspace, _, _ = demo
    before = contents(workspace)
    done = run_demo(photographs, workspace, timeout_s=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("  ")]
    assert lines
    assert all("up to date" in line for line in lines)
    assert contents(workspace) == before


def test_killed_at_any_moment_the_tables_have_the_same_bytes(demo, photographs, tmp_path):
    """The driver dies again and again (its Ray session with it), with another size of units."""
    workspace, _, _ = demo
    killed = tmp_path / "killed"
    sizes = ("cheap.pool.unit_rows=20", "models.pool.workers=1", "tokenize.pool.unit_rows=24")
    arguments = [*command("pipelines.cli", photographs, killed, "pack", "demo"), *sizes]
    patience_s, kills = 14.0, 0
    while True:
        process = subprocess.Popen(
            arguments, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            _, said = process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            # Only the driver: what it started must notice by itself.
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            patience_s *= 1.2  # an unlucky run would otherwise be killed at its start for ever
            time.sleep(1)
            continue
        assert process.returncode == 0, said.decode()
        break
    assert kills > 0
    assert contents(killed) == contents(workspace)
    assert len(records(Storage(str(killed)))) == len(records(Storage(str(workspace))))
