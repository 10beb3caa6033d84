"""From video files to facts and frames: the decode boundary of clips.

Every fault of a file ends here as a `infra.pixels.DecodeError`. What lies in the store is read; a
fault of the store itself is raised as it is. Libraries may still hang or crash on hostile files:
call through `infra.video_process.VideoProcess` where files are not one's own.

Times are seconds from the start of the file; time stamps, never frame numbers, say which frame is
meant. Frames come out upright (display matrix), with square pixels, as 8-bit RGB.

PyAV decodes. Decord is there to be compared with (tests/benchmarks/video_decode.py): it takes up to
three times as long, knows neither rotation nor pixel aspect nor a second stream, repeats a last
frame for ever where a file is cut off, and opens no damaged file that PyAV does not.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from infra.frames import Frame
from infra.pixels import DecodeError, Pixels
from infra.storage import Storage, client_errors

Decoder = Literal["auto", "pyav", "decord"]  # auto: PyAV, as measured
_SIGNATURES = {  # of containers: place in the file, bytes
    "mp4": [(4, name) for name in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")],
    "matroska": [(0, b"\x1aE\xdf\xa3")],
    "avi": [(8, b"AVI ")],
    "mpeg": [(0, b"\0\0\1"), (0, b"G"), (4, b"G"), (0, b"\0\0\0\1")],
    "ogg": [(0, b"OggS")],
    "flv": [(0, b"FLV")],
    "asf": [(0, b"0&\xb2u")],
    "gif": [(0, b"GIF8")],
}
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


@dataclass(frozen=True)
class VideoFile:
    """Bytes [offset, offset + length) of ``uri`` in Storage(root); null length: to its end.

    ``stream`` counts the file's video streams.
    """

    root: str
    uri: str
    offset: int | None = 0
    length: int | None = None
    stream: int | None = 0

    def local_path(self) -> str | None:
        """The path of a whole local file, which libraries open themselves; else None."""
        storage = Storage(self.root)
        whole = not self.offset and self.length is None
        return storage.path(self.uri) if whole and storage.is_local else None

    def open(self) -> BinaryIO:
        """A seekable reader of these bytes alone; raises FileNotFoundError."""
        opened = Storage(self.root).open(self.uri)
        if not self.offset and self.length is None:
            return opened
        return cast(BinaryIO, _Window(opened, self.offset or 0, self.length))


@dataclass(frozen=True)
class VideoFacts:
    """What a file holds; sizes are those of upright frames with square pixels.

    ``num_frames``, ``duration_s`` (where the last frame ends), ``fps`` (the average) and
    ``variable_frame_rate`` are found from the packets and not told by the header. Of files of more
    than 600 frames the first 600 and the last group are looked at: there ``num_frames`` is the
    header's, or follows from the duration. ``rotation`` is in degrees against the clock.
    """

    container: str
    codec: str
    width: int
    height: int
    rotation: int
    fps: float
    num_frames: int
    duration_s: float
    variable_frame_rate: bool
    num_video_streams: int
    num_audio_streams: int
    file_bytes: int


def probe(file: VideoFile) -> VideoFacts:
    """The facts of a file, of which one frame is decoded.

    Raises DecodeError: ``missing``, ``empty``, ``unknown_format``, ``truncated``, ``corrupt``,
    ``no_video_stream``, ``no_frames``, ``too_many_pixels``, ``endless``.
    """
    from infra.video_facts import facts_of
    from infra.video_stream import opened

    with _faults(file), opened(file) as stream:
        return VideoFacts(**facts_of(stream), file_bytes=num_bytes(file))


def read_frames(
    file: VideoFile,
    times_s: Sequence[float],
    short_side: int | None,
    partner_gap_s: float | None = None,
    partner_short_side: int | None = None,
    decoder: Decoder = "auto",
    end_s: float | None = None,
) -> list[Frame]:
    """The frame shown at each of ``times_s`` (seconds in the file, ascending), in this order.

    ``rgb`` [h, w, 3] is reduced by area to ``short_side`` pixels, never enlarged. The partner is
    another frame, the one nearest to ``partner_gap_s`` after the frame's own time, before
    ``end_s``, at ``partner_short_side``; None where no frame follows. Memory is bounded by the
    frames returned and one group of pictures.

    A frame that cannot be decoded has an ``error`` of type ``corrupt``, one asked for behind the
    end ``past_end``. Raises DecodeError where no frame can be had.
    """
    times_s = list(times_s)
    if any(after < before for before, after in pairwise(times_s)):
        raise ValueError("times_s must ascend")
    if not times_s:
        return []
    gaps = (partner_gap_s, partner_short_side or short_side, end_s)
    with _faults(file):
        if decoder == "decord":
            from infra.video_decord import frames_at as decord_frames

            frames = decord_frames(file, times_s, short_side, *gaps)
        else:
            from infra.video_frames import frames_at

            frames = frames_at(file, times_s, short_side, *gaps)
    if all(frame.rgb is None for frame in frames):
        error = frames[0].error or {"type": "no_frames", "message": "there is no frame"}
        raise DecodeError(error["type"], error["message"])
    return frames


def small_frames(
    file: VideoFile, start_s: float | None, end_s: float | None, width: int, height: int
) -> tuple[NDArray[np.float64], Pixels]:
    """All frames shown from ``start_s`` on and before ``end_s``: times [n], RGB [n, h, w, 3].

    Frames are upright and pressed into ``width`` x ``height``. Damaged frames are left out; there
    may be none. Raises DecodeError where the file cannot be read at all.
    """
    from infra.video_frames import every_frame

    with _faults(file):
        return every_frame(file, start_s, end_s, width, height)


def num_bytes(file: VideoFile) -> int:
    """How many bytes the file has, found in the store."""
    if file.length is not None:
        return file.length
    storage = Storage(file.root)
    return int(storage.fs.size(storage.path(file.uri))) - (file.offset or 0)


class _Window(io.RawIOBase):
    """A part of an open file as a file."""

    def __init__(self, whole: BinaryIO, offset: int, length: int | None) -> None:
        self._whole = whole
        self._offset = offset
        size = whole.seek(0, os.SEEK_END) - offset
        self._length = max(0, size if length is None else min(length, size))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._length - self._position)
        size = left if size is None or size < 0 else min(size, left)
        self._whole.seek(self._offset + self._position)
        data = self._whole.read(size)
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._whole.close()
        super().close()


@contextmanager
def _faults(file: VideoFile) -> Iterator[None]:
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise _explain(error, file) from error


def _explain(error: Exception, file: VideoFile) -> Exception:
    """A DecodeError, or the error itself where the store is at fault."""
    message = " ".join(str(error).split()) or type(error).__name__
    # PyAV's errors are OSErrors too, even "not permitted" for what a decoder does not permit.
    ours = type(error).__module__.partition(".")[0] == "av"
    if isinstance(error, client_errors(file.root)) and not ours:
        return DecodeError("missing", message) if isinstance(error, _MISSING) else error
    try:
        size = num_bytes(file)
        with file.open() as opened:
            head = opened.read(16)
            short = _is_cut(opened, size)
    except _MISSING as fault:
        return DecodeError("missing", " ".join(str(fault).split()))
    except client_errors(file.root) as fault:
        return fault
    if not size:
        return DecodeError("empty", "the file has no bytes")
    signs = [sign for signs in _SIGNATURES.values() for sign in signs]
    if not any(head[place:].startswith(sign) for place, sign in signs):
        return DecodeError("unknown_format", f"no video: it starts with {head!r}")
    return DecodeError("truncated" if short else "corrupt", message)


def _is_cut(opened: BinaryIO, size: int) -> bool:
    """Whether an MP4's outer boxes or an AVI's chunk say that there are more bytes than these."""
    opened.seek(0)
    head = opened.read(12)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little") > size
    if not any(head[place:].startswith(sign) for place, sign in _SIGNATURES["mp4"]):
        return False
    place = 0
    while place < size:
        opened.seek(place)
        head = opened.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            return False
        place += length
    return place > size
