import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import pixels, runs
from infra.config import ConfigError
from infra.pixels import encode_jpeg
from infra.runs import Part, TableRecord
from infra.schema import DOCUMENTS, doc_id, sample_id
from infra.storage import Storage
from tokenize_offline import picture_sources
from tokenize_offline.batches import ahead
from tokenize_offline.byte_cache import ByteCache
from tokenize_offline.draws import Batch, StepDraws
from tokenize_offline.learning import Learning
from tokenize_offline.photographs import Pictures, open_pictures, split
from tokenize_offline.picture_sources import open_documents, open_files

Document = Sequence[str | int] | None  # texts and numbers of samples; None: a failed document


def jpeg(number: int) -> bytes:
    """A picture of its own size and colour."""
    colour = np.array([number % 251, number % 13 * 19, 40], np.uint8)
    return encode_jpeg(np.broadcast_to(colour, (20 + number % 7, 30 + number % 5, 3)).copy())


def segment(content: str | int) -> dict[str, Any]:
    if isinstance(content, str):
        return {"kind": "text", "text": content, "loss": True}
    decoded = pixels.decode(jpeg(content))
    return {
        "kind": "image",
        "image": jpeg(content),
        "height": decoded.height,
        "width": decoded.width,
        "role": "target",
        "sample_id": sample_id("demo", str(content)),
    }


def write_documents(storage: Storage, name: str, parts: Sequence[Sequence[Document]]) -> str:
    """The documents table ``name`` with these parts; returns what a recipe calls it."""
    files = []
    for number, documents in enumerate(parts):
        rows = [
            {
                "doc_id": doc_id(name, "t2i", [str(number), str(row)]),
                "task": "t2i",
                "source": "demo",
                "segments": None if document is None else [segment(s) for s in document],
                "error": {"stage": "x", "type": "y", "message": "z"} if document is None else None,
            }
            for row, document in enumerate(documents)
        ]
        table = pa.Table.from_pylist(rows, DOCUMENTS)
        file = f"v-1/part-{number:05d}.parquet"
        storage.write_part(f"documents/{name}/{file}", table, DOCUMENTS, "doc_id")
        files.append(Part(file, len(rows)))
    runs.save_record(storage, TableRecord(f"documents/{name}", "f", "r", "doc_id", tuple(files)))
    return storage.path(f"documents/{name}")


def by_name(pictures: Pictures) -> dict[str, np.ndarray]:
    return {photo.name: photo.rgb for photo in pictures}


def expected(numbers: Sequence[int]) -> dict[str, np.ndarray]:
    return {sample_id("demo", str(n)): pixels.decode(jpeg(n)).rgb for n in numbers}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


PARTS: list[list[Document]] = [
    [["a cat", 0], [1, "what is it?", 2, "a dog"], None, ["text alone"], [], [3]],
    [["pad", n] for n in range(100, 300)],  # four row groups
    [],
    [None],
    [[4, 5, "and", 6], ["x", "y", 7]],
]
NUMBERS = [*range(8), *range(100, 300)]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_every_image_of_a_table_is_found(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path) if place == "local" else request.getfixturevalue("s3") + "/workspace"
    table = write_documents(Storage(root), "mixed", PARTS)
    pictures = open_pictures(documents=[table], short_side=1_000)
    assert len(pictures) == len(pictures.names) == len(NUMBERS)
    assert same(by_name(pictures), expected(NUMBERS))


def test_sizes_are_known_before_decoding(tmp_path: Path) -> None:
    source = open_documents([write_documents(Storage(str(tmp_path)), "mixed", PARTS)])
    for number in range(0, len(source.names), 17):
        rgb = pixels.decode(source.read(number, ByteCache(10**6))).rgb
        assert tuple(source.sizes[number]) == rgb.shape[:2]


