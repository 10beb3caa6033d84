"""Where a long video is cut into clips: shots between detected transitions.

The detectors are PySceneDetect's (content: the mean change of hue, saturation and brightness from
frame to frame against a threshold; adaptive: against its neighbours', so that fast motion is no
cut), fed with small frames decoded by us, and TransNetV2, which also sees dissolves and fades. The
first two judge neighbouring frames: shots that fade into each other slowly stay one clip.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import pyarrow as pa

from infra.pixels import DecodeError
from infra.schema import ERROR, column
from infra.video import VideoFile, probe, small_frames
from infra.video_process import worker_process
from operators.shot_cuts import Cut, Detected, Frames, Times, scene_cuts, transnet_cuts

_THRESHOLDS = {"content": 27.0, "adaptive": 3.0, "transnetv2": 0.5}
_SIZES = {"content": (128, 72), "adaptive": (128, 72), "transnetv2": (48, 27)}
_STRETCH_S = 20.0  # decoded at a time: 600 frames of 28 kB are 17 MB
_MAX_GAP_S = 60.0  # as long without a frame, and a video has ended, whatever its header says

SPAN = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64())])


@dataclass(frozen=True)
class Shots:
    """Write ``spans``, the clips of each video, in order, without overlap.

    ``threshold`` is the detector's own (content: 27 of 255 grey levels, adaptive: 3 times the
    neighbours' change, transnetv2: a probability of 0.5). Of cuts nearer together than
    ``min_shot_s`` one counts: a flash may cut a shot, but is none. ``trim_s`` is left out on both
    sides of a cut, ``min_clip_s`` is what a shot must last to be a clip; shorter ones are counted
    and left out. Longer shots than ``max_clip_s`` are cut evenly into clips that are not longer; by
    default they stay whole, for the rules to judge (the paper discards clips above 20 s).

    ``weights`` is the path of TransNetV2's (see operators/weights/README.md). Decoding
    20 seconds of a video may take ``limit_s``. A video that fails gets ``error`` = {stage: shots};
    one without any clip fails as ``no_clip``.
    """

    reads: ClassVar[tuple[str, ...]] = ("file", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            column("spans", pa.list_(SPAN), "s", "clips of the video, their ends excluded"),
            column("num_shots", pa.int32(), "count", "shots found, clips or not"),
            column("num_too_short", pa.int32(), "count", "of them, too short for a clip"),
            column("duration_s", pa.float64(), "s", "length of what was looked at, as decoded"),
        ],
    )
    version: ClassVar[int] = 1
    not_in_output: ClassVar[tuple[str, ...]] = ("weights", "limit_s")  # their hash is the identity

    detector: Literal["content", "adaptive", "transnetv2"] = "content"
    threshold: float | None = None
    min_shot_s: float = 0.6
    min_clip_s: float = 2.0
    max_clip_s: float | None = None
    trim_s: float = 0.0
    weights: str = ""
    limit_s: float = 120.0

    def __post_init__(self) -> None:
        if self.detector not in _THRESHOLDS:
            raise ValueError(
                f"detector is {self.detector!r}: choose among {', '.join(_THRESHOLDS)}"
            )
        if self.threshold is not None and self.threshold <= 0:
            raise ValueError(f"threshold is {self.threshold}: choose more than 0")
        if self.detector == "transnetv2" and (self.threshold or 0.5) >= 1:
            raise ValueError(f"threshold is {self.threshold}: a probability is below 1")
        if self.min_shot_s < 0 or self.trim_s < 0:
            raise ValueError("min_shot_s and trim_s must not be negative")
        if self.min_clip_s < 0.05:
            raise ValueError(f"min_clip_s is {self.min_clip_s}: choose at least 0.05 s")
        if self.max_clip_s is not None and self.max_clip_s < 2 * self.min_clip_s:
            raise ValueError(
                f"max_clip_s is {self.max_clip_s}: choose at least twice min_clip_s, so that "
                "the parts of a long shot are clips"
            )
        if (self.detector == "transnetv2") != bool(self.weights):
            raise ValueError(
                "detector transnetv2 needs the path of its `weights`, the others need none: see "
                "operators/weights/README.md for the file"
            )
        if self.limit_s <= 0:
            raise ValueError(f"limit_s is {self.limit_s}: choose more than 0")

    @property
    def identity(self) -> str:
        """Hash of the weights the cuts depend on; empty for PySceneDetect's detectors."""
        if not self.weights:
            return ""
        from operators import transnet
        from operators.mobilenets import file_hash

        transnet.load(self.weights)
        return file_hash(self.weights)

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = batch.column("error").to_pylist()
        found: list[dict[str, Any]] = []
        for row, file in enumerate(batch.column("file").to_pylist()):
            facts: dict[str, Any] = {}
            if errors[row] is None:
                try:
                    facts = self._cut(file)
                except DecodeError as error:
                    errors[row] = {"stage": "shots", "type": error.type, "message": str(error)}
            found.append(facts)
        table = pa.Table.from_pylist(found, schema=self.writes)
        for field in self.writes:
            batch = batch.append_column(field, table.column(field.name))
        place = batch.schema.get_field_index("error")
        return batch.set_column(place, ERROR, pa.array(errors, ERROR.type))

    def _cut(self, place: dict[str, Any] | None) -> dict[str, Any]:
        if place is None:
            raise DecodeError("missing_file", "the row has no video to look at")
        start_s, end_s = place["start_s"], place["end_s"]
        names = ("root", "uri", "offset", "length", "stream")
        file = VideoFile(**{name: place[name] for name in names})
        found = self._detect(_portions(file, start_s, end_s, _SIZES[self.detector], self.limit_s))
        times = found.times
        first_s = float(times[0]) if start_s is None else start_s
        # The last frame is shown as long as the one before it.
        last_s = float(times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0.0))
        shots = shots_of(found.cuts, first_s, last_s if end_s is None else min(last_s, end_s))
        clips = clips_of(shots, self.trim_s, self.min_clip_s, self.max_clip_s)
        if not clips:
            raise DecodeError(
                "no_clip", f"none of {len(shots)} shots lasts {self.min_clip_s:g} s: no clip"
            )
        return {
            "spans": [{"start_s": start, "end_s": end} for _, start, end in clips],
            "num_shots": len(shots),
            "num_too_short": len(shots) - len({shot for shot, *_ in clips}),
            "duration_s": shots[-1][1] - shots[0][0],
        }

    def _detect(self, portions: Iterator[tuple[Times, Frames]]) -> Detected:
        threshold = self.threshold or _THRESHOLDS[self.detector]
        if self.detector == "transnetv2":
            return transnet_cuts(portions, self.weights, threshold, self.min_shot_s)
        return scene_cuts(portions, self.detector, threshold, self.min_shot_s)


