"""The demo's source folder: complete, the same every time, and truthful about its bad files."""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.config import ConfigError
from infra.pixels import DecodeError, decode
from pipelines import demo_source
from pipelines.demo_source import MARKER, write_demo_source

IMAGES = {".jpg", ".png"}
UNUSABLE = {
    "coffee_truncated.jpg": "truncated",
    "empty.jpg": "empty",
    "notes.jpg": "unknown_format",
    "download_error.jpg": "unknown_format",
    "too_many_pixels.png": "too_many_pixels",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "photographs"
    start = time.monotonic()
    write_demo_source(folder)
    assert time.monotonic() - start < 20
    return folder


def images(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix in IMAGES)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def sidecar(folder: Path, name: str) -> Any:
    return json.loads((folder / name).with_suffix(".json").read_bytes())


def test_every_sample_has_a_caption_and_its_attribution(folder: Path) -> None:
    kinds: Counter[str] = Counter()
    without = set()
    for path in images(folder):
        if path.name == "motorcycle_broken_sidecar.jpg":
            continue
        if not path.with_suffix(".json").exists():
            without.add(path.name)
            continue
        facts = sidecar(folder, path.name)
        assert set(facts) == {
            "caption",
            "attribution",
            "licence",
            "package",
            "original",
            "kind",
            "box",
        }
        assert all(facts[name] for name in facts if name != "box")
        assert (facts["box"] is not None) == (facts["kind"] == "crop") == ("_crop_" in path.name)
        kinds[facts["kind"]] += 1
    assert kinds == {
        "original": 28,
        "crop": 205,
        "blurred": 4,
        "tiny": 3,
        "duplicate": 1,
        "cmyk": 1,
        "recompressed": 1,
        "rotated": 1,
        "16 bit": 1,
        "truncated": 1,
    }
    assert without == {"IMG_0001.png", *UNUSABLE} - {"coffee_truncated.jpg"}
    assert len(list(images(folder))) == 252
    with pytest.raises(ValueError):
        sidecar(folder, "motorcycle_broken_sidecar.jpg")


def test_files_decode_but_for_those_that_must_not(folder: Path) -> None:
    for path in images(folder):
        if path.name in UNUSABLE:
            with pytest.raises(DecodeError) as caught:
                decode(path.read_bytes())
            assert caught.value.type == UNUSABLE[path.name]
            continue
        decoded = decode(path.read_bytes())
        if "_crop_" in path.name:
            left, top, right, bottom = sidecar(folder, path.name)["box"]
            assert (decoded.width, decoded.height) == (right - left, bottom - top)
            assert min(decoded.width, decoded.height) >= 256
        elif "_tiny" in path.name:
            assert max(decoded.width, decoded.height) < 100


def test_copies_show_what_their_originals_show(folder: Path) -> None:
    def mean_difference(one: str, other: str) -> float:
        a, b = (decode((folder / name).read_bytes()).rgb.astype(float) for name in (one, other))
        assert a.shape == b.shape
        return float(abs(a - b).mean())

    assert mean_difference("chelsea_lying.jpg", "chelsea.png") < 3
    assert mean_difference("moon_16bit.png", "moon.png") == 0
    assert mean_difference("china_recompressed.jpg", "china.jpg") < 8
    assert mean_difference("coffee_cmyk.jpg", "coffee.png") < 3
    files = contents(folder)
    assert files["coffee copy [1] – café 50%.png"] == files["coffee.png"]
    assert files["IMG_0001.png"] == files["astronaut.png"]


def test_bytes_are_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    write_demo_source(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    assert os.listdir(tmp_path) == ["again"]


def test_a_complete_folder_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_source, "make_samples", lambda photographs: 1 / 0)
    write_demo_source(folder)


def test_an_incomplete_or_outdated_folder_is_made_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    write_demo_source(copy)
    (copy / "china.jpg").unlink()
    write_demo_source(str(copy))
    assert contents(copy) == contents(folder)
    monkeypatch.setattr(demo_source, "VERSION", 10**6)
    write_demo_source(copy)
    before = contents(folder)
    changed = {name for name, of in contents(copy).items() if before[name] != of}
    assert changed == {MARKER}


def test_an_interrupted_run_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demo_source.make_samples

    def broken(photographs: Any) -> Iterator[Any]:
        for number, sample in enumerate(made(photographs)):
            if number == 5:
                raise KeyboardInterrupt
            yield sample

    monkeypatch.setattr(demo_source, "make_samples", broken)
    with pytest.raises(KeyboardInterrupt):
        write_demo_source(tmp_path / "photographs")
    assert not (tmp_path / "photographs").exists()
    monkeypatch.undo()
    write_demo_source(tmp_path / "photographs")
    assert os.listdir(tmp_path) == ["photographs"]


@pytest.mark.parametrize("marker", [None, "{", "[]", '{"fingerprint": "", "files": []}'])
def test_other_peoples_files_are_never_removed(tmp_path: Path, marker: str | None) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    if marker is not None:
        (tmp_path / MARKER).write_text(marker)
    with pytest.raises(ConfigError, match="not of the demo: name another folder"):
        write_demo_source(tmp_path)
    assert (tmp_path / "holiday.jpg").read_bytes() == b"mine"


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_source, "PACKAGES", {"scikit-nothing": ("sknothing", "")})
    with pytest.raises(ConfigError, match=r"need scikit-nothing: pip install 'nextscale\[demo\]'"):
        write_demo_source(tmp_path / "photographs")
    assert not (tmp_path / "photographs").exists()
