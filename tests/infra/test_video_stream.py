"""Packets around times, stretches without needless pictures, and upright pictures."""

from pathlib import Path

import numpy as np
import pytest

from infra.video import VideoFile
from infra.video_packets import stretches
from infra.video_stream import Geometry, geometry, opened, to_rgb
from tests.clips import number_of, picture, write_clip

SHOWN_MS = [40 * i for i in range(120)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> VideoFile:
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "clip.mp4", SHOWN_MS, gop=30, b_frames=3)
    return VideoFile(str(folder), "clip.mp4")


def test_packets_around_times_hold_every_frame_in_reach(file: VideoFile) -> None:
    with opened(file) as stream:
        for time_s in (0.0, 1.0, 1.21, 3.99):
            packets = stream.times_around([stream.ticks(time_s)], 0.2 / stream.tick_s)
            assert packets[0].is_key  # also when packets behind it were read before
            found = {round(stream.seconds(packet.pts) * 25) for packet in packets}
            first = int(time_s * 25 + 1e-6)
            last = min(119, int((time_s + 0.2) * 25 + 1e-6) + 1)  # with the first beyond
            assert set(range(first, last + 1)) <= found
            assert len(packets) < 30 + 5 + 8  # a group, the reach and what was reordered


def test_a_stretch_leaves_out_what_nobody_needs(file: VideoFile) -> None:
    with opened(file) as stream:
        packets = stream.times_around([stream.ticks(0), stream.ticks(4.7)], 0.0)
        wanted = packets[70].pts
        (stretch,) = stretches(packets, {wanted})
        frames = [frame.pts for frame in stream.decode(packets, stretch)]
        every = [frame.pts for frame in stream.decode(packets, stretch, skip=False)]
        assert wanted in frames
        assert set(frames) < set(every)
        assert len(every) == stretch.stop - stretch.start


def test_every_turn_and_mirror_comes_out_upright(tmp_path: Path) -> None:
    truth = picture(5)
    for rotation in (0, 90, 180, 270):
        for mirrored in (False, True):
            name = f"{rotation}{mirrored}.mp4"
            write_clip(tmp_path / name, [0, 40, 80], rotation=rotation, mirrored=mirrored)
            write_clip(
                tmp_path / name,
                [0, 40, 80],
                rotation=rotation,
                mirrored=mirrored,
                first_number=5,
            )
            with opened(VideoFile(str(tmp_path), name)) as stream:
                frame = next(stream.decode_all(-np.inf, np.inf))
                shape = geometry(stream, frame)
                rgb = to_rgb(frame, shape, shape.width, shape.height)
            assert rgb.shape == truth.shape
            assert number_of(rgb) == 5
            assert np.abs(rgb.astype(int) - truth).mean() < 8


def test_reduced_sizes_are_bounded() -> None:
    assert Geometry(1920, 1080, 0).reduced(512) == (910, 512)
    assert Geometry(1080, 1920, 1).reduced(512) == (512, 910)
    assert Geometry(320, 200, 0).reduced(512) == (320, 200)
    assert Geometry(320, 200, 0).reduced(None) == (320, 200)
    assert Geometry(10_000, 100, 0).reduced(50) == (400, 4)
