"""Estimates beside what really running everything comes to."""

import dataclasses
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra import catalog
from infra.config import ConfigError
from infra.schema import SAMPLES
from infra.storage import Storage
from operators.caption import Caption
from pipelines import estimate as estimating
from pipelines import refresh as refreshing
from pipelines.curate import curate
from pipelines.decide import Balance, Decide
from pipelines.drawn import Drawn
from pipelines.estimate import estimate
from pipelines.estimate_table import Line
from pipelines.estimator import Total
from pipelines.recipe import Recipe
from pipelines.rules import Rule
from pipelines.sample_run import Measured, Sample, run_sample
from pipelines.sections import Captions, Cheap, Documents, Pool, Vllm
from pipelines.source import Source

PICTURES = 200
POOL = Pool(unit_rows=32, batch_rows=16)


@pytest.fixture(scope="module")
def many(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cuts of photographs, of many sizes; some broken, some without a caption."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    names = ("astronaut.png", "chelsea.png", "coffee.png", "china.jpg", "flower.jpg")
    opened = [Image.open(photos / name).convert("RGB") for name in names]
    for number in range(PICTURES):
        picture = opened[number % len(opened)]
        side = int(rng.integers(150, min(400, *picture.size)))
        x, y = (int(rng.integers(0, length - side + 1)) for length in picture.size)
        path = folder / f"{number:04d}.jpg"
        picture.crop((x, y, x + side, y + side)).save(path, quality=90)
        if number % 17 == 0:
            path.write_bytes(path.read_bytes()[:2_000])
        if number % 11:
            path.with_suffix(".txt").write_text(f"Cut {number} of a photograph.")
    return folder


def make_recipe(workspace: Path, pictures: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "dataset": "photos",
        "workspace": str(workspace),
        "sources": (Source(name="p", kind="folder", path=str(pictures)),),
        "cheap": Cheap(pool=POOL),
        "models": None,
        "decide": Decide(rules=(Rule(name="small", keep="width >= 240"),)),
        "documents": Documents(pool=POOL),
    }
    return Recipe(**(values | changes))


def content(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_the_truth_is_inside_the_intervals(tmp_path: Path, many: Path) -> None:
    recipe = make_recipe(tmp_path / "ws", many)
    curate(recipe)
    before = content(tmp_path / "ws")
    lines, notes = estimate(recipe, 60, seed=1)
    assert content(tmp_path / "ws") == before
    assert not [name for name in recipe.storage.names() if name.startswith("estimate")]
    assert "60 of 200 rows" in notes[0]

    con = catalog.connect(recipe.storage)
    [(kept,)] = con.execute("SELECT count(*) FROM decisions WHERE status = 'kept'").fetchall()
    runs = dict(con.execute('SELECT "table", cpu_s FROM runs').fetchall())
    told = {line.table: line for line in lines}
    assert 0.5 * PICTURES < kept < 0.9 * PICTURES
    decisions = told["decisions/photos"].fine
    assert abs(decisions.value - kept) <= decisions.error < 0.3 * kept
    records = {record.table: record for record in catalog.records(recipe.storage)}
    assert set(told) == set(records)
    for table, record in records.items():
        line = told[table]
        size = sum(len(recipe.storage.read(record.path(n))) for n in range(len(record.parts)))
        # Tables of a few kilobytes are mostly text that repeats: the guess is rougher there.
        slack = 0 if table.startswith("documents/") else 0.05 * size
        assert abs(line.bytes.value - size) <= line.bytes.error + slack, table
        assert abs(line.rows.value - record.num_rows) <= line.rows.error, table
    failed = told["scores/p/cheap"].failed
    assert abs(failed.value - records["scores/p/cheap"].num_failed) <= failed.error
    for table in ("scores/p/cheap", "documents/photos"):
        # Other work on this machine makes either of them slower.
        assert 0.2 < told[table].cpu_s.value / runs[table] < 5

    # All rows leave no error.
    whole, _ = estimate(recipe, 10_000)
    for line in whole:
        record = records[line.table]
        size = sum(len(recipe.storage.read(record.path(n))) for n in range(len(record.parts)))
        assert (line.rows.value, line.rows.error) == (record.num_rows, 0)
        assert (line.bytes.value, line.bytes.error) == (pytest.approx(size), 0)
    assert {line.table: line.fine.value for line in whole}["decisions/photos"] == kept
    assert content(tmp_path / "ws") == before


@dataclass(frozen=True)
class Estimated:
    """An estimate, and the sample that it was made from."""

    recipe: Recipe
    sample: Sample
    lines: dict[str, Line]
    notes: list[str]

    def measured(self, table: str) -> Measured:
        [found] = [one for one in self.sample.ran if one.record.table == table]
        return found


@pytest.fixture(scope="module")
def estimated(many: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Estimated:
    """Of 50 rows: a quantile, balancing, and captions by engines that take 2 s to give none."""
    caption = Caption(
        engine="vllm", model="seer", prompt="Say it.", engine_kwargs={"tensor_parallel_size": 4}
    )
    recipe = make_recipe(
        tmp_path_factory.mktemp("estimated") / "ws",
        many,
        decide=Decide(
            rules=(Rule(name="clearest", top=0.9, by="clarity"),),
            balance=Balance(by="format", cap=80),
        ),
        captions=Captions(operator=caption, vllm=Vllm(engines=2), pool=POOL),
    )
    samples: list[Sample] = []

    def run(sample: Sample) -> None:
        run_sample(sample)
        samples.append(sample)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimating, "run_sample", run)
        patch.setattr(refreshing, "answer_with_vllm", lambda *_, **__: time.sleep(2))
        lines, notes = estimate(recipe, 50)
    return Estimated(recipe, samples[0], {line.table: line for line in lines}, notes)


def test_bounds_that_count_rows_are_scaled(estimated: Estimated) -> None:
    assert estimated.lines["decisions/photos"].fine.value == pytest.approx(80)  # 20 of the 50
    assert any("quantiles" in note for note in estimated.notes)
    assert any("`balance`" in note for note in estimated.notes)
    # There was no workspace, and there is none with tables now.
    assert estimated.recipe.storage.names() == []


def test_the_time_of_rules_goes_by_rows(estimated: Estimated) -> None:
    """The sample is one part, and so are all the pictures, which are four times as many."""
    line = estimated.lines["decisions/photos"]
    measured = estimated.measured("decisions/photos")
    assert line.wall_s.value == pytest.approx(measured.wall_s * PICTURES / 50)
    assert line.cpu_s.value == pytest.approx(measured.cpu_s * PICTURES / 50)


def test_engines_that_answer_before_the_units_are_told(estimated: Estimated) -> None:
    """Their GPUs are no part of the phase's pool: what ran beside the units bounds their time."""
    line, measured = estimated.lines["captions/photos"], estimated.measured("captions/photos")
    rows = line.rows.value / measured.record.num_rows
    assert line.gpu_s.value == 0
    assert 8 * 1.5 * rows < line.gpu_s.error < 8 * measured.wall_s * rows
    assert line.wall_s.error > 1.5 * rows
    [note] = [note for note in estimated.notes if "vLLM" in note]
    assert f"s for {measured.record.num_rows} rows on 8 GPUs" in note
    for other in estimated.lines.values():
        assert other is line or (other.gpu_s.value, other.gpu_s.error) == (0, 0)


def test_documents_are_cut_as_the_parts_of_their_samples(tmp_path: Path) -> None:
    texts = Source(name="t", kind="jsonl", path=str(tmp_path))
    pictures = Source(name="p", kind="folder", path=str(tmp_path))
    for source, slices in ((texts, 4), (pictures, 98)):
        changes = {"sources": (source,), "documents": Documents(), "cheap": Cheap()}
        recipe = make_recipe(tmp_path / "ws", tmp_path, **changes)
        drawn = Drawn(
            source=source,
            rows=SAMPLES.empty_table(),
            groups={},
            whole=600_000.0,
            sizes=np.ones(1),
            held=np.ones(1),
            taken=np.ones(1),
            share=0.1,
            num_parts=3,
            num_rows=Total(600_000.0),
            index_s=Total(0.0),
        )
        sample = Sample(recipe, [drawn])
        assert estimating._num_parts(sample, "documents/photos", [drawn]) == 3 * slices
        assert estimating._num_parts(sample, "captions/photos", [drawn]) == 3


def test_only_folders_that_it_made_and_left_empty_go(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "a/b/ws"))
    with estimating._leaves_no_trace(storage):
        storage.check(writable=True)
        assert (tmp_path / "a/b/ws").is_dir()
    assert list(tmp_path.iterdir()) == []

    # Somebody else begins to work there meanwhile, or beside it.
    with estimating._leaves_no_trace(storage):
        storage.write("samples/p/part.parquet", b"rows")
    assert storage.read("samples/p/part.parquet") == b"rows"
    beside = Storage(str(tmp_path / "a/b/other/ws"))
    with estimating._leaves_no_trace(beside):
        beside.check(writable=True)
        (tmp_path / "a/b/other/notes").write_text("mine")
    assert (tmp_path / "a/b/other/notes").exists()
    assert not (tmp_path / "a/b/other/ws").exists()

    # An empty folder that was there before stays.
    (tmp_path / "empty").mkdir()
    with estimating._leaves_no_trace(Storage(str(tmp_path / "empty"))):
        pass
    assert (tmp_path / "empty").is_dir()


def test_nothing_is_removed_from_an_object_store(s3: str) -> None:
    storage = Storage(f"{s3}/ws")
    with estimating._leaves_no_trace(storage):
        storage.write("samples/p/part.parquet", b"rows")
    assert storage.read("samples/p/part.parquet") == b"rows"


def test_mistakes_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    (tmp_path / "empty").mkdir()
    good = make_recipe(tmp_path / "ws", photos)
    empty = Source(name="e", kind="folder", path=str(tmp_path / "empty"))
    for recipe, rows, message in (
        (dataclasses.replace(good, sources=(empty,)), 10, "holds no folder files"),
        (good, 0, "--rows is 0: draw at least 1"),
        (
            dataclasses.replace(good, decide=Decide(rules=(Rule(name="a", keep="sharp > 1"),))),
            10,
            "unknown column `sharp`",
        ),
    ):
        monkeypatch.setattr(estimating, "load", lambda *_, recipe=recipe: recipe)
        with pytest.raises(ConfigError, match=message):
            estimating.main("mine", rows=rows)
        assert not (tmp_path / "ws").exists()
