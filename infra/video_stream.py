"""One video stream of a file, through PyAV: its packets' times, and frames of some of them.

Nothing here guards against damaged files: that is the business of `infra.video`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.pixels import MAX_ASPECT, DecodeError, Pixels
from infra.video_packets import PacketTime, Stretch

if TYPE_CHECKING:
    import av

    from infra.video import VideoFile

# Demuxers of media alone: playlists and lists of files (HLS, concat) would open other files.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,ogg,flv,asf,gif,h264,hevc,m4v,"
    "mxf,ivf"
)
MAX_PIXELS = 64_000_000  # of a frame: 8K is 33 million
_SEEK_GAP_S = 10.0  # reading packets on is cheaper than seeking over less
_UNSPECIFIED, _HD_HEIGHT = 2, 720


@dataclass(frozen=True)
class Geometry:
    """How a stored frame becomes upright: ``turns`` quarter turns against the clock, after scaling.

    ``width`` and ``height`` are those of the upright frame with square pixels, which are never
    more than the stored ones.
    """

    width: int
    height: int
    turns: int
    flipped: bool = False

    def reduced(self, short_side: int | None) -> tuple[int, int]:
        """Width and height at ``short_side``, never enlarged; the long side is bounded."""
        short, long = min(self.width, self.height), max(self.width, self.height)
        if short_side is None:
            return self.width, self.height
        scale = min(1.0, short_side / short, MAX_ASPECT * short_side / long)
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))


class VideoStream:
    """An open stream. Times are ticks of ``tick_s`` seconds, pts as stored, ``zero`` is the start.

    `opened` makes one and closes it.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.container = container
        self.stream = stream
        self.tick_s = float(stream.time_base)
        start_s = (container.start_time or 0) / 1_000_000
        # Streams of broadcasts start at any time, files at 0, whatever is first heard there.
        self.zero = max(0.0, start_s) / self.tick_s
        self._reading: Iterator[Any] = iter(())
        self._seen = -math.inf  # the latest pts that was read since the last jump

    def ticks(self, time_s: float) -> float:
        """Seconds in the file as pts."""
        return time_s / self.tick_s + self.zero

    def seconds(self, pts: float) -> float:
        """A pts as seconds in the file."""
        return (pts - self.zero) * self.tick_s

    @property
    def rate(self) -> float:
        """Frames per second as the header says, or 25."""
        rate = float(self.stream.average_rate or self.stream.guessed_rate or 0)
        return rate if 0.01 <= rate <= 1000 else 25.0

    def packets(self, from_pts: float | None = None) -> Iterator["av.Packet"]:
        """Packets in the order of decoding, from a key frame at or before ``from_pts``."""
        if from_pts is None or not self._seek(from_pts):
            self.container.seek(0)
        self._reading, self._seen = self.container.demux(self.stream), -math.inf
        return self._read()

    def _from(self, key_pts: int | None) -> Iterator["av.Packet"]:
        """As `packets`, but what lies shortly ahead is read up to instead of being sought."""
        if key_pts is not None and 0 < key_pts - self._seen < _SEEK_GAP_S / self.tick_s:
            return self._read()
        return self.packets(key_pts)

    def _read(self) -> Iterator["av.Packet"]:
        for packet in self._reading:
            pts = time_of(packet)
            if packet.size and pts is not None:
                self._seen = max(self._seen, pts)
                yield packet

    def times_around(self, times: Sequence[float], reach: float) -> list[PacketTime]:
        """The packets of all frames from each time (pts, ascending) to ``reach`` ticks after it.

        Long gaps between times are sought over, so that there may be gaps between packets; each
        part starts with a key frame.
        """
        found: dict[int, PacketTime] = {}
        far = _SEEK_GAP_S / self.tick_s
        parts: list[list[float]] = []
        for time in times:
            if parts and time - parts[-1][-1] < far:
                parts[-1].append(time)
            else:
                parts.append([time])
        for part in parts:
            here = self._part(part[0], part[-1] + reach)
            if not any(packet.pts <= part[0] + 0.5 for packet in here) and not found:
                here = self._part(None, part[-1] + reach)  # a wrong index led past it
            for packet in here:
                found.setdefault(packet.pts, packet)
        return list(found.values())

    def _part(self, start: float | None, stop: float) -> list[PacketTime]:
        found = []
        beyond: float | None = None  # the first frame shown after `stop`
        for packet in self.packets(start):
            pts = time_of(packet)
            found.append(PacketTime(pts, packet.duration or 0, packet.is_keyframe))
            if pts > stop:
                beyond = pts if beyond is None else min(beyond, pts)
            decoded = pts if packet.dts is None else packet.dts
            if beyond is not None and decoded >= beyond:
                break  # what follows is shown after that
        return found

    def decode(
        self, packets: Sequence[PacketTime], stretch: Stretch, skip: bool = True
    ) -> Iterator["av.VideoFrame"]:
        """Frames of a stretch as they come; wanted ones are missing where the data is damaged.

        With ``skip`` the decoder leaves out what nobody wants and no other picture refers to.
        """
        first, last = packets[stretch.start].pts, packets[stretch.stop - 1].pts
        self.restart()
        for start in (first, None):  # from the very start where a wrong index leads past it
            begun = False
            for packet in self._from(start):
                pts = time_of(packet)
                begun = begun or pts == first
                if begun:
                    unwanted = skip and pts not in stretch.wanted
                    self.stream.codec_context.skip_frame = "NONREF" if unwanted else "DEFAULT"
                    yield from self._frames(packet)
                    if pts == last:
                        break
            if begun:
                break
        yield from self._frames(None)

    def decode_all(self, start: float, stop: float) -> Iterator["av.VideoFrame"]:
        """Every frame that is shown from ``start`` on and before ``stop`` (pts)."""
        self.restart()
        for packet in self.packets(start):
            decoded = time_of(packet) if packet.dts is None else packet.dts
            if decoded >= stop:
                break
            yield from (f for f in self._frames(packet) if start <= (f.pts or 0) < stop)
        yield from (f for f in self._frames(None) if start <= (f.pts or 0) < stop)

    def restart(self) -> None:
        """Forget what was decoded before a jump."""
        context = self.stream.codec_context
        context.skip_frame = "DEFAULT"
        if context.is_open:
            context.flush_buffers()

    def _frames(self, packet: "av.Packet | None") -> "list[av.VideoFrame]":
        import av

        try:
            return list(self.stream.codec_context.decode(packet))
        except (av.error.InvalidDataError, av.error.EOFError):
            return []  # decoding goes on behind the damage; what is missing is told by its time

    def _seek(self, pts: float) -> bool:
        import av

        try:
            self.container.seek(max(int(pts), -(2**62)), backward=True, stream=self.stream)
        except (av.error.FFmpegError, OverflowError):
            return False
        return True


