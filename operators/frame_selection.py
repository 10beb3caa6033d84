"""Which frames of a clip tell its story: motion-adaptive selection by optical flow (paper, 5.4)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from infra.frames import Frame, frames_of
from infra.pixels import DecodeError, Pixels
from infra.schema import ERROR, FRAMES
from operators.flow import Flow, FlowField
from operators.level_picture import LevelPicture, Size
from operators.motion import SHORT_SIDE, gap_s, mean_length
from operators.motion_classes import MotionRule, Pair, Verdict
from operators.spread import importance, spread

QUALIFIED = ("object", "cut")
GRID = 8


@dataclass(frozen=True, kw_only=True)
class FrameSelection:
    """Classify the candidates in ``frames`` by what moves, and keep those that cover the clip.

    Two pairs of frames speak of a candidate: itself and its partner shortly after (``short``: what
    moves now), and the candidate before it and itself (``across``: what has changed). ``rule``
    makes a class of the two flows, which are computed once, for all clips of a batch together.

    The first frame is kept, whatever its class. Beside it qualify the candidates whose class is one
    of `QUALIFIED`; of all these, ``max_frames`` are kept (by default 5 up to level 512, 3 above:
    paper, 5.4): the clip is a way along which each candidate lies as far behind the one before it
    as the mean length of the flow between them (at a cut, which flow cannot measure, the frame's
    short side), and those are kept that lie farthest apart, see `operators.spread`.

    Kept frames are cut as `operators.level_picture` says, all of a clip to the same size. Nothing
    is enlarged: frames must have been decoded large enough for ``level``. Rows fail with type
    ``too_small_for_level``, ``too_elongated``, or, where fewer than ``min_frames`` would be kept,
    ``too_few_frames``: these still have their candidates, without pictures, if flow was computed.
    A candidate that could not be decoded has no class; its neighbours are compared with each other.

    Raises ValueError for settings that cannot be.
    """

    reads: ClassVar[tuple[str, ...]] = ("frames", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [FRAMES.field(name) for name in ("candidates", "num_candidates", "num_kept")]
    )
    version: ClassVar[int] = 1

    level: int = 512
    max_frames: int | None = None
    min_frames: int = 2
    flow: Flow = field(default_factory=Flow)
    rule: MotionRule = field(default_factory=MotionRule)
    jpeg_quality: int = 95
    max_cropped: float = 0.5

    def __post_init__(self) -> None:
        self._at_level()
        if self.most < 1:
            raise ValueError(f"max_frames is {self.max_frames}: choose at least 1")
        if not 1 <= self.min_frames <= self.most:
            raise ValueError(
                f"min_frames is {self.min_frames}: choose 1 to {self.most}, the most that are kept"
            )

    @property
    def most(self) -> int:
        """The most frames that are kept of a clip."""
        if self.max_frames is not None:
            return self.max_frames
        return 5 if self.level <= 512 else 3

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = batch["error"].to_pylist()
        clips: list[_Clip | None] = [None] * len(batch)
        for row, frames in enumerate(frames_of(batch)):
            if errors[row] is None:
                try:
                    clips[row] = self._opened(frames or [])
                except DecodeError as error:
                    errors[row] = _failure(error)
        pairs = [
            pair
            for clip in clips
            for candidate in (clip.candidates if clip else ())
            for pair in (candidate.short, candidate.across)
        ]
        flows = iter(self.flow.flow([(p.first, p.second) if p else None for p in pairs]))
        rows: list[dict[str, Any]] = [{} for _ in clips]
        for row, clip in enumerate(clips):
            if clip is not None:
                seen = [self._look(one, next(flows), next(flows)) for one in clip.candidates]
                rows[row], errors[row] = self._select(clip, seen)
        place = batch.schema.get_field_index("error")
        batch = batch.set_column(place, ERROR, pa.array(errors, ERROR.type))
        for column in self.writes:
            values = [row.get(column.name) for row in rows]
            batch = batch.append_column(column, pa.array(values, column.type))
        return batch

    def _at_level(self) -> LevelPicture:
        return LevelPicture(self.level, self.jpeg_quality, self.max_cropped)

    def _opened(self, frames: Sequence[Frame]) -> "_Clip":
        """Raises DecodeError for a clip that cannot be used, before its flow is paid for."""
        pictures = [frame.rgb for frame in frames if frame.rgb is not None]
        if len(pictures) < self.min_frames:
            raise DecodeError(
                "too_few_frames",
                f"{len(pictures)} of {len(frames)} candidates were decoded, {self.min_frames} are "
                "needed",
            )
        # A stream may change its size midway: the smallest frame decides.
        full = min((rgb.shape[:2] for rgb in pictures), key=min)
        target = self._at_level().target(*full)
        self._at_level().cut(pictures[0], target, pictures[0].shape[:2])
        candidates: list[_Candidate] = []
        size = self.flow.working_size(*pictures[0].shape[:2])
        for place, frame in enumerate(frames):
            if frame.rgb is None:
                continue
            here = self.flow.resize(frame.rgb, size)
            after = None if frame.partner is None else self.flow.resize(frame.partner, size)
            before = candidates[-1] if candidates else None
            candidates.append(
                _Candidate(
                    place,
                    frame,
                    here,
                    None if after is None else _compared(here, after, gap_s(frame)),
                    None if before is None else _compared(before.here, here, before.until(frame)),
                )
            )
        return _Clip(frames, target, candidates)

    def _look(
        self, candidate: "_Candidate", short: FlowField | None, across: FlowField | None
    ) -> "_Seen":
        verdict = self.rule.classify(
            _with_flow(candidate.short, short), _with_flow(candidate.across, across)
        )
        step = 0.0 if across is None else mean_length(across)
        grid = None
        if candidate.short is not None and short is not None:
            grid = (_coarse(short) / candidate.short.baseline_s).ravel().tolist()
        return _Seen(verdict, SHORT_SIDE if verdict.class_ == "cut" else step, grid)

    def _select(
        self, clip: "_Clip", seen: Sequence["_Seen"]
    ) -> tuple[dict[str, Any], dict[str, str] | None]:
        """The row's columns, and its error if too few frames qualify."""
        qualified = [i for i, one in enumerate(seen) if i == 0 or one.verdict.class_ in QUALIFIED]
        way = list(accumulate(one.step for one in seen))
        places = [way[i] for i in qualified]
        chosen = spread(places, self.most)
        ranks = dict(zip(qualified, importance(places, chosen), strict=True))
        kept = {qualified[i] for i in chosen}
        error, pictures = None, {}
        try:
            pictures = self._pictures(clip, kept, len(seen))
        except DecodeError as failed:
            error, kept = _failure(failed), set()
        rows = [_not_decoded(frame) for frame in clip.frames]
        for i, (candidate, one) in enumerate(zip(clip.candidates, seen, strict=True)):
            rows[candidate.place] = {
                "timestamp_s": candidate.frame.timestamp_s,
                "class": one.verdict.class_,
                "evidence": one.verdict.evidence,
                "kept": i in kept,
                "rank": ranks.get(i),
                "flow": one.grid,
                **one.verdict.statistics,
                **pictures.get(i, {}),
            }
        columns = {"candidates": rows, "num_candidates": len(rows), "num_kept": len(kept)}
        return columns, error

    def _pictures(self, clip: "_Clip", kept: set[int], of: int) -> dict[int, dict[str, Any]]:
        """The pictures of the kept candidates; raises DecodeError.

        A stream may change its shape midway: what was tested of the first frame is not so of all.
        """
        if len(kept) < self.min_frames:
            message = f"{len(kept)} of {of} candidates would be kept, {self.min_frames} are needed"
            raise DecodeError("too_few_frames", message)
        pictures = {}
        for i in kept:
            rgb = clip.candidates[i].frame.rgb
            assert rgb is not None  # candidates are decoded frames
            if rgb.shape[0] < clip.target[0] or rgb.shape[1] < clip.target[1]:
                raise DecodeError(
                    "too_small_for_level",
                    f"a frame of {rgb.shape[1]}x{rgb.shape[0]} is below {clip.target[1]}x"
                    f"{clip.target[0]} of its clip at level {self.level}",
                )
            pictures[i] = self._at_level().cut(rgb, clip.target, rgb.shape[:2])
        return pictures


