"""Facts and pixels of real photographs, and what becomes of bad rows."""

import hashlib
import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from infra.pixels import pictures_of
from infra.schema import ERROR
from operators.probe import Probe


def table(files: list[bytes | None]) -> pa.Table:
    return pa.table(
        {
            "sample_id": [f"{i:02d}" for i in range(len(files))],
            "bytes": pa.array(files, pa.large_binary()),
            "error": pa.nulls(len(files), ERROR.type),
        }
    )


def photographs(folder: Path) -> list[bytes | None]:
    return [p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in (".png", ".jpg")]


def test_facts_of_real_photographs(photos: Path) -> None:
    files = photographs(photos)
    batch = Probe()(table(files))
    assert batch.num_rows == 8
    assert batch.column_names == ["sample_id", "bytes", "error", *Probe.writes.names]
    for name in Probe.writes.names:
        assert batch.schema.field(name).equals(Probe.writes.field(name), check_metadata=True)
    assert batch["error"].null_count == 8
    row = batch.select(Probe.writes.names[:-1]).to_pylist()[-2]  # retina.jpg
    data = (photos / "retina.jpg").read_bytes()
    assert row == {
        "format": "JPEG",
        "width": 1411,
        "height": 1411,
        "aspect": 1.0,
        "file_bytes": len(data),
        "bytes_per_pixel": pytest.approx(len(data) / 1411**2),
        "mode": "RGB",
        "orientation": 1,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert all(p is not None and min(p.shape[:2]) <= 512 for p in pictures_of(batch))


def test_bad_rows_get_their_error_and_nothing_else(photos: Path) -> None:
    good = (photos / "rocket.jpg").read_bytes()
    batch = table([good, good[:5000], b"", b"<html>", None, good, good])
    failed = {"stage": "fetch", "type": "timeout", "message": "no answer"}
    errors = pa.array([None] * 6 + [failed], ERROR.type)
    batch = Probe()(batch.set_column(2, ERROR, errors))
    found = batch["error"].to_pylist()
    types = [error and error["type"] for error in found]
    expected = [None, "truncated", "empty", "unknown_format", "missing_bytes", None, "timeout"]
    assert types == expected
    assert [error["stage"] for error in found if error] == ["probe"] * 4 + ["fetch"]
    for name in Probe.writes.names:
        assert batch[name].is_valid().to_pylist() == [error is None for error in found]
    assert batch["sample_id"].to_pylist() == [f"{i:02d}" for i in range(7)]


def test_pixel_limit(photos: Path) -> None:
    batch = Probe(max_pixels=1000)(table([(photos / "rocket.jpg").read_bytes()]))
    assert batch["error"][0].as_py()["type"] == "too_many_pixels"


def test_empty_and_all_bad_batches() -> None:
    for files in ([], [None, b"x"]):
        batch = Probe()(table(list(files)))
        assert batch.num_rows == len(files)
        assert batch.schema.names[-len(Probe.writes) :] == Probe.writes.names
        assert batch["image"].null_count == len(files)


def test_a_row_does_not_depend_on_its_batch(photos: Path) -> None:
    whole = table(photographs(photos))
    together = Probe()(whole)
    for i in range(whole.num_rows):
        assert Probe()(whole.slice(i, 1)).equals(together.slice(i, 1))


def test_pickling_and_parameters() -> None:
    probe = Probe(short_side=64, max_pixels=9)
    assert pickle.loads(pickle.dumps(probe)) == probe
    with pytest.raises(ValueError, match="short_side is 0"):
        Probe(short_side=0)
    with pytest.raises(ValueError, match="max_pixels is 0"):
        Probe(max_pixels=0)
