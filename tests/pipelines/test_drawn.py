"""Samples of sources: seeded, of whole files where files are drawn, and what they stand for."""

import io
import shutil
import statistics
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.config import ConfigError
from infra.schema import sample_id, uniform
from pipelines import drawn as drawing
from pipelines import sources
from pipelines.drawn import Drawn, draw
from pipelines.source import Source
from pipelines.sources import index_phase


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Source:
    """60 names for one picture, some with captions."""
    place = tmp_path / "folder"
    place.mkdir()
    for number in range(60):
        shutil.copy(photos / "chelsea.png", place / f"{number:03d}.png")
        if number % 3 == 0:
            (place / f"{number:03d}.txt").write_text("A cat.")
    return Source(name="f", kind="folder", path=str(place), part_rows=25)


def write_tars(place: Path, sizes: list[int]) -> Source:
    """Tars of so many pictures each; every other picture of a tar with an odd number has a text."""
    place.mkdir()
    for number, size in enumerate(sizes):
        with tarfile.open(place / f"{number:05d}.tar", "w") as tar:
            for row in range(size):
                files = [(f"{row:04d}.jpg", bytes(900))]
                if number % 2 and row % 2:
                    files.append((f"{row:04d}.txt", b"text"))
                for name, data in files:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return Source(name="t", kind="webdataset", path=str(place), part_files=8)


def captioned(drawn: Drawn) -> list[float]:
    sums = np.zeros(len(drawn.sizes))
    for id_, caption in zip(
        *(drawn.rows[c].to_pylist() for c in ("sample_id", "caption")), strict=True
    ):
        sums[drawn.groups[id_]] += caption is not None
    return list(sums)


def ids(drawn: Drawn) -> set[str]:
    return set(drawn.rows["sample_id"].to_pylist())


def test_pictures_of_a_folder(folder: Source) -> None:
    [drawn] = draw([folder], 24, 7)
    every = [sample_id("f", f"{number:03d}.png") for number in range(60)]
    least = sorted(every, key=lambda id_: uniform(f"drawn {id_}", 7))[:24]
    assert ids(drawn) == set(least) == drawn.groups.keys()
    assert (drawn.num_rows.value, drawn.num_rows.error, drawn.num_parts) == (60, 0, 3)
    assert drawn.share == 0.4
    assert drawn.sizes.sum() == 24
    assert set(drawn.sizes) <= {1, 2}
    [same], [other] = draw([folder], 24, 7), draw([folder], 24, 8)
    assert (same.rows, same.groups) == (drawn.rows, drawn.groups)
    assert ids(other) != ids(drawn)
    # A sample of more rows holds those of a smaller one.
    [more] = draw([folder], 30, 7)
    assert ids(more) > ids(drawn)
    total = drawn.total(captioned(drawn))
    assert abs(total.value - 20) <= total.error < 20


def test_more_than_there_is_is_all_of_it(folder: Source, tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", [5] * 30)
    for source, rows, texts in ((folder, 60, 20), (tars, 150, 30)):
        [drawn] = draw([source], 1_000, 0)
        assert len(drawn.rows) == rows
        assert drawn.share == 1
        total = drawn.total(captioned(drawn))
        assert (total.value, total.error) == (pytest.approx(texts), 0)


@pytest.fixture
def count_indexed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[str]]:
    """The files that were opened."""
    seen: set[str] = set()
    load = drawing.IndexInput.load

    def note(self: drawing.IndexInput, storage: object, rows: pa.Table) -> pa.Table:
        seen.update(rows["uri"].to_pylist())
        return load(self, storage, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing.IndexInput, "load", note)
    return lambda: set(seen)


def test_rows_of_drawn_files(tmp_path: Path, count_indexed: Callable[[], set[str]]) -> None:
    sizes = [4 + number % 9 for number in range(200)]
    source = write_tars(tmp_path / "tars", sizes)
    [drawn] = draw([source], 60, 0)
    assert len(count_indexed()) == 20
    files = {uri: set() for uri in drawn.rows["uri"].to_pylist()}
    for id_, uri in zip(
        drawn.rows["sample_id"].to_pylist(), drawn.rows["uri"].to_pylist(), strict=True
    ):
        files[uri].add(drawn.groups[id_])
    assert all(len(groups) == 1 for groups in files.values())  # a file is in one group
    assert abs(drawn.num_rows.value - sum(sizes)) <= 1.5 * drawn.num_rows.error
    assert drawn.taken.sum() == len(drawn.rows)
    assert drawn.share == pytest.approx(20 / 200 * drawn.taken.sum() / drawn.held.sum())
    # That a row is there adds no error to that of how many there are.
    assert drawn.total(drawn.taken).value == pytest.approx(drawn.num_rows.value)
    # More rows than 20 files hold: as many files as hold them.
    [many] = draw([source], 400, 0)
    assert len(many.rows) == pytest.approx(400, abs=40)
    assert len(count_indexed()) > 40


def test_intervals_over_files_hold_the_truth(tmp_path: Path) -> None:
    """Texts are in every other tar only, so that rows of one tar are alike."""
    sizes = [4 + number % 9 for number in range(120)]
    source = write_tars(tmp_path / "tars", sizes)
    truth = sum(size // 2 for size in sizes[1::2])
    found = []
    for seed in range(40):
        [drawn] = draw([source], 100, seed)
        found.append(drawn.total(captioned(drawn)))
    assert statistics.mean(total.value for total in found) == pytest.approx(truth, rel=0.1)
    assert sum(abs(total.value - truth) <= total.error for total in found) >= 35


def test_few_files_are_all_indexed_and_rows_drawn_from_them(tmp_path: Path) -> None:
    place = tmp_path / "tables"
    place.mkdir()
    for number in range(3):
        table = pa.table({"image": ["x.jpg"] * 40, "caption": ["a", None] * 20})
        pq.write_table(table, place / f"{number}.parquet")
    source = Source(name="p", kind="parquet", path=str(place))
    [drawn] = draw([source], 50, 0)
    assert (len(drawn.rows), drawn.num_rows.value, drawn.num_rows.error) == (50, 120, 0)
    assert len(drawn.sizes) == 20
    total = drawn.total(captioned(drawn))
    assert abs(total.value - 60) <= total.error


def test_parquet_with_texts_is_cut_as_its_index_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PARQUET_TEXT_BYTES", 4_000)
    place = tmp_path / "texts"
    place.mkdir()
    words = np.random.default_rng(0).integers(0, 2**63, (30, 60))
    for number in range(30):
        texts = [str(word) for word in words[number, : 5 + 50 * (number % 2)]]
        pq.write_table(pa.table({"text": texts}), place / f"{number:02d}.parquet")
    source = Source(name="t", kind="parquet", path=str(place), media="text")
    phase = index_phase(source)
    [drawn] = draw([source], 40, 0)
    assert drawn.num_parts == phase.num_parts > -(-30 // source.files_per_part)


def test_sources_are_drawn_by_their_share(folder: Source, tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", [5] * 24)
    pictures, rows = draw([folder, tars], 90, 0)
    assert (len(pictures.rows), len(rows.rows)) == (30, 60)


def test_none_among_many_is_a_bound(folder: Source) -> None:
    [drawn] = draw([folder], 30, 0)
    none = drawn.total(np.zeros(len(drawn.sizes)))
    assert (none.value, none.error) == (0, pytest.approx(6, rel=0.01))


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no folder files"):
        draw([Source(name="e", kind="folder", path=str(tmp_path / "empty"))], 10, 0)
