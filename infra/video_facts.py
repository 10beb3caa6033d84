"""What a video file holds, found from its packets and first frame instead of its header."""

import itertools
from math import inf
from statistics import median
from typing import Any

from infra.pixels import DecodeError
from infra.video_packets import PacketTime
from infra.video_stream import VideoStream, geometry, moving_streams, time_of

_EXACT = 600  # packets that are looked at: those of 20 s at 30 per second
_MAX_DURATION_S = 10 * 86_400
_FAR = 2**60  # a pts behind every end


def facts_of(stream: VideoStream) -> dict[str, Any]:
    """The fields of `infra.video.VideoFacts` but ``file_bytes``; raises DecodeError."""
    packets = _first(stream, _EXACT)
    if not packets:
        raise DecodeError("no_frames", "the video stream has no frame")
    frame = next(stream.decode_all(-inf, inf), None)
    if frame is None:
        raise DecodeError("corrupt", "the stream has packets, but none can be decoded")
    shape = geometry(stream, frame)
    is_whole = len(packets) < _EXACT
    times = sorted({packet.pts for packet in packets})
    intervals = [after - before for before, after in itertools.pairwise(times)]
    usual = median(intervals) if intervals else 1 / stream.rate / stream.tick_s
    tail = packets if is_whole else _last(stream)
    last = max(tail, key=lambda packet: packet.pts)
    end = last.pts + max(last.duration, usual)  # encoders leave the last duration at a tick
    duration_s = stream.seconds(end)
    if duration_s > _MAX_DURATION_S:
        raise DecodeError("endless", f"frames are said to be shown for {duration_s:,.0f} s")
    span = times[-1] - times[0]
    fps = (len(times) - 1) / (span * stream.tick_s) if span else stream.rate
    told = stream.stream.frames if stream.stream.frames > _EXACT else 0
    num_frames = len(times) if is_whole else told or round(duration_s * fps)
    container = stream.container
    return {
        "container": container.format.name,
        "codec": stream.stream.codec_context.name,
        "width": shape.width,
        "height": shape.height,
        "rotation": shape.turns * 90,
        "fps": fps,
        "num_frames": num_frames,
        "duration_s": duration_s,
        # clocks of milliseconds round: 41, 42, 42 are 24 frames per second
        "variable_frame_rate": any(abs(one - usual) > max(2, 0.1 * usual) for one in intervals),
        "num_video_streams": len(moving_streams(container)),
        "num_audio_streams": len(container.streams.audio),
    }


def _first(stream: VideoStream, count: int) -> list[PacketTime]:
    found = []
    for packet in stream.packets(None):
        found.append(PacketTime(time_of(packet), packet.duration or 0, packet.is_keyframe))
        if len(found) == count:
            break
    return found


def _last(stream: VideoStream) -> list[PacketTime]:
    """The packets from the last key frame on; all where it cannot be found from an index."""
    for start in (_FAR, None):
        found = [
            PacketTime(time_of(packet), packet.duration or 0, packet.is_keyframe)
            for packet in stream.packets(start)
        ]
        if found:
            break
    return found
