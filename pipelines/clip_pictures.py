"""Small pictures of clips for pages: frames decoded once more, each clip within a limit of time."""

from collections.abc import Mapping, Sequence
from typing import Any

from infra.frames import Frame
from infra.pixels import DecodeError, Pixels, resize_crop
from infra.video import VideoFile, probe, read_frames
from infra.video_process import VideoProcess

SHORT_SIDE = 112
MAX_SIDE = 200
LIMIT_S = 20.0


def video_file(file: Mapping[str, Any]) -> VideoFile:
    """The `VideoFile` of a row's ``file`` (`infra.schema.FILE_TYPE`)."""
    stream = file["stream"] or 0
    return VideoFile(file["root"], file["uri"], file["offset"] or 0, file["length"], stream)


def frames_at(
    process: VideoProcess, file: Mapping[str, Any], times_s: Sequence[float]
) -> list[Frame]:
    """Small frames of a clip at these times of its file; raises DecodeError."""
    return process.call(read_frames, video_file(file), list(times_s), SHORT_SIDE, limit_s=LIMIT_S)


def middle_frame(process: VideoProcess, file: Mapping[str, Any]) -> Pixels:
    """A small picture from the middle of a clip; raises DecodeError."""
    args = (video_file(file), file["start_s"], file["end_s"])
    frame = process.call(_middle_frame, *args, limit_s=LIMIT_S)
    if frame.rgb is None:
        error = frame.error or {"type": "no_frames", "message": "there is none"}
        raise DecodeError(error["type"], error["message"])
    return small(frame.rgb)


def _middle_frame(file: VideoFile, start_s: float | None, end_s: float | None) -> Frame:
    duration_s = probe(file).duration_s or 0.0
    middle = ((start_s or 0.0) + min(end_s or duration_s, duration_s)) / 2
    return read_frames(file, [middle], SHORT_SIDE)[0]


def small(rgb: Pixels) -> Pixels:
    """The whole frame, at most `MAX_SIDE` pixels long."""
    height, width = rgb.shape[:2]
    scale = min(1.0, SHORT_SIDE / min(height, width), MAX_SIDE / max(height, width))
    return resize_crop(rgb, max(1, round(height * scale)), max(1, round(width * scale)))[0]
