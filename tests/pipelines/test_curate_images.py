"""The image pipeline on real photographs and on broken files: every row ends exactly once."""

import dataclasses
import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from infra import catalog, runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.storage import Storage
from operators.caption import Caption
from operators.clarity import Clarity
from pipelines import curate_images
from pipelines.balance import Balance
from pipelines.decide import Decide
from pipelines.recipe import Recipe
from pipelines.rules import Rule
from pipelines.sections import Captions, Cheap, Documents, Embeddings, Models, Ocr, Pool
from pipelines.source import Source

SMALL = Rule(name="small", keep="least(width, height) >= 256")
SHARPEST = Rule(name="sharpest", top=0.8, by="clarity")
POOL = Pool(unit_rows=4, batch_rows=3)


@pytest.fixture
def broken(photos: Path, tmp_path: Path) -> Path:
    """The photographs, and with them whatever goes wrong with files."""
    folder = tmp_path / "pictures"
    shutil.copytree(photos, folder)
    whole = (photos / "china.jpg").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.txt").write_text("half a palace")
    (folder / "text.jpg").write_text("no picture")
    (folder / "bad_sidecar.jpg").write_bytes(whole)
    (folder / "bad_sidecar.json").write_text("{")
    (folder / "no_caption.jpg").write_bytes(whole)
    (folder / "notes.md").write_text("left out")
    return folder


def make_recipe(workspace: Path, pictures: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "dataset": "photos",
        "workspace": str(workspace),
        "sources": (Source(name="p", kind="folder", path=str(pictures), part_rows=5),),
        "cheap": Cheap(pool=POOL),
        "models": None,
        "decide": Decide(rules=(SMALL, SHARPEST)),
        "captions": Captions(pool=POOL),
        "documents": Documents(pool=POOL),
    }
    return Recipe(**(values | changes))


def curate(recipe: Recipe) -> None:
    curate_images.check(recipe)
    curate_images.curate(recipe)


def fingerprints(workspace: Path) -> dict[str, str]:
    return {r.table: r.fingerprint for r in catalog.records(Storage(str(workspace)))}


def ran(workspace: Path) -> set[str]:
    """Tables with a run record; forgets them, so that the next call tells what is new."""
    storage = Storage(str(workspace))
    tables = {storage.read_json(f"runs/{name}")["table"] for name in storage.names("runs")}
    storage.remove("runs")
    return tables


