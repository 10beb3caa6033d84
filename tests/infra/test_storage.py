"""Files are absent or whole, and parts are a function of their rows, locally and on S3."""

import os
import pickle
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.config import ConfigError
from infra.schema import column
from infra.storage import ROW_GROUP_ROWS_WITH_MEDIA, Storage

SCHEMA = pa.schema(
    [
        column("id", pa.string(), "", "the id"),
        column("value", pa.float32(), "0..1", "a score"),
        column("tags", pa.list_(pa.string()), "", "a list"),
    ]
)
ROWS = [{"id": f"{i:04d}", "value": i / 7, "tags": [str(i)] * (i % 3)} for i in range(50)]


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "root"))
    return Storage(request.getfixturevalue("s3") + "/some/prefix")


def table(rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([f.remove_metadata() for f in SCHEMA]))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        storage.write("folder", b"data")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write("file", b"data")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_what_is_written_is_read(storage: Storage) -> None:
    storage.write("a/b.bin", b"0123456789")
    assert storage.exists("a/b.bin")
    assert not storage.exists("a/c.bin")
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.read("a/b.bin", 3) == b"3456789"
    assert storage.read("a/b.bin", 3, 4) == b"3456"
    with storage.open("a/b.bin") as file:
        file.seek(8)
        assert file.read() == b"89"
    storage.write("a/b.bin", b"new")
    assert storage.read("a/b.bin") == b"new"
    storage.write_json("a/j.json", {"b": 1, "a": [None, "é"]})
    assert storage.read_json("a/j.json") == {"a": [None, "é"], "b": 1}


def test_what_is_missing_is_told(storage: Storage) -> None:
    assert not storage.exists()
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")
    with pytest.raises(FileNotFoundError):
        storage.open("nothing").read()
    with pytest.raises(FileNotFoundError):
        storage.read_table("nothing.parquet")
    assert storage.names("nothing") == []
    storage.remove("nothing")


def test_listings(storage: Storage) -> None:
    for name in ("t/b/2.txt", "t/a.txt", "t/b/1.txt", "tt/x.txt"):
        storage.write(name, name.encode())
    assert storage.names() == ["t", "tt"]
    assert storage.names("t") == ["a.txt", "b"]
    assert [(path, size) for path, size, _ in storage.find("t")] == [
        ("t/a.txt", 7),
        ("t/b/1.txt", 9),
        ("t/b/2.txt", 9),
    ]
    assert len(storage.find()) == 4
    # Listings are true at once, whatever was listed before.
    storage.remove("t/b")
    assert storage.names("t") == ["a.txt"]
    assert not storage.exists("t/b")
    storage.write("t/c.txt", b"")
    assert storage.names("t") == ["a.txt", "c.txt"]
    storage.remove("t/a.txt")
    assert [path for path, *_ in storage.find()] == ["t/c.txt", "tt/x.txt"]


def test_the_version_of_a_file_changes_with_it(storage: Storage) -> None:
    storage.write("a", b"one")
    [(_, _, before)] = storage.find()
    assert storage.find() == [("a", 3, before)]
    storage.write("a", b"two")
    [(_, _, after)] = storage.find()
    assert before != after


def test_storage_travels_between_processes(storage: Storage) -> None:
    storage.write("a", b"1")
    copy = pickle.loads(pickle.dumps(storage))
    assert "fs" not in vars(copy)
    assert copy == storage
    assert copy.read("a") == b"1"


def test_parts_on_both_stores_have_the_same_bytes(tmp_path: Path, s3: str) -> None:
    local, remote = Storage(str(tmp_path)), Storage(s3)
    for one in (local, remote):
        one.write_part("part.parquet", table(ROWS), SCHEMA, "id")
    assert local.read("part.parquet") == remote.read("part.parquet")
    assert remote.read_table("part.parquet", ["id"])["id"].to_pylist() == [r["id"] for r in ROWS]


def test_a_crash_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    storage.write("t/part.parquet", b"old")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            storage.write("t/part.parquet", b"new")
        with pytest.raises(KeyboardInterrupt):
            storage.write("t/other.parquet", b"new")
    assert storage.read("t/part.parquet") == b"old"
    assert not storage.exists("t/other.parquet")
    assert storage.names("t") == ["part.parquet"]
    storage.write("t/part.parquet", b"new")
    assert storage.read("t/part.parquet") == b"new"
    assert len(list((tmp_path / "t").iterdir())) == 3
    storage.remove_unfinished("t")
    storage.remove_unfinished("nothing")
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["part.parquet"]