@dataclass(frozen=True)
class _Compared:
    """Two pictures at the flow's size, ``baseline_s`` seconds apart."""

    first: Pixels
    second: Pixels
    baseline_s: float


@dataclass(frozen=True)
class _Candidate:
    """A decoded frame, its place among the clip's, and what it is compared with."""

    place: int
    frame: Frame
    here: Pixels  # at the flow's size
    short: _Compared | None
    across: _Compared | None

    def until(self, later: Frame) -> float:
        return (later.timestamp_s or 0.0) - (self.frame.timestamp_s or 0.0)


@dataclass(frozen=True)
class _Clip:
    frames: Sequence[Frame]
    target: Size
    candidates: Sequence[_Candidate]


@dataclass(frozen=True)
class _Seen:
    """What flow says of a candidate; ``step`` is its way from the one before it."""

    verdict: Verdict
    step: float
    grid: list[float] | None


def _compared(first: Pixels, second: Pixels, baseline_s: float) -> _Compared | None:
    # A clip's last frame has itself for a partner, if any: there is nothing to be measured.
    return _Compared(first, second, baseline_s) if baseline_s > 0 else None


def _with_flow(pair: _Compared | None, flow: FlowField | None) -> Pair | None:
    if pair is None or flow is None:
        return None
    return Pair(pair.first, pair.second, flow, pair.baseline_s)


def _coarse(flow: FlowField) -> FlowField:
    """Means over `GRID` x `GRID` cells; the flow's sides are multiples of 8."""
    height, width = flow.shape[:2]
    cells = flow.reshape(GRID, height // GRID, GRID, width // GRID, 2)
    return np.asarray(cells.mean((1, 3), dtype=np.float64), np.float32)


def _not_decoded(frame: Frame) -> dict[str, Any]:
    told = f"{frame.error['type']}: {frame.error['message']}" if frame.error else "no picture"
    return {"timestamp_s": frame.timestamp_s, "evidence": told, "kept": False}


def _failure(error: DecodeError) -> dict[str, str]:
    return {"stage": "frames", "type": error.type, "message": str(error)}
