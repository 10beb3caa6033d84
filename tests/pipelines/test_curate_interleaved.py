"""Web documents, good and bad, from JSONL and Parquet to tokens: every row ends exactly once."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import catalog
from infra.config import ConfigError, build
from infra.runs import TableRecord
from infra.schema import doc_id
from infra.storage import Storage
from pipelines import curate_interleaved
from pipelines.curate_interleaved import curate
from pipelines.phase import Phase
from pipelines.recipe import Recipe
from pipelines.refresh import refresh
from pipelines.status import Look, NotDoneError, State
from pipelines.tokenize_documents import tokenize_phase

pytest.importorskip("py3langid")

Run = Callable[[Storage, Phase], TableRecord]
Member = str | tuple[str | None, str | None]
WORDS = "The boats came home with the tide, and the whole harbour smelled of salt and tar."


def lists(*members: Member) -> dict[str, Any]:
    pairs = [
        m if isinstance(m, tuple) else (None, m) if m.endswith((".png", ".jpg")) else (m, None)
        for m in members
    ]
    return {"texts": [text for text, _ in pairs], "images": [image for _, image in pairs]}


PAGES: list[tuple[Any, tuple[str, str | None]]] = [
    (lists(WORDS, "coffee.png", "A cup.", "rocket.jpg", "A night."), ("kept", None)),
    (lists("chelsea.png", (WORDS, "astronaut.png")) | {"url": "https://a.b"}, ("kept", None)),
    (
        lists(WORDS, "gone.jpg", "But the cat is here.", "chelsea.png", "chelsea.png"),
        ("kept", None),
    ),
    (lists(WORDS, "gone.jpg", "page.png"), ("rejected", "pictures")),
    (lists(WORDS + " Alone."), ("rejected", "pictures")),
    (lists("rocket.jpg"), ("rejected", "words")),
    (lists(WORDS, "coffee.png", "A  cup.", "rocket.jpg", "A night."), ("rejected", "original")),
    ({"texts": [WORDS], "images": [None, "coffee.png"]}, ("failed", "index:bad_document")),
    ({"texts": [7], "images": [None]}, ("failed", "index:bad_document")),
    ({"texts": [None, ""], "images": [None, None]}, ("failed", "web:empty")),
    (lists("NUL \0 in a text", "coffee.png"), ("failed", "web:bad_text")),
    ({"title": "no lists"}, ("failed", "index:no_document")),
    (lists("x" * 1_000_000, "coffee.png"), ("rejected", "words")),
    (lists(WORDS, "../coffee.png", *["coffee.png"] * 10_000), ("kept", None)),
]

RULES = [
    {"name": "pictures", "keep": "num_images_kept >= 1"},
    {"name": "words", "keep": "num_words >= 5"},
    {"name": "original", "keep": "NOT exact_duplicate"},
    {"name": "english", "keep": "language = 'en'"},
]


@pytest.fixture(scope="module")
def web(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages as lines, some as a table, their pictures beside them."""
    root = tmp_path_factory.mktemp("web")
    for folder in ("lines", "tables"):
        (root / folder).mkdir()
        for file in photos.glob("*.[jp][pn]g"):
            (root / folder / file.name).write_bytes(file.read_bytes())
    lines = "\n".join(json.dumps(page) for page, _ in PAGES)
    (root / "lines/pages.jsonl").write_text(lines)
    (root / "lines/page.png").write_text("no picture")
    table = pa.Table.from_pylist([lists("A flower.", "flower.jpg", f"{WORDS} Again.")])
    pq.write_table(table, root / "tables/pages.parquet")
    return root


def make_recipe(workspace: Path | str, root: Path | str, **changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "dataset": "pages",
        "workspace": str(workspace),
        "sources": [
            {"name": "a", "kind": "jsonl", "media": "interleaved", "path": f"{root}/lines"},
            {"name": "b", "kind": "parquet", "media": "interleaved", "path": f"{root}/tables"},
        ],
        "web": {"images": {"min_clarity": 0.2}, "pool": {"unit_rows": 5, "batch_rows": 3}},
        "duplicates": {"perceptual": None, "prefer": ["-num_chars"]},
        "decide": {"rules": RULES},
        "documents": {"pool": {"unit_rows": 3, "batch_rows": 2}},
        "tokenize": {"pool": {"unit_rows": 2, "batch_rows": 2}},
    }
    return build(Recipe, tree | changes)


