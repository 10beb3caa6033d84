"""Frames of clips inside a phase: the transient column ``frames``, as Python sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from infra.pixels import Pixels, from_struct, to_struct
from infra.schema import ERROR_TYPE, FRAME_TYPE


@dataclass(frozen=True)
class Frame:
    """A decoded frame [h, w, 3] uint8 and the time it is shown from, in seconds of its file.

    ``partner`` is the frame shown at ``partner_s``, shortly after; it may be smaller. A picture
    of a web document is a frame without a time. ``rgb`` is None where ``error`` says why.
    """

    timestamp_s: float | None
    rgb: Pixels | None
    partner_s: float | None = None
    partner: Pixels | None = None
    error: Mapping[str, str] | None = None


def to_frames(clips: Sequence[Sequence[Frame] | None]) -> pa.ListArray:
    """The frames of clips as an Arrow array of lists of `schema.FRAME_TYPE`; None becomes null."""
    every = [frame for clip in clips for frame in clip or ()]
    columns = [
        pa.array([frame.timestamp_s for frame in every], pa.float64()),
        to_struct([frame.rgb for frame in every]),
        pa.array([frame.partner_s for frame in every], pa.float64()),
        to_struct([frame.partner for frame in every]),
        pa.array([frame.error for frame in every], ERROR_TYPE),
    ]
    frames = pa.StructArray.from_arrays(columns, fields=list(FRAME_TYPE))
    ends = np.cumsum([0, *(len(clip or ()) for clip in clips)])
    missing = pa.array([clip is None for clip in clips], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), frames, mask=missing)


def frames_of(batch: pa.Table) -> list[list[Frame] | None]:
    """The frames of a batch's ``frames`` column; None for rows that have failed or have none.

    Pictures are read-only views that keep the column's buffers alive.
    """
    failed = iter(batch.column("error").is_valid().to_pylist())
    found: list[list[Frame] | None] = []
    for chunk in batch.column("frames").chunks:
        values = chunk.values
        frames = [
            Frame(*one)
            for one in zip(
                values.field("timestamp_s").to_pylist(),
                from_struct(values.field("image")),
                values.field("partner_s").to_pylist(),
                from_struct(values.field("partner")),
                values.field("error").to_pylist(),
                strict=True,
            )
        ]
        offsets = chunk.offsets.to_pylist()
        for i, there in enumerate(chunk.is_valid().to_pylist()):
            fine = not next(failed) and there
            found.append(frames[offsets[i] : offsets[i + 1]] if fine else None)
    return found