def shots_of(cuts: Sequence[Cut], first_s: float, last_s: float) -> list[tuple[float, float]]:
    """(start, end) of the shots between these cuts, in seconds; at least one."""
    starts = [first_s, *(cut.start_s for cut in cuts)]
    ends = [*(cut.end_s for cut in cuts), last_s]
    return list(zip(starts, ends, strict=True))


def clips_of(
    shots: Sequence[tuple[float, float]],
    trim_s: float,
    min_clip_s: float,
    max_clip_s: float | None,
) -> list[tuple[int, float, float]]:
    """(number of the shot, start, end) of the clips in these shots; see `Shots` for the options."""
    clips = []
    for number, (start, end) in enumerate(shots):
        start += trim_s if number else 0.0
        end -= trim_s if number < len(shots) - 1 else 0.0
        if end - start < min_clip_s:
            continue
        parts = 1 if max_clip_s is None else math.ceil((end - start) / max_clip_s)
        borders = [start + (end - start) * part / parts for part in range(parts)] + [end]
        clips += [(number, *pair) for pair in pairwise(borders)]
    return clips


def _portions(
    file: VideoFile,
    start_s: float | None,
    end_s: float | None,
    size: tuple[int, int],
    limit_s: float,
) -> Iterator[tuple[Times, Frames]]:
    """All frames of a span, at a small size, stretch by stretch. Raises DecodeError."""
    process = worker_process()
    told_s = end_s or process.call(probe, file, limit_s=limit_s).duration_s or 0.0
    from_s, last_s = start_s or 0.0, -math.inf
    while True:
        to_s = from_s + _STRETCH_S if end_s is None else min(from_s + _STRETCH_S, end_s)
        times, frames = process.call(small_frames, file, from_s, to_s, *size, limit_s=limit_s)
        new = times > last_s
        if new.any():
            last_s = float(times[-1])
            yield times[new], frames[new]
        # Headers lie: a video goes on as long as frames come, and not for ever without.
        ended = to_s >= told_s and (end_s is not None or last_s < to_s - 1)
        if ended or to_s - max(last_s, start_s or 0.0) >= _MAX_GAP_S:
            break
        from_s = to_s
    if last_s == -math.inf:
        raise DecodeError("no_frames", "no frame lies in the span")
