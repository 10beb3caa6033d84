"""The files that web documents name: what is there is read, what strangers made up is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.runs import TableRecord
from infra.storage import Storage
from pipelines.inputs import SampleInput
from pipelines.phase import Phase
from pipelines.source import Source
from pipelines.sources import index_phase
from pipelines.web_input import WebInput

Run = Callable[[Storage, Phase], TableRecord]
Put = Callable[[dict[str, bytes]], str]


def load(root: str, workspace: Path, run_alone: Run, max_images: int = 100) -> list[dict[str, Any]]:
    source = Source(name="web", kind="jsonl", media="interleaved", path=root)
    storage = Storage(str(workspace))
    given = WebInput(SampleInput(source, run_alone(storage, index_phase(source))), max_images)
    rows = given.load(storage, given.rows(storage, 0))
    assert set(given.columns) == set(rows.column_names)
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


def line(*images: str | None, texts: list[str | None] | None = None) -> bytes:
    return json.dumps({"texts": texts or [None] * len(images), "images": images}).encode() + b"\n"


def ends(row: dict[str, Any]) -> list[bytes | str]:
    """What came of each picture: its bytes, or the type of its error."""
    return [p["error"]["type"] if p["error"] else p["data"] for p in row["pictures"]]


def test_pictures_are_read_beside_their_documents(put: Put, tmp_path: Path, run_alone: Run) -> None:
    pages = line("a.png", None, "deep/b c.png", "gone.png", "a.png") + b"{broken\n" + line("a.png")
    root = put({"pages.jsonl": pages, "a.png": b"A", "deep/b c.png": b"BC"})
    first, broken, last = load(root, tmp_path / "ws", run_alone)
    assert ends(first) == [b"A", b"BC", "missing"]
    assert [picture["place"] for picture in first["pictures"]] == [0, 2, 3]
    assert (broken["error"]["type"], broken["pictures"]) == ("bad_json", [])
    assert ends(last) == [b"A"]
    some = load(root, tmp_path / "ws", run_alone, max_images=2)
    assert [len(row["pictures"]) for row in some] == [2, 0, 1]


def test_names_that_lead_elsewhere_are_refused(put: Put, tmp_path: Path, run_alone: Run) -> None:
    wild = [
        "../outside.png",
        "deep/../../outside.png",
        "a\0.png",
        "https://example.com/a.png",
        "x" * 1_000_000,
        "y/" * 5_000 + "a.png",
    ]
    root = put({"pages.jsonl": line(*wild, "a.png"), "a.png": b"A", "../outside.png": b"secret"})
    [row] = load(root, tmp_path / "ws", run_alone)
    assert row["error"] is None
    assert ends(row) == ["bad_uri"] * len(wild) + [b"A"]
    for picture in row["pictures"][:-1]:
        assert "\n" not in picture["error"]["message"]
        assert len(picture["error"]["message"]) < 300


def test_what_is_no_file_is_not_opened(tmp_path: Path, run_alone: Run) -> None:
    root = tmp_path / "source"
    (root / "folder").mkdir(parents=True)
    os.mkfifo(root / "pipe.png")  # would wait for ever
    (root / "real.png").write_bytes(b"A")
    (root / "link.png").symlink_to(root / "real.png")
    names = ["folder", "pipe.png", "/dev/zero", str(root / "real.png"), "link.png", "real.png/x"]
    (root / "pages.jsonl").write_bytes(line(*names))
    [row] = load(str(root), tmp_path / "ws", run_alone)
    assert ends(row) == ["bad_uri"] * 3 + [b"A", b"A", "missing"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_picture_is_its_own_error(tmp_path: Path, run_alone: Run) -> None:
    (tmp_path / "a.png").write_bytes(b"A")
    (tmp_path / "a.png").chmod(0)
    (tmp_path / "pages.jsonl").write_bytes(line("a.png"))
    [row] = load(str(tmp_path), tmp_path / "ws", run_alone)
    assert ends(row) == ["forbidden"]


def test_no_rows_have_all_columns(tmp_path: Path, run_alone: Run) -> None:
    (tmp_path / "pages.jsonl").write_bytes(line("a.png"))
    source = Source(name="web", kind="jsonl", media="interleaved", path=str(tmp_path))
    storage = Storage(str(tmp_path / "ws"))
    given = WebInput(SampleInput(source, run_alone(storage, index_phase(source))), 5)
    rows = given.load(storage, given.rows(storage, 0).slice(0, 0))
    assert set(given.columns) == set(rows.column_names)
    assert isinstance(rows, pa.Table)
