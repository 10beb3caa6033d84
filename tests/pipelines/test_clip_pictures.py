"""Frames for pages: small, whole, of the right time; bad files raise, and nothing hangs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infra.pixels import DecodeError, Pixels
from infra.video_process import VideoProcess
from pipelines.clip_pictures import MAX_SIDE, SHORT_SIDE, frames_at, middle_frame, small, video_file
from pipelines.demo_clip import encode_clip


@pytest.fixture(scope="module")
def process() -> Iterator[VideoProcess]:
    with VideoProcess() as process:
        yield process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 4 s that brightens by 50 a second; the same inside another file; and no clip."""
    folder = tmp_path_factory.mktemp("clips")
    clip = encode_clip(lambda s: Image.new("L", (320, 240), round(20 + 50 * s)).convert("RGB"), 4)
    (folder / "clip.mp4").write_bytes(clip)
    (folder / "archive.tar").write_bytes(b"x" * 777 + clip + b"y" * 50)
    (folder / "page.mp4").write_bytes(b"<html>")
    return folder


def place(folder: Path, uri: str, **more: Any) -> dict[str, Any]:
    keys = ("offset", "length", "start_s", "end_s", "stream")
    return dict.fromkeys(keys) | {"root": str(folder), "uri": uri} | more


def grey(rgb: Pixels | None) -> float:
    assert rgb is not None
    return float(rgb.mean())


def test_frames_are_those_of_their_times(process: VideoProcess, folder: Path) -> None:
    times_s = [0.0, 0.5, 1.0, 3.5]
    size = (folder / "clip.mp4").stat().st_size
    for file in (
        place(folder, "clip.mp4"),
        place(folder, "archive.tar", offset=777, length=size, stream=0),
    ):
        found = frames_at(process, file, times_s)
        assert [frame.timestamp_s for frame in found] == pytest.approx(times_s, abs=1 / 32)
        greys = [grey(frame.rgb) for frame in found]
        assert greys == pytest.approx([20 + 50 * s for s in times_s], abs=4)


@pytest.mark.parametrize(
    ("start_s", "end_s", "middle_s"),
    [(None, None, 2.0), (1.0, None, 2.5), (None, 1.0, 0.5), (3.0, 3.5, 3.25), (2.0, 900.0, 3.0)],
)
def test_the_middle_is_that_of_the_span(
    process: VideoProcess, folder: Path, start_s: float | None, end_s: float | None, middle_s: float
) -> None:
    file = place(folder, "clip.mp4", start_s=start_s, end_s=end_s)
    picture = middle_frame(process, file)
    assert picture.shape == (SHORT_SIDE, 149, 3)
    assert grey(picture) == pytest.approx(20 + 50 * middle_s, abs=6)


def test_what_is_no_clip_raises(process: VideoProcess, folder: Path) -> None:
    for uri in ("page.mp4", "gone.mp4"):
        with pytest.raises(DecodeError):
            middle_frame(process, place(folder, uri))
        with pytest.raises(DecodeError):
            frames_at(process, place(folder, uri), [0.0])
    assert grey(middle_frame(process, place(folder, "clip.mp4"))) > 50  # the process lives on


def test_nulls_of_a_place_mean_the_whole_file() -> None:
    file = video_file(place(Path("/a"), "b.mp4"))
    assert (file.root, file.uri, file.offset, file.length, file.stream) == (
        "/a",
        "b.mp4",
        0,
        None,
        0,
    )


@given(st.integers(1, 400), st.integers(1, 400))
def test_small_pictures_are_whole_and_never_enlarged(height: int, width: int) -> None:
    made = small(np.full((height, width, 3), 7, np.uint8))
    assert max(made.shape[:2]) <= MAX_SIDE
    assert min(made.shape[:2]) <= SHORT_SIDE
    assert made.shape[0] <= height
    assert made.shape[1] <= width
    assert (made == 7).all()
    if min(height, width) <= SHORT_SIDE and max(height, width) <= MAX_SIDE:
        assert made.shape == (height, width, 3)
    ratio = (made.shape[1] / made.shape[0]) / (width / height)
    assert 1 / (1 + 2 / min(made.shape[:2])) < ratio < 1 + 2 / min(made.shape[:2])