def test_a_row_group_is_read_for_a_picture_and_in_order_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_documents(Storage(str(tmp_path)), "mixed", PARTS)
    read: list[tuple[int, list[str]]] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        read.append((group, columns))
        return original(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    monkeypatch.setattr(pq.ParquetFile, "read", _no_images(pq.ParquetFile.read))
    pictures = open_pictures(documents=[table], short_side=1_000)
    assert read == []
    pictures.rgb(100)
    assert len(read) == 1
    assert len(list(pictures)) == len(NUMBERS)
    assert len(read) == 6  # 1 + 4 + 1 row groups hold a picture
    assert all(columns == ["segments.list.element.image"] for _, columns in read)


def test_random_steps_read_a_row_group_for_many_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents: list[Document] = [["pad", n] for n in range(64 * 40)]
    table = write_documents(Storage(str(tmp_path)), "many", [documents])
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        read.append(group)
        return original(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    row_group = 64 * len(jpeg(0))  # a step's four fit into the cache, and a few more
    pictures = open_pictures(documents=[table], short_side=1_000, cache_bytes=6 * row_group)
    seen = Counter[str]()
    learning = Learning(batch_size=4, level_512_share=0.0)
    original_rgb = Pictures.rgb
    monkeypatch.setattr(
        Pictures,
        "rgb",
        lambda self, index: seen.update([self.names[index]]) or original_rgb(self, index),
    )
    make = partial(_step, learning, pictures)
    with closing(ahead(make, 0, 160, 3)) as batches:  # threads that want the same group wait
        assert len(list(batches)) == 160
    assert seen.total() == 4 * 160
    # One for each of 4 numbers and 16 steps, and as threads run ahead of each other a few more.
    assert 4 * 9 <= len(read) <= 4 * 11 * 1.2
    assert len(seen) > 450  # of 640 draws among 2,560; 567 are expected without row groups


def _step(learning: Learning, pictures: Pictures, step: int) -> Batch:
    return StepDraws(learning, "joint", step).batch(pictures, 0)


def _no_images(original: Any) -> Any:
    def read(self: pq.ParquetFile, columns: list[str]) -> pa.Table:
        assert not any("image" in column for column in columns)
        return original(self, columns=columns)

    return read


def test_a_sample_counts_once_whatever_documents_show_it(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    first = write_documents(storage, "first", [[[1, "one"], [2]], [["again", 1], [3, 3]]])
    second = write_documents(storage, "second", [[[3], [4]]])
    source = open_documents([first, second])
    names = source.names.to_pylist()
    # Two images of one sample in one document are two pictures: frames of a video.
    assert sorted(names) == sorted(sample_id("demo", str(n)) for n in (1, 2, 3, 3, 4))


def test_folders_and_tables_together(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (900, 901):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    storage = Storage(str(tmp_path / "workspace"))
    tables = [write_documents(storage, name, PARTS[:1]) for name in ("a", "b")]
    pictures = open_pictures([folder], tables, short_side=1_000)
    assert list(pictures.names[:2]) == ["900.jpg", "901.jpg"]
    files = {"900.jpg": pixels.decode(jpeg(900)).rgb, "901.jpg": pixels.decode(jpeg(901)).rgb}
    assert same(by_name(pictures), files | expected([0, 1, 2, 3]))
    training, held_out = split(pictures, "*", 0.5, seed=1)
    assert same(by_name(training) | by_name(held_out), by_name(pictures))


def test_threads_read_tables_as_one_does(tmp_path: Path) -> None:
    table = write_documents(Storage(str(tmp_path)), "mixed", PARTS)
    pictures = open_pictures(documents=[table], short_side=1_000, cache_bytes=200_000)
    truth = expected(NUMBERS)
    start = threading.Barrier(4)

    def look(seed: int) -> bool:
        start.wait()
        rng = np.random.default_rng(seed)
        drawn = [pictures.draw(rng) for _ in range(50)]
        return all(np.array_equal(photo.rgb, truth[photo.name]) for photo in drawn)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(look, range(4)))


def test_the_bytes_of_row_groups_are_known(tmp_path: Path) -> None:
    documents: list[Document] = [["pad", n] for n in range(200)]
    source = open_documents([write_documents(Storage(str(tmp_path)), "many", [documents])])
    total = sum(len(jpeg(n)) for n in range(200))
    assert source.group_bytes == pytest.approx(total / 4, rel=0.1)  # 64, 64, 64 and 8 rows


def test_an_index_takes_tens_of_bytes_per_picture(tmp_path: Path) -> None:
    documents: list[Document] = [["pad", n] for n in range(400)]
    source = open_documents([write_documents(Storage(str(tmp_path)), "many", [documents])])
    columns = (source.names, source.sizes, source.groups, source.positions)
    assert sum(column.nbytes for column in columns) < 60 * len(documents)


@pytest.mark.parametrize("table", ["documents/none", "none/documents/x", "tokens/mixed-256"])
def test_a_table_that_is_none_of_documents_is_told(tmp_path: Path, table: str) -> None:
    storage = Storage(str(tmp_path))
    runs.save_record(storage, TableRecord("tokens/mixed-256", "f", "r", "doc_id", ()))
    with pytest.raises(ConfigError, match=f"{table} is no finished table of documents: give"):
        open_documents([storage.path(table)])


def test_tables_without_pictures_are_told(tmp_path: Path) -> None:
    table = write_documents(Storage(str(tmp_path)), "texts", [[["only"], None]])
    with pytest.raises(ConfigError, match=r"no picture in .*documents/texts: name folders"):
        open_pictures(documents=[table], short_side=100)


def test_a_file_of_a_table_that_is_gone_is_no_bad_picture(tmp_path: Path) -> None:
    table = write_documents(Storage(str(tmp_path)), "mixed", PARTS)
    pictures = open_pictures(documents=[table], short_side=1_000)
    (tmp_path / "documents/mixed/v-1/part-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        list(pictures)


def test_files_are_sorted_by_name_and_equal_ones_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = jpeg(1), jpeg(1) + b"\0", jpeg(2) + b"two more"
    files = {"b/1.jpg": one, "a/2.jpg": two, "a/0.JPEG": three, "c/3.jpg": one}
    files |= {"b/4.jpg": b"x" * len(two), "a/notes.txt": b"no picture"}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(
        picture_sources.hashlib,
        "file_digest",
        hashed := Hashed(picture_sources.hashlib.file_digest),
    )
    source = open_files([tmp_path], ["4*"])
    assert source.names.to_pylist() == ["0.JPEG", "1.jpg", "2.jpg"]
    assert source.place(1) == str(tmp_path / "b/1.jpg")
    assert hashed.count == 2  # no other two are of one size
    everything = open_files([tmp_path, tmp_path / "a", tmp_path / "a/2.jpg"], [])
    assert everything.names.to_pylist() == ["0.JPEG", "1.jpg", "2.jpg", "4.jpg"]


class Hashed:
    """Counts the files that are read to be told apart."""

    def __init__(self, original: Any) -> None:
        self.original, self.count = original, 0

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        return self.original(*args)


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.jpg")).write_bytes(jpeg(1))
    pictures = open_pictures([tmp_path], short_side=100)
    assert list(pictures.names) == ["\\xff\\xfe.jpg"]
    assert len(list(pictures.decodable())) == 1