def ledger(storage: Storage) -> list[tuple[str, str | None]]:
    """How the lines of source a ended, in order."""
    with catalog.connect(storage) as con:
        rows = con.execute("SELECT key, status, reason FROM ledger WHERE source = 'a'").fetchall()
    return [(s, r) for _, s, r in sorted(rows, key=lambda row: int(row[0].partition("#")[2]))]


def content(storage: Storage) -> dict[str, str]:
    """Table and part -> hash of the file; folders are named after what the rows come from."""
    return {
        re.sub("/v-[0-9a-f]+/", "/", uri): hashlib.sha256(storage.read(uri)).hexdigest()
        for kind in ("samples", "scores", "decisions", "documents", "tokens")
        for uri, *_ in storage.find(kind)
        if uri.endswith(".parquet") and "listing" not in uri
    }


def documents(storage: Storage) -> dict[str, list[str]]:
    """What the documents show, by their sample's key."""
    with catalog.connect(storage) as con:
        rows = con.execute(
            "SELECT key, segments FROM documents JOIN samples ON sample_id = sample_ids[1]"
        ).fetchall()
    return {
        key: [s["text"] if s["kind"] == "text" else f"{s['width']}x{s['height']}" for s in segments]
        for key, segments in rows
    }


def test_every_line_ends_once_and_documents_keep_order(
    web: Path, tmp_path: Path, run_alone: Run
) -> None:
    recipe = make_recipe(tmp_path / "ws", web)
    storage = recipe.storage
    curate_interleaved.check(recipe)
    record = curate(recipe, run=run_alone)
    assert ledger(storage) == [end for _, end in PAGES]
    assert record.facts == {"level": 256, "dataset": "pages"}
    found = documents(storage)
    assert len(found) == 5
    assert found["pages.jsonl#0"] == [WORDS, "304x208", "A cup.", "304x208", "A night."]
    assert found["pages.parquet#0"] == ["A flower.", "304x208", f"{WORDS} Again."]
    by_start = [found[key] for key in sorted(found, key=lambda key: int(key.partition("#")[2]))]
    assert by_start[2] == ["304x208", WORDS, "256x256"]
    assert by_start[3] == [f"{WORDS}\n\nBut the cat is here.", "304x208"]
    with catalog.connect(storage) as con:
        ids = con.execute("SELECT doc_id, task, sample_ids FROM documents").fetchall()
        # SQL sees why every picture went.
        went = con.execute(
            "SELECT i.reason, count(*) FROM (SELECT unnest(images) AS i FROM scores) "
            "WHERE NOT i.kept GROUP BY 1"
        ).fetchall()
    for id_, task, samples in ids:
        assert (task, id_) == ("interleaved", doc_id("pages", "interleaved", samples))
    assert dict(went) == {
        "missing": 2,
        "unknown_format": 1,
        "bad_uri": 1,
        "repeated": 1 + 98,
        "too_many_images": 9_901,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_with_ray_to_tokens(web: Path, tmp_path: Path, run_alone: Run) -> None:
    recipe = make_recipe(tmp_path / "ws", web)
    tokens = refresh(recipe.storage, tokenize_phase(recipe, curate(recipe)))
    assert (sum(part.num_rows for part in tokens.parts), tokens.num_failed) == (5, 0)
    # In this process and in other units: the same bytes.
    again = make_recipe(
        tmp_path / "again", web, web={"images": {"min_clarity": 0.2}}, documents={}, tokenize={}
    )
    run_alone(again.storage, tokenize_phase(again, curate(again, run=run_alone)))
    assert content(recipe.storage) == content(again.storage)
    before = recipe.storage.names("runs")
    curate(recipe)
    assert recipe.storage.names("runs") == before
    states: list[State] = []
    curate(recipe, run=Look(states))
    assert [state.table for state in states] == [
        "samples/a",
        "samples/b",
        "scores/a/web",
        "scores/b/web",
        "duplicates/pages/exact",
        "decisions/pages",
        "documents/pages",
    ]
    with catalog.connect(recipe.storage) as con:
        kinds = con.execute(
            "SELECT [s.kind FOR s IN segments], num_loss FROM tokens "
            "JOIN samples ON sample_id = sample_ids[1] WHERE key = 'pages.jsonl#0'"
        ).fetchall()
    [(kinds_of, num_loss)] = kinds
    assert kinds_of[:5] == ["text", "image", "text", "image", "text"]
    assert num_loss > 500


def test_only_what_depends_on_a_change_runs_again(
    web: Path, tmp_path: Path, run_alone: Run
) -> None:
    recipe = make_recipe(tmp_path / "ws", web)
    ran: list[str] = []

    def run(storage: Storage, phase: Any) -> TableRecord:
        try:
            return Look([])(storage, phase)
        except NotDoneError:
            ran.append(phase.table)
            return run_alone(storage, phase)

    def again(recipe: Recipe) -> list[str]:
        ran.clear()
        curate(recipe, run=run)
        return list(ran)

    assert len(again(recipe)) == 7
    assert again(recipe) == []
    decide = build(type(recipe.decide), {"rules": RULES[1:]})
    assert again(dataclasses.replace(recipe, decide=decide)) == [
        "decisions/pages",
        "documents/pages",
    ]
    # The document whose pictures were all out is kept now, with its words.
    assert [WORDS] in documents(recipe.storage).values()
    quality = dataclasses.replace(recipe.documents, jpeg_quality=80)
    changed = dataclasses.replace(recipe, documents=quality, decide=decide)
    assert again(changed) == ["documents/pages"]
    # A higher level: pictures that are too small for it go, and it is told.
    higher = dataclasses.replace(recipe, documents=dataclasses.replace(quality, level=512))
    assert again(higher)[:2] == ["scores/a/web", "scores/b/web"]
    with catalog.connect(recipe.storage) as con:
        small = con.execute(
            "SELECT count(*) FROM (SELECT unnest(images) AS i FROM scores) "
            "WHERE i.reason = 'too_small_for_level'"
        ).fetchone()
    assert small is not None
    assert small[0] > 3


def test_sources_on_s3_give_the_same_tables(
    s3: str, web: Path, tmp_path: Path, run_alone: Run
) -> None:
    for file in web.rglob("*.*"):
        Storage(s3).write(f"web/{file.relative_to(web)}", file.read_bytes())
    local, remote = make_recipe(tmp_path / "ws", web), make_recipe(f"{s3}/ws", f"{s3}/web")
    curate(local, run=run_alone)
    curate(remote, run=run_alone)
    assert ledger(remote.storage) == [end for _, end in PAGES]
    kinds = ("scores", "decisions", "documents")
    ours, theirs = content(local.storage), content(remote.storage)
    assert [ours[k] for k in ours if k.startswith(kinds)] == [
        theirs[k] for k in theirs if k.startswith(kinds)
    ]


def test_real_pages_with_defects(assets: Path, tmp_path: Path, run_alone: Run) -> None:
    lines = (assets / "docs/interleaved.jsonl").read_text().splitlines()
    (tmp_path / "web").mkdir()
    (tmp_path / "web/images").symlink_to(assets / "images")
    (tmp_path / "web/pages.jsonl").write_text("\n".join(lines))
    source = {"name": "a", "kind": "jsonl", "media": "interleaved", "path": f"{tmp_path}/web"}
    recipe = make_recipe(tmp_path / "ws", "", sources=[source])
    curate(recipe, run=run_alone)
    assert ledger(recipe.storage) == [("kept", None)] * len(lines)
    with catalog.connect(recipe.storage) as con:
        images = con.execute(
            "SELECT i.name, i.reason FROM (SELECT unnest(images) AS i FROM scores)"
        ).fetchall()
    for name, reason in images:
        there = (assets / name).exists()
        assert reason == (None if there else "missing")
    assert len(images) == sum(name is not None for x in lines for name in json.loads(x)["images"])


def test_mistakes_stop_before_any_work(web: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"

    def told(**changes: Any) -> str:
        with pytest.raises(ConfigError) as raised:
            curate_interleaved.check(make_recipe(workspace, web, **changes))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "unknown column `clarity`" in told(decide={"rules": [{"name": "r", "keep": "clarity"}]})
    assert "compares `phash`" in told(duplicates={})
    assert "min_aesthetic asks for a score" in told(web={"images": {"min_aesthetic": 4.0}})
    assert "say documents.level" in told(web={"images": {"level": 512}})
    gone = {"nsfw": {"weights": str(tmp_path / "gone.bin")}, "max_nsfw": 0.5}
    assert "WebImages" in told(web={"images": gone})
    source = {"name": "a", "kind": "jsonl", "media": "interleaved", "path": f"{web}/gone"}
    assert "does not exist: check `path`" in told(sources=[source])
    assert not (workspace / "samples").exists()
