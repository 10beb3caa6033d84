"""The detectors of `operators.shots`: times and small frames in, transitions between shots out.

PySceneDetect's ContentDetector and AdaptiveDetector are fed frame by frame, TransNetV2 in windows;
a video comes in portions, so that a film is never in memory. Both take colours into account.
"""

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scenedetect import SceneDetector

Times = NDArray[np.float64]
Frames = NDArray[np.uint8]

_TICKS = 1_000_000  # of the clock of PySceneDetect's detectors per second
_FPS = Fraction(30)  # asked for by its time codes; with times in ticks nothing depends on it


class Cut(NamedTuple):
    """One shot ends at ``end_s``, itself excluded, the next starts at ``start_s``.

    At a hard cut the two are one time; the frames between are a dissolve, which is in no shot.
    """

    end_s: float
    start_s: float


class Detected(NamedTuple):
    """The cuts of a video, in order, and the times of all its frames that were looked at."""

    cuts: list[Cut]
    times: Times


def scene_cuts(
    portions: Iterable[tuple[Times, Frames]],
    detector: Literal["content", "adaptive"],
    threshold: float,
    min_shot_s: float,
) -> Detected:
    """Cuts by PySceneDetect; ``portions`` are (times [n], frames [n, h, w, 3] RGB) in order."""
    from scenedetect import FrameTimecode
    from scenedetect.common import Timecode

    judge = _scene_detector(detector, threshold, min_shot_s)
    tick = Fraction(1, _TICKS)
    times: list[float] = []
    found: list[int] = []
    for some, frames in portions:
        for time, rgb in zip(some.tolist(), frames, strict=True):
            code = FrameTimecode(Timecode(round(time * _TICKS), tick), fps=_FPS)
            bgr = np.ascontiguousarray(rgb[:, :, ::-1])
            found += [_ticks(cut) for cut in judge.process_frame(code, bgr)]
            times.append(time)
    if times:
        end = FrameTimecode(Timecode(round(times[-1] * _TICKS), tick), fps=_FPS)
        found += [_ticks(cut) for cut in judge.post_process(end)]
    by_tick = {round(time * _TICKS): time for time in times}
    cuts = [by_tick[ticks] for ticks in sorted(set(found)) if by_tick[ticks] > times[0]]
    return Detected([Cut(time, time) for time in cuts], np.asarray(times, np.float64))


def _scene_detector(
    detector: Literal["content", "adaptive"], threshold: float, min_shot_s: float
) -> "SceneDetector":
    # Imported from modules that need neither of its command line's packages.
    from scenedetect import AdaptiveDetector, ContentDetector

    if detector == "content":
        return ContentDetector(threshold=threshold, min_scene_len=float(min_shot_s))
    return AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=float(min_shot_s))


def _ticks(code: object) -> int:
    pts = getattr(code, "pts", None)
    assert isinstance(pts, int), "a cut is one of the time codes that were given"
    return pts


def transnet_cuts(
    portions: Iterable[tuple[Times, Frames]], weights: str, threshold: float, min_shot_s: float
) -> Detected:
    """Cuts by TransNetV2; ``portions`` as in `scene_cuts`, of 48 x 27 pixels.

    A run of frames above the threshold is one transition: its first frame is the last of a shot.
    """
    from operators.transnet import Transitions

    transitions = Transitions(weights)
    times: list[float] = []
    told = []
    for some, frames in portions:
        times += some.tolist()
        told.append(transitions.feed(frames))
    told.append(transitions.finish())
    above = np.concatenate(told) > threshold
    edges = np.flatnonzero(np.diff(above.astype(np.int8), prepend=0, append=0))
    cuts = [
        Cut(times[first + 1], times[behind])
        for first, behind in edges.reshape(-1, 2).tolist()
        if behind < len(times)  # a transition at the end leads nowhere
    ]
    return Detected(apart(cuts, min_shot_s), np.asarray(times, np.float64))


def apart(cuts: list[Cut], min_shot_s: float) -> list[Cut]:
    """Cuts so that all shots between them last ``min_shot_s``: what is shorter is transition."""
    merged = cuts[:1]
    for cut in cuts[1:]:
        if cut.end_s - merged[-1].start_s < min_shot_s:
            merged[-1] = Cut(merged[-1].end_s, cut.start_s)
        else:
            merged.append(cut)
    assert all(a.start_s <= b.end_s for a, b in pairwise(merged))
    return merged