def time_of(packet: "av.Packet") -> Any:
    """When a packet's frame is shown; where the container does not say, when it is decoded."""
    return packet.dts if packet.pts is None else packet.pts


@contextmanager
def opened(file: "VideoFile") -> Iterator[VideoStream]:
    """The stream of a file, open; raises DecodeError and what the libraries raise."""
    import av

    source = file.local_path()
    with av.open(
        file.open() if source is None else f"file:{source}",
        container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
        metadata_errors="replace",
    ) as container:
        streams = moving_streams(container)
        if not streams:
            raise DecodeError("no_video_stream", f"{len(container.streams)} streams, no video")
        number = file.stream or 0
        if not 0 <= number < len(streams):
            raise DecodeError(
                "no_video_stream", f"no video stream {number}: there are {len(streams)}"
            )
        stream = streams[number]
        context = stream.codec_context
        if context is None or not context.width or not context.height:
            raise DecodeError("corrupt", "the header gives the frames no size")
        if context.width * context.height > MAX_PIXELS:
            size = f"{context.width} x {context.height}"
            raise DecodeError("too_many_pixels", f"{size} pixels are more than {MAX_PIXELS:,}")
        context.thread_count = 1  # workers are already one per core
        yield VideoStream(container, stream)


def moving_streams(container: Any) -> list[Any]:
    """The video streams that are no cover pictures."""
    from av.stream import Disposition

    cover = Disposition.attached_pic
    return [one for one in container.streams.video if not one.disposition & cover]


def geometry(stream: VideoStream, frame: "av.VideoFrame") -> Geometry:
    """How frames like this one become upright, from the file's display matrix and pixel aspect."""
    aspect = float(stream.stream.sample_aspect_ratio or 1)
    width, height = float(frame.width), float(frame.height)
    if 0.05 <= aspect <= 20:  # anything else is a damaged header
        width, height = (width, height / aspect) if aspect >= 1 else (width * aspect, height)
    turns, flipped = _turns(frame)
    upright = (height, width) if turns % 2 else (width, height)
    return Geometry(max(1, round(upright[0])), max(1, round(upright[1])), turns, flipped)


def _turns(frame: "av.VideoFrame") -> tuple[int, bool]:
    data: Any
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
            flipped = a * d - b * c < 0
            if flipped:  # the matrix is a mirror, left for right, and then a turn
                a, b = -a, -b
            degrees = np.degrees(np.arctan2(-b, a))
            return round(float(degrees) / 90) % 4, flipped
    return 0, False


def to_rgb(frame: "av.VideoFrame", shape: Geometry, width: int, height: int) -> Pixels:
    """A frame as upright RGB [height, width, 3], reduced by area in one pass of the scaler."""
    from av.video.reformatter import Colorspace, Interpolation

    if frame.width * frame.height > MAX_PIXELS:
        raise DecodeError("too_many_pixels", f"a frame of {frame.width} x {frame.height} pixels")
    stored = (height, width) if shape.turns % 2 else (width, height)
    # Where a file does not name its matrix, players take BT.709 for HD and BT.601 below.
    hd = frame.colorspace == _UNSPECIFIED and frame.height >= _HD_HEIGHT
    rgb = frame.reformat(
        *stored,
        format="rgb24",
        src_colorspace=Colorspace.ITU709 if hd else None,
        interpolation=Interpolation.AREA,
        threads=1,
    ).to_ndarray()
    if shape.flipped:
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(np.rot90(rgb, shape.turns))