def content(workspace: Path) -> dict[str, str]:
    return {
        str(file.relative_to(workspace)): hashlib.sha256(file.read_bytes()).hexdigest()
        for kind in ("scores", "decisions", "captions", "documents")
        for file in sorted((workspace / kind).rglob("*"))
        if file.is_file()
    }


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_every_row_ends_exactly_once(tmp_path: Path, broken: Path) -> None:
    curate(make_recipe(tmp_path / "ws", broken))
    con = catalog.connect(Storage(str(tmp_path / "ws")))
    ledger = con.execute("SELECT key, status, reason, failed_stage, failed_type FROM ledger")
    rows = {key: rest for key, *rest in ledger.fetchall()}
    pictures = {
        str(file.relative_to(broken))
        for file in broken.iterdir()
        if file.suffix in (".jpg", ".png")
    }
    [(in_ledger,)] = con.execute("SELECT count(*) FROM ledger").fetchall()
    assert in_ledger == len(rows) == len(pictures)
    assert rows.keys() == pictures
    failed = {key: row[2:] for key, row in rows.items() if row[0] == "failed"}
    assert failed == {
        "empty.jpg": ["probe", "empty"],
        "cut.jpg": ["probe", "truncated"],
        "text.jpg": ["probe", "unknown_format"],
        "bad_sidecar.jpg": ["index", "bad_sidecar"],
        "no_caption.jpg": ["caption", "no_caption"],
    }
    for status, reason, stage, type_ in rows.values():
        assert status in ("kept", "rejected", "failed")
        assert (stage is not None and type_ is not None) == (status == "failed")
        if status == "rejected":
            assert reason in ("small", "sharpest")
    # 9 decodable pictures with captions or not, none of them small, the best 80% are kept.
    counts = Counter(row[0] for row in rows.values())
    assert counts["rejected"] == 1
    documents = con.execute("SELECT count(*) FROM documents WHERE error IS NULL").fetchall()
    assert documents == [(counts["kept"],)]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_only_what_depends_on_a_change_runs_again(tmp_path: Path, photos: Path) -> None:
    workspace = tmp_path / "ws"
    first = make_recipe(workspace, photos)
    curate(first)
    every = {"samples/p", "scores/p/cheap", "decisions/photos", "captions/photos"}
    every.add("documents/photos")
    assert ran(workspace) == every
    curate(first)
    assert ran(workspace) == set()

    # A threshold: scores stand; captions and documents of rows that stay are taken over.
    looser = dataclasses.replace(first, decide=Decide(rules=(SMALL,)))
    before = fingerprints(workspace)
    curate(looser)
    assert ran(workspace) == {"decisions/photos", "captions/photos", "documents/photos"}
    assert before["scores/p/cheap"] == fingerprints(workspace)["scores/p/cheap"]
    fresh = dataclasses.replace(looser, workspace=str(tmp_path / "looser"))
    curate(fresh)
    assert content(workspace) == content(tmp_path / "looser")

    # A parameter of an operator: its group, and what follows from it.
    other = dataclasses.replace(first, cheap=Cheap(clarity=Clarity(short_side=128), pool=POOL))
    curate(other)
    assert ran(workspace) == every - {"samples/p"}

    # How the work is done: nothing.
    workers = dataclasses.replace(other, cheap=dataclasses.replace(other.cheap, pool=Pool()))
    curate(workers)
    assert ran(workspace) == set()

    # The level of the documents: only they.
    curate(dataclasses.replace(workers, documents=Documents(level=512, pool=POOL)))
    assert ran(workspace) == {"documents/photos"}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_sources_and_balancing(tmp_path: Path, photos: Path, broken: Path) -> None:
    sources = (
        Source(name="a", kind="folder", path=str(photos), part_rows=3),
        Source(name="b", kind="folder", path=str(broken), part_rows=100),
    )
    recipe = make_recipe(
        tmp_path / "ws",
        photos,
        sources=sources,
        decide=Decide(rules=(SMALL,), balance=Balance(by="format", cap=3)),
    )
    curate(recipe)
    con = catalog.connect(recipe.storage)
    counts = con.execute("SELECT count(*), count(DISTINCT sample_id) FROM ledger").fetchall()
    assert counts == [(8 + 13, 8 + 13)]
    kept = con.execute("SELECT topic, count(*) FROM decisions WHERE copies > 0 GROUP BY topic")
    assert dict(kept.fetchall()) == {"JPEG": 3, "PNG": 3}
    runs_seen = con.execute("SELECT count(*) FROM runs WHERE \"table\" LIKE 'scores/%'").fetchall()
    assert runs_seen == [(2,)]


def one_line(recipe: Recipe) -> str:
    with pytest.raises(ValueError) as raised:
        curate_images.check(recipe)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_mistakes_stop_before_any_work(tmp_path: Path, photos: Path) -> None:
    workspace = tmp_path / "ws"

    def told(**changes: Any) -> str:
        return one_line(make_recipe(workspace, photos, **changes))

    def rule(keep: str) -> Decide:
        return Decide(rules=(Rule(name="mine", keep=keep),))

    gone = Source(name="p", kind="folder", path=str(tmp_path / "gone"))
    assert "does not exist: check `path`" in told(sources=(gone,))
    assert "unknown column `clarty`: did you mean `clarity`" in told(decide=rule("clarty > 1"))
    assert "rule `mine`" in told(decide=rule("1) ok from s; copy s to 'x'; select (1"))
    nobody = Caption(engine="openai", base_url="http://127.0.0.1:9/v1", model="m")
    assert "127.0.0.1:9" in told(captions=Captions(operator=nobody))
    assert "balance.by" in told(decide=Decide(balance=Balance(by="width")))
    (tmp_path / "file").write_text("")
    assert "cannot be used" in one_line(make_recipe(tmp_path / "file/ws", photos))
    assert not (workspace / "samples").exists()


def test_prompts_ask_for_scores_that_there_are(tmp_path: Path, photos: Path) -> None:
    def check(prompt: str, **changes: Any) -> Recipe:
        caption = Caption(engine="vllm", model="m", prompt=prompt)
        recipe = make_recipe(tmp_path, photos, captions=Captions(operator=caption), **changes)
        curate_images.check_rules(recipe)
        return recipe

    with pytest.raises(ConfigError, match=r"names {ocr_text}, which .* add `ocr: {}`"):
        check("It reads {ocr_text}.", models=Models())
    for models in (None, Models(topics=None)):
        with pytest.raises(
            ConfigError, match=r"names {topic}, which .* add `models: {topics: {}}`"
        ):
            check("A picture of {topic|something}.", models=models, ocr=Ocr())
    assert check("{topic}: {ocr_text|nothing}", models=Models(), ocr=Ocr()).ocr == Ocr()


