"""Frames of a video at given times, through decord: for comparison.

Decord reads a whole local file when it opens it, decodes every frame from a key frame on at full
size, and knows one video stream, without display matrix or pixel aspect.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from infra.frames import Frame
from infra.pixels import MAX_ASPECT, DecodeError, Pixels
from infra.video_packets import choose

if TYPE_CHECKING:
    from infra.video import VideoFile

_SCALE = 1_000_000  # ticks per second


def frames_at(
    file: "VideoFile",
    times_s: Sequence[float],
    short_side: int | None,
    gap_s: float | None,
    partner_short_side: int | None,
    end_s: float | None,
) -> list[Frame]:
    """See `infra.video.read_frames`; of whole local files with square, unturned pixels."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    path = file.local_path()
    if path is None or file.stream:
        raise DecodeError("unsupported", "decord reads the first stream of whole local files")
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    shown = np.round(reader.get_frame_timestamp(range(len(reader)))[:, 0] * _SCALE)
    pts = [int(one) for one in shown]
    gap = None if gap_s is None else gap_s * _SCALE
    end = None if end_s is None else end_s * _SCALE
    chosen = choose(pts, [time_s * _SCALE for time_s in times_s], gap, end)
    place = {one: number for number, one in enumerate(pts)}
    frames: list[Frame] = []
    for one in chosen:
        assert one.pts is not None
        rgb = _reduced(reader[place[one.pts]].asnumpy(), short_side)
        partner_s, partner = None, None
        if one.partner is not None:
            partner_s = one.partner / _SCALE
            partner = _reduced(reader[place[one.partner]].asnumpy(), partner_short_side)
        frames.append(Frame(one.pts / _SCALE, rgb, partner_s, partner))
    return frames


def _reduced(rgb: Pixels, short_side: int | None) -> Pixels:
    height, width = rgb.shape[:2]
    if short_side is None:
        return rgb
    short, long = min(height, width), max(height, width)
    scale = min(1.0, short_side / short, MAX_ASPECT * short_side / long)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
