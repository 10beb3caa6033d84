"""Open a clip once: its facts, and the frames that the other operators read.

Unlike a picture, a clip is read here, where it is decoded, and not before: a film of 2 GB must not
be in a table. Decoding is done in a process of its own (see `infra.video_process`), so that a file
that hangs or crashes its decoder costs its own row and nothing else.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from infra.frames import Frame, to_frames
from infra.pixels import DecodeError
from infra.schema import ERROR, FRAME_TYPE, column
from infra.video import VideoFile, num_bytes, probe, read_frames
from infra.video_process import worker_process

MAX_HASHED_BYTES = 256 << 20

_FACTS = pa.schema(
    [
        column("container", pa.string(), "", "FFmpeg's name of the container: avi, matroska, ..."),
        column("codec", pa.string(), "", "FFmpeg's name of the codec: h264, vp8, mjpeg, ..."),
        column("width", pa.int32(), "pixels", "width of a frame, upright, with square pixels"),
        column("height", pa.int32(), "pixels", "height of a frame, upright, with square pixels"),
        column("aspect", pa.float32(), "height/width", "shape, as the schedules' ratio"),
        column("fps", pa.float32(), "1/s", "frames per second, the average of the file's first"),
        column("duration_s", pa.float64(), "s", "length of the clip: of its span, as decoded"),
        column("variable_frame_rate", pa.bool_(), "", "whether frames are shown for unequal times"),
        column("rotation", pa.int16(), "degrees", "turn that is undone, against the clock"),
        column("num_video_streams", pa.int32(), "count", "in the file, cover pictures apart"),
        column("num_audio_streams", pa.int32(), "count", "in the file"),
        column("file_bytes", pa.int64(), "bytes", "size of the encoded file, all of it"),
        column(
            "sha256",
            pa.string(),
            "",
            "SHA-256 of the file's bytes as hex: exact duplicates; null for spans of a longer "
            "file, for further streams, and above 256 MiB",
        ),
    ],
)


@dataclass(frozen=True)
class ClipProbe:
    """Decode ``file`` (`infra.schema.FILE_TYPE`) into facts and the transient ``frames``.

    Candidates are ``num_frames`` frames at the middles of equal stretches of the span, or, with
    ``every_s``, one every so many seconds from the span's start; of more than ``max_candidates``,
    as many of them, evenly spread. Each has a partner about ``partner_gap_s`` later in the span.
    Frames are upright RGB of a short side of at most ``short_side`` (``partner_short_side``)
    pixels.

    A clip that cannot be decoded, or not within ``limit_s``, gets ``error`` = {stage: probe, type:
    see `infra.video`, or timeout, decoder_crashed, out_of_memory, outside}.
    """

    reads: ClassVar[tuple[str, ...]] = ("file", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            *_FACTS,
            column("frames", pa.list_(FRAME_TYPE), "", "decoded frames; dropped before storage"),
        ],
    )
    version: ClassVar[int] = 1
    not_in_output: ClassVar[tuple[str, ...]] = ("limit_s",)

    short_side: int = 512
    every_s: float | None = None
    num_frames: int = 4
    partner_gap_s: float | None = 0.125
    partner_short_side: int = 256
    limit_s: float = 60.0
    max_candidates: int = 64

    def __post_init__(self) -> None:
        for name in ("short_side", "num_frames", "partner_short_side", "max_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: choose at least 1")
        for name in ("every_s", "partner_gap_s", "limit_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}: choose more than 0 seconds")

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = batch.column("error").to_pylist()
        facts: list[dict[str, Any]] = []
        clips: list[list[Frame] | None] = []
        for row, place in enumerate(batch.column("file").to_pylist()):
            fact: dict[str, Any] = {}
            clip = None
            if errors[row] is None:
                try:
                    if place is None:
                        raise DecodeError("missing_file", "the row has no clip to decode")
                    process = worker_process()
                    fact, clip = process.call(open_clip, self, place, limit_s=self.limit_s)
                except DecodeError as error:
                    errors[row] = {"stage": "probe", "type": error.type, "message": str(error)}
            facts.append(fact)
            clips.append(clip)
        table = pa.Table.from_pylist(facts, schema=_FACTS)
        position = batch.schema.get_field_index("error")
        batch = batch.set_column(position, ERROR, pa.array(errors, ERROR.type))
        for field in _FACTS:
            batch = batch.append_column(field, table.column(field.name))
        return batch.append_column(self.writes.field("frames"), to_frames(clips))

    def times(self, start_s: float, end_s: float) -> list[float]:
        """When the candidates of a span are shown, in seconds in the file."""
        length = end_s - start_s
        if self.every_s is None:
            num = min(self.num_frames, self.max_candidates)
            return [start_s + (i + 0.5) * length / num for i in range(num)]
        # what is left after the last whole step is no candidate of its own if it is no time at all
        count = max(1, math.ceil(length / self.every_s - 1e-6))
        chosen = np.linspace(0, count - 1, min(count, self.max_candidates)).round().astype(int)
        return [start_s + int(i) * self.every_s for i in chosen]


def open_clip(settings: ClipProbe, place: dict[str, Any]) -> tuple[dict[str, Any], list[Frame]]:
    """The facts and frames of one clip; raises DecodeError. Runs in the decoder's process."""
    names = ("root", "uri", "offset", "length", "stream")
    file = VideoFile(**{name: place[name] for name in names})
    found = probe(file)
    start_s = place["start_s"] or 0.0
    end_s = found.duration_s if place["end_s"] is None else min(place["end_s"], found.duration_s)
    if not 0 <= start_s < end_s:
        raise DecodeError(
            "outside",
            f"the span from {start_s:g} to {place['end_s']} s is not in a video of "
            f"{found.duration_s:.3f} s",
        )
    frames = read_frames(
        file,
        settings.times(start_s, end_s),
        settings.short_side,
        settings.partner_gap_s,
        settings.partner_short_side,
        end_s=end_s,
    )
    whole = place["start_s"] is None and place["end_s"] is None and not file.stream
    hashed = whole and found.file_bytes <= MAX_HASHED_BYTES
    fact = {name: getattr(found, name) for name in _FACTS.names if hasattr(found, name)}
    fact |= {
        "aspect": found.height / found.width,
        "duration_s": end_s - start_s,
        "sha256": _sha256(file) if hashed else None,
    }
    return fact, frames


def _sha256(file: VideoFile) -> str:
    hashed = hashlib.sha256()
    left = num_bytes(file)
    with file.open() as opened:
        while left > 0 and (part := opened.read(min(left, 1 << 20))):
            hashed.update(part)
            left -= len(part)
    return hashed.hexdigest()
