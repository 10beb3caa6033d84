"""Frames at times: against the numbers painted into them and against decoding everything."""

import random
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.pixels import DecodeError
from infra.video import VideoFile, probe, read_frames, small_frames
from infra.video_stream import geometry, opened, to_rgb
from tests.clips import HEIGHT, WIDTH, number_of, write_clip

GAPS_MS = (10, 33, 40, 100, 250)
KINDS: dict[str, dict[str, Any]] = {
    "vfr.mp4": {},
    "vfr.webm": {"codec": "libvpx"},
    "vfr.mkv": {"gop": 250},
    "vfr.ts": {},
    "vfr4.mp4": {"codec": "mpeg4"},
    "turned90.mp4": {"rotation": 90},
    "turned180.mp4": {"rotation": 180},
    "turned270.mp4": {"rotation": 270},
    "mirrored.mp4": {"rotation": 90, "mirrored": True},
    "all_keys.mp4": {"gop": 1},
    "constant.avi": {"codec": "mjpeg"},
    "constant4.avi": {"codec": "mpeg4"},
}


def vfr(count: int, seed: int = 0) -> list[int]:
    drawn = random.Random(seed)
    return list(accumulate((drawn.choice(GAPS_MS) for _ in range(count - 1)), initial=0))


def in_file(path: Path, **more: Any) -> VideoFile:
    return VideoFile(str(path.parent), path.name, **more)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[VideoFile, list[int]]]:
    folder = tmp_path_factory.mktemp("clips")

    def made(name: str) -> tuple[VideoFile, list[int]]:
        times = [40 * i for i in range(90)] if name.endswith("avi") else vfr(90)
        if not (folder / name).exists():
            write_clip(folder / name, times, **KINDS[name])
        return in_file(folder / name), times

    return made


@pytest.mark.parametrize("name", KINDS)
def test_the_frame_shown_at_a_time_is_the_one(
    name: str, clip: Callable[[str], tuple[VideoFile, list[int]]]
) -> None:
    """Every 0.37 s, and with partners: numbers and time stamps, upright, within a tick."""
    file, shown_ms = clip(name)
    asked = [0.37 * i for i in range(int(shown_ms[-1] / 370) + 1)]
    frames = read_frames(file, asked, 96, 0.125, 64)
    for time_s, frame in zip(asked, frames, strict=True):
        number = max(i for i, ms in enumerate(shown_ms) if ms <= time_s * 1000 + 0.5)
        assert frame.rgb is not None
        assert frame.timestamp_s is not None
        assert number_of(frame.rgb) == number
        assert frame.timestamp_s == pytest.approx(shown_ms[number] / 1000, abs=0.0015)
        assert frame.rgb.shape == (96, 160, 3)
        above, below = frame.rgb[30:44].mean((0, 1)), frame.rgb[60:90].mean((0, 1))
        assert below[0] - above[0] > 30  # red is below
        goal = shown_ms[number] + 125
        later = range(number + 1, len(shown_ms))
        if later:
            assert frame.partner is not None
            assert frame.partner_s is not None
            partner = number_of(frame.partner)
            assert partner > number
            nearest = min(abs(shown_ms[i] - goal) for i in later)
            assert abs(shown_ms[partner] - goal) <= nearest + 1
            assert frame.partner_s == pytest.approx(shown_ms[partner] / 1000, abs=0.0015)
            assert frame.partner.shape[0] == 64
        else:
            assert frame.partner is None


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.webm", "turned90.mp4", "constant4.avi"])
def test_few_frames_are_those_of_decoding_everything(
    name: str, clip: Callable[[str], tuple[VideoFile, list[int]]]
) -> None:
    file, _ = clip(name)
    every = {}
    with opened(file) as stream:
        for frame in stream.decode_all(-np.inf, np.inf):
            shape = geometry(stream, frame)
            every[stream.seconds(frame.pts or 0)] = to_rgb(frame, shape, *shape.reduced(100))
    drawn = random.Random(1)
    end_s = max(every)
    for _ in range(6):
        asked = sorted(drawn.uniform(0, end_s) for _ in range(drawn.randint(1, 9)))
        for frame in read_frames(file, asked, 100, 0.3, 100):
            assert frame.timestamp_s is not None
            assert frame.rgb is not None
            assert (frame.rgb == every[frame.timestamp_s]).all()
            if frame.partner_s is not None and frame.partner is not None:
                assert (frame.partner == every[frame.partner_s]).all()