def test_a_cache_that_is_none_stops_before_any_work(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / "foreign.db"
    foreign.write_text("no cache, " * 200)
    asked: list[str] = []
    monkeypatch.setattr(curate_images, "check_endpoint", lambda url, *rest: asked.append(url))
    values = {"engine": "openai", "base_url": "http://host/v1", "model": "m"}

    def told(cache: Path, **settings: Any) -> str:
        caption = Caption(**values, cache=str(cache), **settings)
        return one_line(make_recipe(tmp_path / "ws", photos, captions=Captions(operator=caption)))

    assert f"caption cache `{foreign}`: file is not a database" in told(foreign)
    assert asked == ["http://host/v1"]
    assert f"caption cache `{foreign}`" in told(foreign, ask=False)
    assert f"caption cache `{foreign}/c`" in told(foreign / "c")
    assert len(asked) == 2
    given = Captions(operator=Caption(cache=str(foreign)))  # which asks nobody
    curate_images.check(make_recipe(tmp_path / "ws", photos, captions=given))


def planned(recipe: Recipe) -> dict[str, TableRecord]:
    """What the phases of a run would be, none of which runs."""
    found: dict[str, TableRecord] = {}

    def plan(storage: Storage, made: Any) -> TableRecord:
        parts = (Part("v-0/part-00000.parquet", 1),)
        record = TableRecord(made.table, made.fingerprint, made.row_spec, "sample_id", parts)
        return found.setdefault(made.table, record)

    curate_images.curate(recipe, run=plan)
    return found


def test_another_gate_makes_prompts_and_texts_with_its_scores_anew(
    tmp_path: Path, photos: Path
) -> None:
    """What a group saw stands in them, so that rows made before it saw more are not taken over."""
    caption = Caption(engine="vllm", model="m", prompt="It reads {ocr_text|nothing}.")
    recipe = make_recipe(
        tmp_path / "ws",
        photos,
        models=Models(aesthetics=None),
        ocr=Ocr(gate="clarity > 0.5"),
        captions=Captions(operator=caption),
        documents=Documents(text=("{text}", "{ocr_text}")),
    )

    def row_specs(**changes: Any) -> list[str]:
        changed = dataclasses.replace(recipe, **changes)
        given = dataclasses.replace(changed, captions=Captions())  # no word of the text in them
        captions, documents = planned(changed), planned(given)
        return [captions["captions/photos"].row_spec, documents["documents/photos"].row_spec]

    before = row_specs()
    assert row_specs() == before
    seen = [
        row_specs(ocr=Ocr(gate="clarity > 0.4")),
        row_specs(ocr=Ocr()),
        row_specs(models=Models(aesthetics=None, gate="width > 300")),
        # A gate asks scores, so that other scores open it for others.
        row_specs(cheap=Cheap(clarity=Clarity(short_side=128))),
    ]
    for specs in zip(before, *seen, strict=True):
        assert len(set(specs)) == len(specs)
    # More rows, other rules and gates of groups that nothing is made of change no row's values.
    assert row_specs(decide=Decide()) == before
    assert row_specs(embeddings=Embeddings(gate="clarity > 0.9")) == before
    plain = {
        "documents": Documents(),
        "captions": Captions(operator=Caption(engine="vllm", model="m")),
    }
    assert row_specs(**plain) == row_specs(**plain, ocr=Ocr(gate="clarity > 0.4"))
    ungated = row_specs(ocr=Ocr())
    assert row_specs(ocr=Ocr(), models=Models()) == ungated


def test_impossible_recipes(tmp_path: Path, photos: Path) -> None:
    for changes, message in (
        ({"dataset": "a b"}, "dataset 'a b'"),
        ({"sources": ()}, "sources is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            make_recipe(tmp_path, photos, **changes)
    with pytest.raises(ValueError, match="level is 300"):
        Documents(level=300)
    twice = (Source(name="p", kind="folder", path="x"),) * 2
    with pytest.raises(ValueError, match="source name `p` stands twice"):
        make_recipe(tmp_path, photos, sources=twice)


@pytest.mark.usefixtures("ray_session")
def test_too_many_workers_stop_at_once(tmp_path: Path, photos: Path) -> None:
    recipe = make_recipe(tmp_path / "ws", photos, cheap=Cheap(pool=Pool(workers=50)))
    with pytest.raises(ConfigError, match="needs 50 CPUs, the session has 4"):
        curate(recipe)


def test_nothing_is_left_of_a_refused_run(tmp_path: Path, photos: Path) -> None:
    recipe = make_recipe(tmp_path / "ws", photos)
    assert runs.load_record(recipe.storage, "samples/p") is None
