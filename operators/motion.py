"""How much moves in a clip, camera included."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from infra.frames import Frame, frames_of
from infra.pixels import Pixels
from infra.schema import column
from operators.flow import Flow, FlowField
from operators.given_scores import given_numbers

SHORT_SIDE = 256  # pixels of the frame that speeds are told for
_LEAST_CONTRAST = 2.0  # grey levels, standard deviation: less is one colour


@dataclass(frozen=True)
class Motion:
    """Write ``motion``: the mean speed of the picture's points, in pixels per second.

    A frame and the one shortly after it (its partner) give the mean length of the optical flow over
    all pixels, divided by the time between the two and scaled to a frame whose short side is 256
    pixels; ``motion`` is the mean over the frames that have a partner. Frames of one colour are
    left out: on black, flow is noise. It is null where no frame remains: a clip of one frame.

    With partners 1/8 s apart, a still camera before a still scene gives 0.4 to 1 (RAFT's noise),
    before running water 1 to 2, a slow pan 10 to 25, a drive through a town 10 to 60.

    ``given`` names a key of ``metadata``: where it says a number, that is the score, whatever its
    scale; only the other clips are computed.
    """

    writes: ClassVar[pa.Schema] = pa.schema(
        [
            column(
                "motion",
                pa.float32(),
                "pixels/s",
                "mean length of the flow per second, for a short side of 256; or as given",
            )
        ],
    )
    version: ClassVar[int] = 1

    flow: Flow = field(default_factory=Flow)
    given: str | None = None

    def __post_init__(self) -> None:
        if self.given == "":
            raise ValueError("given is empty: name a key of the metadata, or leave it out")

    @cached_property
    def reads(self) -> tuple[str, ...]:
        return ("frames", "error", *(("metadata",) if self.given else ()))

    def __call__(self, batch: pa.Table) -> pa.Table:
        told = given_numbers(batch, self.given) if self.given else [None] * len(batch)
        clips = [
            clip if clip is not None and number is None else []
            for clip, number in zip(frames_of(batch), told, strict=True)
        ]
        flows = iter(self.flow.flow([short_pair(frame) for clip in clips for frame in clip]))
        scores = []
        for number, clip in zip(told, clips, strict=True):
            found = [(frame, next(flows)) for frame in clip]
            speeds = [mean_length(flow) / gap_s(frame) for frame, flow in found if flow is not None]
            scores.append(float(np.mean(speeds)) if speeds else number)
        return batch.append_column(self.writes.field("motion"), pa.array(scores, pa.float32()))

    def __getstate__(self) -> dict[str, Any]:
        return {"flow": self.flow, "given": self.given}


def short_pair(frame: Frame) -> tuple[Pixels, Pixels] | None:
    """A frame and its partner; None where they cannot tell what moves.

    That is where one of them is missing, the partner is no later, or the frame is of one colour.
    """
    if frame.rgb is None or frame.partner is None or gap_s(frame) <= 0:
        return None
    if frame.rgb.std((0, 1)).max() < _LEAST_CONTRAST:
        return None
    return frame.rgb, frame.partner


def gap_s(frame: Frame) -> float:
    """Seconds from a frame to its partner; 0 where one of the two has no time."""
    if frame.timestamp_s is None or frame.partner_s is None:
        return 0.0
    return frame.partner_s - frame.timestamp_s


def mean_length(flow: FlowField) -> float:
    """Mean length of the flow's vectors, in pixels of a frame whose short side is 256."""
    lengths = np.hypot(flow[..., 0], flow[..., 1])
    return float(lengths.mean(dtype=np.float64)) * SHORT_SIDE / min(flow.shape[:2])
