"""Frames of a video at given times, through PyAV: planned from packets, then decoded sparsely."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.frames import Frame
from infra.pixels import Pixels
from infra.video_packets import PacketTime, Stretch, choose, stretches
from infra.video_stream import VideoStream, geometry, opened, to_rgb

if TYPE_CHECKING:
    import av

    from infra.video import VideoFile

_SLACK_S = 0.5  # how long after its end a last frame is still shown: headers round


class _Sides(NamedTuple):
    """Short sides of a frame as a candidate, as a partner; absent where it is not such a one."""

    image: dict[int, int | None]
    partner: dict[int, int | None]


def frames_at(
    file: "VideoFile",
    times_s: Sequence[float],
    short_side: int | None,
    gap_s: float | None,
    partner_short_side: int | None,
    end_s: float | None,
) -> list[Frame]:
    """See `infra.video.read_frames`; raises what the libraries raise."""
    with opened(file) as stream:
        times = [stream.ticks(time_s) for time_s in times_s]
        gap = None if gap_s is None else gap_s / stream.tick_s
        end = None if end_s is None else stream.ticks(end_s)
        packets = stream.times_around(times, gap or 0.0)
        shown = sorted({packet.pts for packet in packets})
        chosen = choose(shown, times, gap, end)
        sides = _Sides(
            {one.pts: short_side for one in chosen if one.pts is not None},
            {one.partner: partner_short_side for one in chosen if one.partner is not None},
        )
        images: dict[int, Pixels] = {}
        partners: dict[int, Pixels] = {}
        for stretch in stretches(packets, sides.image.keys() | sides.partner.keys()):
            _decode(stream, packets, stretch, sides, images, partners)
        stop_s = _end_s(stream, packets, shown)
        frames = []
        for time_s, one in zip(times_s, chosen, strict=True):
            frame = _frame(stream, one.pts, images)
            partner = None if one.partner is None else partners.get(one.partner)
            if one.pts is not None and one.pts == shown[-1] and time_s > stop_s + _SLACK_S:
                message = f"there is nothing at {time_s:.3f} s: the video ends at {stop_s:.3f} s"
                frame = Frame(None, None, error=_error("past_end", message))
            elif one.partner is not None and partner is not None and frame.rgb is not None:
                partner_s = stream.seconds(one.partner)
                frame = Frame(frame.timestamp_s, frame.rgb, partner_s, partner)
            frames.append(frame)
        return frames


def every_frame(
    file: "VideoFile", start_s: float | None, end_s: float | None, width: int, height: int
) -> tuple[NDArray[np.float64], Pixels]:
    """See `infra.video.small_frames`; raises what the libraries raise."""
    with opened(file) as stream:
        start = -np.inf if start_s is None else stream.ticks(start_s) - 0.5
        stop = np.inf if end_s is None else stream.ticks(end_s) - 0.5
        found: dict[int, Pixels] = {}
        for frame in stream.decode_all(start, stop):
            if frame.pts is not None and not frame.is_corrupt:
                found[frame.pts] = to_rgb(frame, geometry(stream, frame), width, height)
        times = sorted(found)
        frames = np.empty((len(times), height, width, 3), np.uint8)
        for place, time in enumerate(times):
            frames[place] = found[time]
        return np.array([stream.seconds(time) for time in times], np.float64), frames


def _decode(
    stream: VideoStream,
    packets: Sequence[PacketTime],
    stretch: Stretch,
    sides: _Sides,
    images: dict[int, Pixels],
    partners: dict[int, Pixels],
) -> None:
    missing = set(stretch.wanted)
    for skip in (True, False):  # a decoder that skipped too much, or a container's wrong times
        for frame in stream.decode(packets, stretch, skip):
            pts = _wanted(frame, missing, 0.0 if skip else 0.5 / stream.rate / stream.tick_s)
            if pts is None or frame.is_corrupt:
                continue
            missing.discard(pts)
            shape = geometry(stream, frame)
            for wanted, found in ((sides.image, images), (sides.partner, partners)):
                if pts in wanted:
                    found[pts] = to_rgb(frame, shape, *shape.reduced(wanted[pts]))
        if not missing:
            break


def _wanted(frame: "av.VideoFrame", missing: set[int], tolerance: float) -> int | None:
    """Which of the missing pts a frame is."""
    if frame.pts is None or not missing:
        return None
    shown = frame.pts
    nearest = min(missing, key=lambda pts: (abs(pts - shown), pts))
    return nearest if abs(nearest - shown) <= tolerance else None


def _frame(stream: VideoStream, pts: int | None, images: dict[int, Pixels]) -> Frame:
    if pts is None:
        return Frame(None, None, error=_error("no_frames", "there is no frame"))
    if pts not in images:
        message = f"the frame at {stream.seconds(pts):.3f} s cannot be decoded"
        return Frame(None, None, error=_error("corrupt", message))
    return Frame(stream.seconds(pts), images[pts])


def _end_s(stream: VideoStream, packets: Sequence[PacketTime], shown: Sequence[int]) -> float:
    """Where the last known frame ends."""
    if not shown:
        return 0.0
    last = max(packet.pts + packet.duration for packet in packets)
    return stream.seconds(max(last, shown[-1] + 1 / stream.rate / stream.tick_s))


def _error(type_: str, message: str) -> dict[str, str]:
    return {"stage": "decode", "type": type_, "message": message}
