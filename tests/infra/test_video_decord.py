"""Decord sees the same frames where it can: the two decoders check each other."""

from pathlib import Path

import numpy as np
import pytest

from infra.pixels import DecodeError
from infra.video import VideoFile, read_frames
from tests.clips import number_of, write_clip


def test_both_decoders_give_the_same_frames(assets: Path) -> None:
    for name in ("stream_static.mp4", "flower_bloom.mp4"):
        file = VideoFile(str(assets / "videos"), name)
        ours = read_frames(file, [0.0, 1.03, 2.2], 180, 0.125, 180)
        theirs = read_frames(file, [0.0, 1.03, 2.2], 180, 0.125, 180, decoder="decord")
        for one, other in zip(ours, theirs, strict=True):
            assert one.timestamp_s == pytest.approx(other.timestamp_s, abs=1e-3)
            assert one.partner_s == pytest.approx(other.partner_s, abs=1e-3)
            assert one.rgb is not None
            assert other.rgb is not None
            assert one.rgb.shape == other.rgb.shape
            assert np.abs(one.rgb.astype(int) - other.rgb).mean() < 4  # scalers differ


def test_times_decide_there_too(tmp_path: Path) -> None:
    shown_ms = [0, 40, 500, 540, 1000, 1100]
    write_clip(tmp_path / "clip.mp4", shown_ms)
    frames = read_frames(VideoFile(str(tmp_path), "clip.mp4"), [0.3, 0.52], 96, decoder="decord")
    assert [number_of(frame.rgb) for frame in frames if frame.rgb is not None] == [1, 2]


def test_what_it_does_not_know_is_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "two.mp4", [0, 40], streams=2)
    with pytest.raises(DecodeError, match="first stream of whole local files"):
        read_frames(VideoFile(str(tmp_path), "two.mp4", stream=1), [0.0], 96, decoder="decord")