def test_data_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace, fsync = os.replace, os.fsync

    def note_fsync(descriptor: int) -> None:
        done.append("fsync")
        fsync(descriptor)

    def note_replace(source: str, target: str) -> None:
        done.append("replace")
        assert Path(source).read_bytes() == b"data"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    Storage(str(tmp_path)).write("a", b"data")
    assert done == ["fsync", "replace"]


@given(st.randoms(use_true_random=False), st.integers(1, 60))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_are_a_function_of_the_rows(
    tmp_path: Path, shuffle: random.Random, chunk: int
) -> None:
    storage = Storage(str(tmp_path))
    storage.write_part("a.parquet", table(ROWS), SCHEMA, "id")
    rows = list(ROWS)
    shuffle.shuffle(rows)
    other = pa.concat_tables(table(rows[i : i + chunk]) for i in range(0, len(rows), chunk))
    # Nor do column order, other columns, wider types or an engine's metadata matter.
    other = other.select(["tags", "value", "id"]).append_column("x", pa.nulls(len(rows)))
    other = other.set_column(1, "value", other["value"].cast(pa.float64()))
    other = other.replace_schema_metadata({"pandas": "noise"})
    storage.write_part("b.parquet", other, SCHEMA, "id")
    assert storage.read("a.parquet") == storage.read("b.parquet")


def test_an_empty_part(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_part("a.parquet", table([]), SCHEMA, "id")
    assert storage.read_table("a.parquet").schema.names == SCHEMA.names
    assert len(storage.read_table("a.parquet")) == 0


def test_no_metadata_is_stored(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_part("a.parquet", table(ROWS), SCHEMA, "id")
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.metadata is None
    assert all(not field.metadata for field in schema)


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(AssertionError, match=r"a\.parquet: id repeats"):
        storage.write_part("a.parquet", table([*ROWS, ROWS[3]]), SCHEMA, "id")
    assert storage.names() == []


def test_media_come_in_small_row_groups(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    schema = pa.schema([("id", pa.string()), ("image", pa.large_binary())])
    rows = pa.table({"id": [f"{i:03d}" for i in range(150)], "image": [b"x"] * 150}, schema=schema)
    storage.write_part("a.parquet", rows, schema, "id")
    file = pq.ParquetFile(tmp_path / "a.parquet")
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == [ROW_GROUP_ROWS_WITH_MEDIA, ROW_GROUP_ROWS_WITH_MEDIA, 22]


def test_hive_like_folders_add_no_columns(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "year=2024"))
    storage.write_part("a.parquet", table(ROWS), SCHEMA, "id")
    assert storage.read_table("a.parquet").column_names == SCHEMA.names


def test_unknown_stores_are_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match="nosuch://bucket"):
        _ = Storage("nosuch://bucket").fs
    # Not the local writer: files would not appear at once.
    with pytest.raises(ConfigError, match="without `file://`"):
        _ = Storage("file:///tmp/x").fs


def test_an_unreachable_store_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match=r"`s3://nowhere` cannot be used \(EndpointConn.*AWS_"):
        Storage("s3://nowhere").check()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_that_takes_no_file_is_told(tmp_path: Path, s3: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/workspace` cannot be used"):
        Storage(str(tmp_path / "file/workspace")).check(writable=True)
    with pytest.raises(ConfigError, match="s3://no-such-bucket-here/x` cannot be used"):
        Storage("s3://no-such-bucket-here/x").check(writable=True)
    for fine in (Storage(str(tmp_path / "new")), Storage(s3 + "/new")):
        fine.check(writable=True)
        assert fine.find() == []


def test_rows_are_read_by_number_in_any_order(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.string()), ("picture", pa.large_binary())])
    ids = [f"{n:04d}" for n in range(200)]  # with media: several row groups
    rows = pa.table(
        [pa.array(ids), pa.array([id_.encode() for id_ in ids], pa.large_binary())], schema=schema
    )
    store = Storage(str(tmp_path))
    store.write_part("part.parquet", rows, schema, "id")
    for wanted in ([], [0], [199, 3, 64, 63, 3], list(range(200))):
        found = store.read_rows("part.parquet", wanted)
        assert found.schema.names == ["id", "picture"]
        assert found["id"].to_pylist() == [ids[n] for n in wanted]
