"""Facts are what the packets say, whatever the header says."""

from pathlib import Path

import pytest

from infra.video import VideoFile, probe
from tests.clips import write_clip


def test_frame_rates_and_counts_are_those_of_the_packets(tmp_path: Path) -> None:
    for name, step, count in (("25.mp4", 40, 50), ("24.webm", 42, 60), ("10.mkv", 100, 20)):
        codec = "libvpx" if name.endswith("webm") else "libx264"
        write_clip(tmp_path / name, [step * i for i in range(count)], codec=codec)
        facts = probe(VideoFile(str(tmp_path), name))
        assert facts.num_frames == count
        assert facts.fps == pytest.approx(1000 / step)
        assert facts.duration_s == pytest.approx(count * step / 1000, abs=0.06)
        assert not facts.variable_frame_rate
        assert (facts.width, facts.height, facts.rotation) == (320, 192, 0)
        assert facts.file_bytes == (tmp_path / name).stat().st_size


def test_one_long_pause_is_a_variable_rate(tmp_path: Path) -> None:
    shown_ms = [40 * i + 500 * (i > 20) for i in range(50)]
    write_clip(tmp_path / "pause.mp4", shown_ms)
    assert probe(VideoFile(str(tmp_path), "pause.mp4")).variable_frame_rate


def test_a_long_video_is_judged_from_both_ends(tmp_path: Path) -> None:
    """And one cut off ends where its data ends, whatever its index says."""
    shown_ms = [100 * i for i in range(700)]
    for name, codec in (("long.mp4", "libx264"), ("long.webm", "libvpx")):
        write_clip(
            tmp_path / name, shown_ms, codec=codec, size=(64, 48), faststart=codec != "libvpx"
        )
        facts = probe(VideoFile(str(tmp_path), name))
        assert facts.duration_s == pytest.approx(70, abs=0.2)
        assert facts.num_frames == pytest.approx(700, abs=2)
        assert facts.fps == pytest.approx(10)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 95 // 100])
        assert 62 < probe(VideoFile(str(tmp_path), name)).duration_s < 69


def test_streams_and_turns_are_told(tmp_path: Path) -> None:
    write_clip(tmp_path / "two.mp4", [0, 40, 80], streams=2)
    assert probe(VideoFile(str(tmp_path), "two.mp4")).num_video_streams == 2
    for rotation in (90, 180, 270):
        write_clip(tmp_path / "turned.mp4", [0, 40, 80], rotation=rotation)
        facts = probe(VideoFile(str(tmp_path), "turned.mp4"))
        assert (facts.rotation, facts.width, facts.height) == (rotation, 320, 192)


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    write_clip(tmp_path / "one.mp4", [0])
    facts = probe(VideoFile(str(tmp_path), "one.mp4"))
    assert facts.num_frames == 1
    assert 0 < facts.duration_s < 1
    assert not facts.variable_frame_rate


def test_real_clips_are_as_they_are_known(assets: Path) -> None:
    known = {  # codec, width, height, rate, frames, seconds
        "bbb_0_30.webm": ("vp8", 1280, 720, 24, 720, 30.0),
        "cars_topdown_30s.mp4": ("h264", 768, 432, 12.5, 377, 30.16),
        "driving_mjpeg.avi": ("mjpeg", 640, 480, 30, 78, 2.6),
        "persons_static_139s.mp4": ("h264", 768, 432, 10, 1394, 139.4),
        "stream_static.mp4": ("h264", 480, 360, 29.97, 90, 3.0),
        # its pixels are 399 : 400, so that it is a little narrower than stored
        "tears_of_steel_cuts.webm": ("vp8", 798, 332, 24, 1691, 70.46),
    }
    for name, (codec, width, height, rate, frames, seconds) in known.items():
        facts = probe(VideoFile(str(assets / "videos"), name))
        assert (facts.codec, facts.width, facts.height) == (codec, width, height)
        assert facts.fps == pytest.approx(rate, rel=1e-3)
        assert facts.num_frames == frames
        assert facts.duration_s == pytest.approx(seconds, abs=0.02)
        assert not facts.variable_frame_rate