def test_real_clips_give_the_frames_of_decoding_everything(assets: Path) -> None:
    for name in ("stream_static.mp4", "bbb_0_30.webm", "driving_mjpeg.avi"):
        file = in_file(assets / "videos" / name)
        every = {}
        with opened(file) as stream:
            for frame in stream.decode_all(-np.inf, stream.ticks(3.2)):
                shape = geometry(stream, frame)
                every[stream.seconds(frame.pts or 0)] = to_rgb(frame, shape, *shape.reduced(90))
        for frame in read_frames(file, [0.0, 0.9, 1.71, 2.4], 90, 0.125, 90):
            assert frame.timestamp_s is not None
            assert frame.partner_s is not None
            assert (frame.rgb == every[frame.timestamp_s]).all()
            assert (frame.partner == every[frame.partner_s]).all()


def test_times_may_repeat_and_lie_densely(
    clip: Callable[[str], tuple[VideoFile, list[int]]],
) -> None:
    file, shown_ms = clip("vfr.mp4")
    asked = [time_ms / 1000 for time_ms in shown_ms for _ in range(2)]
    frames = read_frames(file, asked, 96, 0.05, 96)
    assert [number_of(f.rgb) for f in frames if f.rgb is not None] == [
        i for i in range(len(shown_ms)) for _ in range(2)
    ]


def test_a_partner_is_not_taken_from_behind_the_span(
    clip: Callable[[str], tuple[VideoFile, list[int]]],
) -> None:
    file, shown_ms = clip("vfr.mp4")
    end_s = shown_ms[40] / 1000
    early, late = read_frames(file, [0.0, shown_ms[39] / 1000], 96, 0.125, 96, end_s=end_s)
    assert early.partner is not None
    assert late.rgb is not None
    assert late.partner is None


def test_what_is_asked_for_behind_the_end_is_told(
    clip: Callable[[str], tuple[VideoFile, list[int]]],
) -> None:
    file, shown_ms = clip("vfr.webm")
    first, behind = read_frames(file, [0.0, shown_ms[-1] / 1000 + 30], 96)
    assert first.rgb is not None
    assert behind.rgb is None
    assert behind.error is not None
    assert behind.error["type"] == "past_end"
    with pytest.raises(DecodeError, match="the video ends at") as caught:
        read_frames(file, [500.0], 96)
    assert caught.value.type == "past_end"


def test_long_gaps_are_sought_over(tmp_path: Path) -> None:
    shown_ms = [200 * i for i in range(450)]  # 90 s
    file = in_file(write_clip(tmp_path / "long.mp4", shown_ms, gop=20))
    asked = [3.1, 31.0, 31.3, 62.0, 89.7]
    frames = read_frames(file, asked, 96)
    assert [number_of(f.rgb) for f in frames if f.rgb is not None] == [15, 155, 156, 310, 448]


def test_streams_are_told_apart(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "two.mp4", [40 * i for i in range(30)], streams=2)
    for stream, more in ((0, 0), (1, 100)):
        (frame,) = read_frames(in_file(path, stream=stream), [0.41], 96)
        assert frame.rgb is not None
        assert number_of(frame.rgb) == 10 + more


def test_pixels_become_square_and_nothing_is_enlarged(tmp_path: Path) -> None:
    shown_ms = [40 * i for i in range(10)]
    for aspect, size in (((4, 3), (WIDTH, 144)), ((3, 4), (240, HEIGHT))):
        file = in_file(write_clip(tmp_path / f"{aspect[0]}.mp4", shown_ms, aspect=aspect))
        facts = probe(file)
        assert (facts.width, facts.height) == size
        (frame,) = read_frames(file, [0.2], 4000)
        assert frame.rgb is not None
        assert frame.rgb.shape == (size[1], size[0], 3)
        assert number_of(frame.rgb) == 5


@pytest.mark.parametrize("name", ["vfr.mp4", "turned270.mp4", "vfr.webm"])
def test_small_frames_are_all_of_the_stretch(
    name: str, clip: Callable[[str], tuple[VideoFile, list[int]]]
) -> None:
    file, shown_ms = clip(name)
    times, frames = small_frames(file, None, None, 160, 96)
    assert frames.shape == (90, 96, 160, 3)
    assert times == pytest.approx([ms / 1000 for ms in shown_ms], abs=0.0015)
    assert [number_of(one) for one in frames] == list(range(90))
    start_s, end_s = shown_ms[31] / 1000, shown_ms[52] / 1000
    times, frames = small_frames(file, start_s, end_s, 160, 96)
    assert [number_of(one) for one in frames] == list(range(31, 52))
    none, empty = small_frames(file, 1000.0, None, 160, 96)
    assert len(none) == 0
    assert empty.shape == (0, 96, 160, 3)


def test_no_times_are_no_frames(tmp_path: Path) -> None:
    assert read_frames(VideoFile(str(tmp_path), "nothing.mp4"), [], 96) == []
    with pytest.raises(ValueError, match="must ascend"):
        read_frames(VideoFile(str(tmp_path), "nothing.mp4"), [2.0, 1.0], 96)
