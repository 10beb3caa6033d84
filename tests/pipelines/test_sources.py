"""Sources: every entry is accounted for, and media come back byte for byte, local and on S3."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.config import ConfigError
from infra.storage import Storage
from pipelines.source import Source
from pipelines.sources import IndexInput, index_phase, list_source, load_order, read_media

Put = Callable[[dict[str, bytes]], str]


@pytest.fixture
def pictures(photos: Path) -> list[bytes]:
    return [(photos / name).read_bytes() for name in ("china.jpg", "flower.jpg", "rocket.jpg")]


def index(workspace: Path, source: Source) -> pa.Table:
    """Rows of `samples` of the whole source, as the phase would write them."""
    storage = Storage(str(workspace))
    phase = index_phase(source)
    assert phase.prepare is not None
    phase.prepare(storage)
    assert isinstance(phase.input, IndexInput)
    tables = []
    for part in range(phase.num_parts):
        rows = phase.input.rows(storage, part)
        for start in range(0, len(rows), phase.unit_rows):
            tables.append(phase.input.load(storage, rows.slice(start, phase.unit_rows)))
    table = pa.concat_tables(tables)
    ids = table["sample_id"].to_pylist()
    assert len(ids) == len(set(ids))
    # As the phase would store it: checks types and text.
    storage.write_part("check.parquet", table, phase.schema, "sample_id")
    return table


def by_key(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in table.to_pylist()}


def kinds(table: pa.Table) -> dict[str, str | None]:
    return {key: row["error"] and row["error"]["type"] for key, row in by_key(table).items()}


def fetched(source: Source, samples: pa.Table) -> dict[str, Any]:
    """key -> its bytes, or the type of its error."""
    read = read_media(source, load_order(samples))
    assert read.column_names == [*samples.column_names, "bytes"]
    found = {}
    for row in read.to_pylist():
        assert (row["bytes"] is None) == (row["error"] is not None)
        found[row["key"]] = row["error"]["type"] if row["error"] else row["bytes"]
    return found


# Folders


def test_folder(put: Put, tmp_path: Path, pictures: list[bytes], capfd: Any) -> None:
    a, b, c = pictures
    root = put(
        {
            "a.jpg": a,
            "a.txt": b"  a palace \n",
            "deep/er/b.JPEG": b,
            "deep/er/b.json": json.dumps({"caption": "a dahlia", "n": 1, "l": "é"}).encode(),
            "c.png": c,
            "c.json": b"{not json",
            "d.jpg": a,
            "d.json": b"[1]",
            "e.jpg": a,
            "e.txt": b"\xff\xfe\xfa",
            "f.jpg": b,
            "f.json": b'{"caption": 3}',
            "g.webp": b"",
            "naïve 写真 %41#?&=+.jpg": c,
            ".hidden.jpg": a,
            ".cache/h.jpg": a,
            "notes.md": b"x",
            "orphan.txt": b"no picture",
        }
    )
    source = Source(name="s", kind="folder", path=root, part_rows=3)
    samples = index(tmp_path / "ws", source)
    rows = by_key(samples)
    assert kinds(samples) == {
        "a.jpg": None,
        "deep/er/b.JPEG": None,
        "c.png": "bad_sidecar",
        "d.jpg": "bad_sidecar",
        "e.jpg": "bad_sidecar",
        "f.jpg": "bad_sidecar",
        "g.webp": None,
        "naïve 写真 %41#?&=+.jpg": None,
    }
    assert rows["a.jpg"]["caption"] == "a palace"
    assert rows["deep/er/b.JPEG"]["caption"] == "a dahlia"
    assert json.loads(rows["deep/er/b.JPEG"]["metadata"]) == {"n": 1, "l": "é"}
    assert all(row["uri"] == key and row["media"] == "image" for key, row in rows.items())
    assert "2 files are no media" in capfd.readouterr().err
    assert fetched(source, samples) == {
        "a.jpg": a,
        "deep/er/b.JPEG": b,
        "c.png": "bad_sidecar",
        "d.jpg": "bad_sidecar",
        "e.jpg": "bad_sidecar",
        "f.jpg": "bad_sidecar",
        "g.webp": b"",
        "naïve 写真 %41#?&=+.jpg": c,
    }


def test_ids_depend_on_name_and_key_only(tmp_path: Path, pictures: list[bytes]) -> None:
    for place in ("one", "two"):
        (tmp_path / place / "sub").mkdir(parents=True)
        (tmp_path / place / "sub/a.jpg").write_bytes(pictures[0])
    ids = [
        index(tmp_path / "ws", Source(name=n, kind="folder", path=str(tmp_path / p)))["sample_id"]
        for n, p in (("s", "one"), ("s", "two"), ("t", "one"))
    ]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_files_that_go_or_change_after_the_listing(
    put: Put, tmp_path: Path, pictures: list[bytes]
) -> None:
    a, b, _ = pictures
    root = put({"a.jpg": a, "b.jpg": a, "c.jpg": b})
    source = Source(name="s", kind="folder", path=root)
    samples = index(tmp_path / "ws", source)
    Storage(root).remove("a.jpg")
    put({"b.jpg": a[:100]})
    assert fetched(source, samples) == {"a.jpg": "missing", "b.jpg": "truncated", "c.jpg": b}


def test_a_changed_file_is_a_changed_table(put: Put, tmp_path: Path, pictures: list[bytes]) -> None:
    a, b, _ = pictures
    source = Source(name="s", kind="folder", path=put({"a.jpg": a, "a.txt": b"x", "n.md": b""}))
    seen = [index_phase(source).fingerprint]
    put({"n.md": b"other"})
    assert index_phase(source).fingerprint == seen[0]
    for change in ({"a.txt": b"y"}, {"a.jpg": b}, {"b.jpg": b}):
        put(change)
        seen.append(index_phase(source).fingerprint)
    assert len(set(seen)) == 4


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_nothing_to_read(put: Put, kind: Any) -> None:
    root = put({"notes.md": b"x"})
    with pytest.raises(ConfigError, match=rf"source `s`: .* holds no {kind} files \(1 other files"):
        list_source(Source(name="s", kind=kind, path=root))
    with pytest.raises(ConfigError, match=r"source `s`: .*nowhere does not exist: check `path`"):
        list_source(Source(name="s", kind=kind, path=root + "/nowhere"))


def test_empty_folder_and_file_as_root(tmp_path: Path, pictures: list[bytes]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no folder files"):
        list_source(Source(name="s", kind="folder", path=str(tmp_path / "empty")))
    (tmp_path / "a.jpg").write_bytes(pictures[0])
    with pytest.raises(ConfigError, match=r"a\.jpg is a file: `path` must be the folder"):
        list_source(Source(name="s", kind="folder", path=str(tmp_path / "a.jpg")))


def test_local_oddities(tmp_path: Path, pictures: list[bytes]) -> None:
    """Names that are no UTF-8, links that lead nowhere or to folders, unreadable files."""
    root = tmp_path / "source"
    (root / "inner").mkdir(parents=True)
    (root / "inner/a.jpg").write_bytes(pictures[0])
    Path(os.fsdecode(os.fsencode(root) + b"/bad\xff.jpg")).write_bytes(pictures[1])
    (root / "dangling.jpg").symlink_to(root / "nothing.jpg")
    (root / "link.jpg").symlink_to(root / "inner/a.jpg")
    (root / "folder.jpg").mkdir()
    source = Source(name="s", kind="folder", path=str(root))
    samples = index(tmp_path / "ws", source)
    found = fetched(source, samples)
    assert found["inner/a.jpg"] == found["link.jpg"] == pictures[0]
    assert found["bad\\xff.jpg"] == "missing"
    assert found.keys() == {"inner/a.jpg", "link.jpg", "bad\\xff.jpg", "dangling.jpg"}
    assert found["dangling.jpg"] in ("missing", b"")  # an empty file fails in the probe


# WebDataset


def tar_of(*members: tuple[str, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def told(caption: str) -> bytes:
    return json.dumps({"caption": caption, "status": "success", "width": 3}).encode()


def test_webdataset(put: Put, tmp_path: Path, pictures: list[bytes]) -> None:
    a, b, c = pictures
    first = tar_of(
        ("000.jpg", a),
        ("000.json", told("a palace")),
        ("000.txt", b"a palace"),
        ("001.json", told("late picture")),
        ("001.jpg", b),
        ("002.txt", b"no picture"),
        ("003.jpg", c),
        ("003.json", b"{"),
        ("004.cls", b"7"),
        ("dir/005.jpg", a),
        ("dir/005.seg.png", b),
        ("._000.jpg", b"a Mac's"),
        ("006.JPG", b""),
    )
    second = tar_of(("000.jpg", b), ("000.jpg", c), ("001.jpg", a), ("001.png", b))
    root = put({"00000.tar": first, "sub/00001.tar": second, "00000_stats.json": b"{}"})
    source = Source(name="s", kind="webdataset", path=root, part_files=1)
    samples = index(tmp_path / "ws", source)
    rows = by_key(samples)
    repeats = [key for key, kind in kinds(samples).items() if kind == "duplicate_key"]
    assert len(repeats) == 2
    assert {key: kind for key, kind in kinds(samples).items() if key not in repeats} == {
        "00000.tar/000": None,
        "00000.tar/001": None,
        "00000.tar/002": "no_image",
        "00000.tar/003": "bad_sidecar",
        "00000.tar/004": "no_image",
        "00000.tar/dir/005": None,
        "00000.tar/006": None,
        "sub/00001.tar/000": None,
        "sub/00001.tar/001": None,
    }
    assert rows["00000.tar/000"]["caption"] == "a palace"
    assert rows["00000.tar/001"]["caption"] == "late picture"
    assert json.loads(rows["00000.tar/001"]["metadata"])["width"] == 3
    found = fetched(source, samples)
    assert {key: value for key, value in found.items() if isinstance(value, bytes)} == {
        "00000.tar/000": a,
        "00000.tar/001": b,
        "00000.tar/dir/005": a,
        "00000.tar/006": b"",
        "sub/00001.tar/000": b,
        "sub/00001.tar/001": a,
    }


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats_and_long_names(tmp_path: Path, pictures: list[bytes], format_: int) -> None:
    name = "d" * 90 + "/" + "n" * 90 + ".jpg"
    odd = "bad\udcff.jpg" if format_ != tarfile.PAX_FORMAT else "naïve.jpg"
    data = tar_of((name, pictures[0]), (odd, pictures[1]), format=format_)
    (tmp_path / "a.tar").write_bytes(data)
    source = Source(name="s", kind="webdataset", path=str(tmp_path))
    found = fetched(source, index(tmp_path / "ws", source))
    assert list(found.values()).count(pictures[0]) == 1
    assert list(found.values()).count(pictures[1]) == 1


def test_truncated_tars(tmp_path: Path, pictures: list[bytes]) -> None:
    """Cut anywhere, a tar gives the samples before the cut and a failed row that tells of it."""
    members = [(f"{i:03d}.jpg", data) for i, data in enumerate(pictures)]
    whole = tar_of(*members)
    starts = [0]
    for _, data in members:
        starts.append(starts[-1] + 512 + -(-len(data) // 512) * 512)
    cuts = {0, 1, 511, 512, 513, starts[1] - 1, starts[1], starts[1] + 1, starts[1] + 511}
    cuts |= {starts[1] + 512, starts[1] + 513, starts[2], starts[2] + 600, starts[3] - 1, starts[3]}
    for cut in sorted(cuts):
        root = tmp_path / f"cut-{cut}"
        root.mkdir()
        (root / "a.tar").write_bytes(whole[:cut])
        source = Source(name="s", kind="webdataset", path=str(root))
        found = fetched(source, index(root / "ws", source))
        for i, data in enumerate(pictures):
            end = starts[i] + 512 + len(data)
            if cut >= end:
                assert found.pop(f"a.tar/{i:03d}") == data, cut
            else:
                assert found.pop(f"a.tar/{i:03d}", "truncated") == "truncated", cut
        assert found, cut
        assert set(found.values()) <= {"broken_tar"}, cut
    # A whole one is whole, with or without the padding that tar adds.
    for end in (len(whole), starts[3] + 1024, starts[3] + 512):
        root = tmp_path / f"whole-{end}"
        root.mkdir()
        (root / "a.tar").write_bytes(whole[:end])
        source = Source(name="s", kind="webdataset", path=str(root))
        assert len(fetched(source, index(root / "ws", source))) == 3


def test_a_broken_header_in_the_middle(tmp_path: Path, pictures: list[bytes]) -> None:
    whole = bytearray(tar_of(*((f"{i}.jpg", data) for i, data in enumerate(pictures))))
    second = 512 + -(-len(pictures[0]) // 512) * 512
    whole[second + 148 : second + 156] = b"notasum\0"
    (tmp_path / "a.tar").write_bytes(whole)
    (tmp_path / "b.tar").write_bytes(b"this is no tar" * 100)
    source = Source(name="s", kind="webdataset", path=str(tmp_path))
    samples = index(tmp_path / "ws", source)
    assert kinds(samples) == {
        "a.tar/0": None,
        "a.tar/#broken": "broken_tar",
        "b.tar/#broken": "broken_tar",
    }


def test_a_member_longer_than_its_tar(tmp_path: Path, pictures: list[bytes]) -> None:
    header = tarfile.TarInfo("0.jpg")
    header.size = 10**9
    (tmp_path / "a.tar").write_bytes(header.tobuf() + pictures[0])
    source = Source(name="s", kind="webdataset", path=str(tmp_path))
    found = fetched(source, index(tmp_path / "ws", source))
    assert found["a.tar/0"] == "truncated"


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a\.tar\.gz is compressed .*: unpack to \.tar"):
        list_source(Source(name="s", kind="webdataset", path=str(tmp_path)))


def test_a_tar_that_goes_after_the_listing(put: Put, tmp_path: Path, pictures: list[bytes]) -> None:
    root = put({"a.tar": tar_of(("0.jpg", pictures[0])), "b.tar": tar_of(("0.jpg", pictures[1]))})
    source = Source(name="s", kind="webdataset", path=root)
    samples = index(tmp_path / "ws", source)
    Storage(root).remove("a.tar")
    assert fetched(source, samples) == {"a.tar/0": "missing", "b.tar/0": pictures[1]}


# Parquet


def parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def test_parquet_bytes(put: Put, tmp_path: Path, pictures: list[bytes]) -> None:
    images = [*pictures, None, b"", *pictures]
    columns = {
        "image": pa.array(images, pa.binary()),
        "caption": [f"c{i}" if i != 2 else None for i in range(len(images))],
        "score": [i / 2 for i in range(len(images))],
        "vector": [[1.0]] * len(images),
    }
    table = pa.table(columns)
    other = table.set_column(0, "image", table["image"].cast(pa.large_binary()))
    files = {
        "a.parquet": parquet(table, row_group_size=3),
        "sub/b.parquet": parquet(other.slice(0, 2)),
    }
    source = Source(name="s", kind="parquet", path=put(files))
    samples = index(tmp_path / "ws", source)
    assert len(samples) == len(images) + 2
    rows = by_key(samples)
    assert rows["a.parquet#1"]["caption"] == "c1"
    assert rows["a.parquet#2"]["caption"] is None
    assert json.loads(rows["a.parquet#1"]["metadata"]) == {"score": 0.5}
    expected: dict[str, Any] = {f"a.parquet#{i}": image for i, image in enumerate(images)}
    expected["a.parquet#3"] = "no_image"
    expected |= {"sub/b.parquet#0": pictures[0], "sub/b.parquet#1": pictures[1]}
    assert fetched(source, samples) == expected
    # One row at a time is the same: what a unit holds does not matter.
    single = [fetched(source, samples.slice(i, 1)) for i in range(len(samples))]
    assert {key: value for found in single for key, value in found.items()} == expected


@pytest.mark.parametrize("fields", [("bytes", "path"), ("bytes",), ("path", "bytes", "more")])
def test_parquet_hugging_face_struct(
    tmp_path: Path, pictures: list[bytes], fields: tuple[str, ...]
) -> None:
    values = [{"bytes": p, "path": f"{i}.jpg", "more": 1} for i, p in enumerate(pictures)]
    values.append({"bytes": None, "path": "gone.jpg", "more": 1})
    types = {"bytes": pa.binary(), "path": pa.string(), "more": pa.int8()}
    struct = pa.struct([(name, types[name]) for name in fields])
    images = [{name: value[name] for name in fields} for value in values]
    table = pa.table({"pic": pa.array([*images, None], struct), "text": list("abcde")})
    (tmp_path / "a.parquet").write_bytes(parquet(table))
    source = Source(
        name="s", kind="parquet", path=str(tmp_path), image_column="pic", caption_column="text"
    )
    samples = index(tmp_path / "ws", source)
    assert [row["caption"] for row in by_key(samples).values()] == list("abcde")
    expected = dict(enumerate([*pictures, "no_image", "no_image"]))
    assert fetched(source, samples) == {f"a.parquet#{i}": value for i, value in expected.items()}


def test_parquet_with_nothing_but_pictures(tmp_path: Path, pictures: list[bytes]) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"image": pictures})))
    (tmp_path / "b.parquet").write_bytes(parquet(pa.table({"image": pa.array([], pa.binary())})))
    source = Source(name="s", kind="parquet", path=str(tmp_path))
    found = fetched(source, index(tmp_path / "ws", source))
    assert list(found.values()) == pictures


def test_parquet_uris(put: Put, tmp_path: Path, pictures: list[bytes]) -> None:
    a, b, _ = pictures
    (tmp_path / "elsewhere.jpg").write_bytes(b)
    uris = ["img/a.jpg", "gone.jpg", None, "", "img", "img/a.jpg", "a.parquet/x", "img/a.jpg/x"]
    uris += ["x" * 5000, "nul\0.jpg", "http://127.0.0.1:9/a.jpg", "a.parquet"]
    table = pa.table({"url": uris, "caption": [str(i) for i in range(len(uris))]})
    root = put({"a.parquet": parquet(table), "img/a.jpg": a})
    source = Source(name="s", kind="parquet", path=root, image_column="url")
    samples = index(tmp_path / "ws", source)
    assert len(samples) == len(uris)
    found = fetched(source, samples)
    assert found["a.parquet#0"] == found["a.parquet#5"] == a
    # The last leads to a file that is no picture: the probe will say so.
    assert found.pop("a.parquet#11") == Storage(root).read("a.parquet")
    wrong = {key: value for key, value in found.items() if value != a}
    assert len(wrong) == len(uris) - 3
    assert set(wrong.values()) <= {"no_image", "missing", "forbidden", "bad_uri"}
    single = [fetched(source, samples.slice(i, 1)) for i in range(len(samples) - 1)]
    assert {key: value for one in single for key, value in one.items()} == found


def test_parquet_mistakes(tmp_path: Path) -> None:
    source = Source(name="s", kind="parquet", path=str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"picture": [b"x"], "n": [1]})))
    with pytest.raises(ConfigError, match="no column `image`: set `image_column` to one of pict"):
        list_source(source)
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"image": [1]})))
    with pytest.raises(ConfigError, match="column `image` is int64, expected bytes"):
        list_source(source)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(ConfigError, match=r"a\.parquet is no Parquet file"):
        list_source(source)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a\.parquet is no Parquet file"):
        list_source(source)


def test_broken_parquet_files_after_the_first(
    put: Put, tmp_path: Path, pictures: list[bytes]
) -> None:
    good = parquet(pa.table({"image": pictures}))
    root = put(
        {
            "a.parquet": good,
            "b.parquet": good[: len(good) // 2],
            "c.parquet": b"",
            "d.parquet": parquet(pa.table({"picture": pictures})),
            "e.parquet": parquet(pa.table({"image": [1, 2]})),
            "f.parquet": good,
        }
    )
    source = Source(name="s", kind="parquet", path=root)
    samples = index(tmp_path / "ws", source)
    assert kinds(samples) == {
        "a.parquet#0": None,
        "a.parquet#1": None,
        "a.parquet#2": None,
        "b.parquet#broken": "broken_parquet",
        "c.parquet#broken": "broken_parquet",
        "d.parquet#broken": "wrong_schema",
        "e.parquet#broken": "wrong_schema",
        "f.parquet#0": None,
        "f.parquet#1": None,
        "f.parquet#2": None,
    }
    Storage(root).remove("f.parquet")
    found = fetched(source, samples)
    assert [found[f"a.parquet#{i}"] for i in range(3)] == pictures
    assert [found[f"f.parquet#{i}"] for i in range(3)] == ["missing"] * 3


def test_a_damaged_row_group_fails_its_own_rows_only(tmp_path: Path, pictures: list[bytes]) -> None:
    data = bytearray(
        parquet(pa.table({"image": [*pictures, *pictures]}), row_group_size=2, compression="zstd")
    )
    file = pq.ParquetFile(io.BytesIO(bytes(data)))
    middle = file.metadata.row_group(1).column(0)
    offset = middle.dictionary_page_offset or middle.data_page_offset
    data[offset : offset + middle.total_compressed_size] = b"\x5a" * middle.total_compressed_size
    (tmp_path / "a.parquet").write_bytes(data)
    source = Source(name="s", kind="parquet", path=str(tmp_path))
    samples = index(tmp_path / "ws", source)
    expected: list[Any] = [*pictures, *pictures]
    expected[2] = expected[3] = "broken_parquet"
    assert list(fetched(source, samples).values()) == expected
    single = [fetched(source, samples.slice(i, 1)) for i in range(len(samples))]
    assert [value for one in single for value in one.values()] == expected


def test_impossible_sources() -> None:
    with pytest.raises(ValueError, match="source name 'a/b'"):
        Source(name="a/b", kind="folder", path="x")
    with pytest.raises(ValueError, match="at least 1"):
        Source(name="a", kind="folder", path="x", part_rows=0)
