"""What moves at a frame of a clip: nothing, the camera, objects, or the scene (paper, 5.4).

Two pairs of frames speak of a candidate. The short one (itself and a partner about 1/8 s later)
tells camera from objects: flow can follow what moves in so short a time. The one across (the
candidate before and itself, about 2 s) tells whether anything has changed at all, and whether the
scene is another. Lengths are pixels of a frame whose short side is 256.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from operators.motion_statistics import FOLLOWED, SIDE, STATISTICS, Pair, Statistics, measure

__all__ = ["CLASSES", "STATISTICS", "MotionRule", "Pair", "Verdict"]

CLASSES = ("static", "camera", "object", "cut")

_DETAIL_SHARE = 0.01  # of the frame: less detail tells nothing of the camera
_STEADY_SHIFT = SIDE / 16  # over seconds, frames are comparable only if the camera hardly moved,
_STEADY_SHARE = 0.7  # and if most of the frame agrees that it did
_RESTING_WAY = SIDE / 8  # of the camera between candidates, at its speed now
_OUT_OF_SIGHT = 0.75 * SIDE
_GOES_ON = 1.05  # contrast over the short pair: flicker and noise change it by less


@dataclass(frozen=True)
class Verdict:
    """One of `CLASSES`, the reason in a line, and the `STATISTICS` that it rests on."""

    class_: str
    evidence: str
    statistics: Statistics


@dataclass(frozen=True, kw_only=True)
class MotionRule:
    """How candidates are classed; ``classify`` does it.

    ``residual``, in this order:

    - cut: the contrast is ``fade_contrast`` times less or more than it was (a fade or a dissolve
      under way), or more than ``other_scene`` of the detail is gone and fewer than ``same_points``
      points are found again. A camera that moves so fast now that the former view would be out of
      sight explains that, unless the colours are ``other_colours`` apart: a cut into a fast pan of
      like colours is taken for the pan.
    - object: regions move against the camera now, or were elsewhere at the candidate before.
    - camera: it moves the view by ``least_speed`` now, or has moved it by ``least_shift``.
    - static.

    ``paper`` (5.4, which tells no thresholds): flow across of more than ``large_shift`` or colours
    ``other_colours`` apart are a cut; less than ``least_speed`` now and ``least_shift`` since are
    static; directions (weighted by length) of less variance than ``direction_variance`` are camera;
    all else is object.

    With one pair alone, that pair answers what it can; the short one sees no cut. Raises ValueError
    for settings that cannot be.
    """

    version: ClassVar[int] = 1

    rule: Literal["residual", "paper"] = "residual"
    least_speed: float = 3.0
    least_shift: float = 2.0
    other_scene: float = 0.6
    same_points: int = 20
    other_colours: float = 0.7
    fade_contrast: float = 1.25
    direction_variance: float = 0.02
    large_shift: float = 160.0

    def __post_init__(self) -> None:
        if self.rule not in ("residual", "paper"):
            raise ValueError(f"rule is {self.rule!r}: choose residual or paper")
        for name in ("other_scene", "other_colours", "direction_variance"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: choose between 0 and 1")
        for name in ("least_speed", "least_shift", "same_points", "large_shift"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: choose more than 0")
        if not self.fade_contrast > 1:
            raise ValueError(f"fade_contrast is {self.fade_contrast}: choose more than 1")

    def classify(self, short: Pair | None, across: Pair | None) -> Verdict:
        """The class of the candidate that ``short`` starts at and ``across`` ends at."""
        return self.decide(measure(short, across))

    def decide(self, statistics: Statistics) -> Verdict:
        """The verdict on what `measure` found."""
        if statistics["short_s"] is None and statistics["across_s"] is None:
            return Verdict("static", "nothing to compare with", statistics)
        class_, evidence = (self._paper if self.rule == "paper" else self._residual)(statistics)
        return Verdict(class_, evidence, statistics)

    def _paper(self, found: Statistics) -> tuple[str, str]:
        speed, shift = found["short_speed"] or 0.0, found["across_shift"] or 0.0
        colours = found["across_colours"] or 0.0
        now, since = _over(found["short_s"]), _over(found["across_s"])
        if shift > self.large_shift:
            return "cut", f"flow of {shift:.0f} px {since}"
        if colours > self.other_colours:
            return "cut", f"colours {colours:.2f} apart {since}"
        told = f"flow of {speed:.1f} px/s {now}" if now else f"flow of {shift:.1f} px {since}"
        if speed < self.least_speed and shift < self.least_shift:
            return "static", told
        which = "short" if speed >= self.least_speed else "across"
        variance = found[f"{which}_direction_variance"] or 0.0
        class_ = "camera" if variance < self.direction_variance else "object"
        return class_, f"{told}, variance of direction {variance:.2f} {_over(found[f'{which}_s'])}"

    def _residual(self, found: Statistics) -> tuple[str, str]:
        cut = self._cut(found)
        if cut:
            return "cut", cut
        now, since = _over(found["short_s"]), _over(found["across_s"])
        # A partner of another scene tells nothing, and on a frame of one colour flow is noise.
        torn = (found["short_unlike"] or 0.0) > self.other_scene
        blank = (found["short_detail_share"] or 0.0) < _DETAIL_SHARE
        share, speed = found["short_object_share"], found["short_object_speed"]
        if share and not torn:
            return "object", f"{share:.1%} of the frame moves by itself, {speed:.0f} px/s {now}"
        shift, agree = found["across_camera_shift"] or 0.0, found["across_camera_share"] or 0.0
        changed = found["across_changed_share"]
        if changed and shift < _STEADY_SHIFT and agree > _STEADY_SHARE:
            return "object", f"{changed:.1%} of the frame has changed {since}, beside the camera"
        speed = 0.0 if torn or blank else found["short_camera_speed"] or 0.0
        if speed >= self.least_speed:
            return "camera", f"the camera moves the view by {speed:.0f} px/s {now}"
        if shift >= self.least_shift:
            return "camera", f"the camera has moved the view by {shift:.1f} px {since}"
        told = [f"{speed:.1f} px/s {now}"] * bool(now) + [f"{shift:.1f} px {since}"] * bool(since)
        return "static", f"the view moves by {' and '.join(told)}"

    def _cut(self, found: Statistics) -> str:
        """Why there is a cut or a fade since the candidate before; empty if there is none."""
        unlike, contrast = found["across_unlike"], found["across_contrast"]
        if unlike is None:
            return ""
        since = _over(found["across_s"])
        way = (found["short_camera_speed"] or 0.0) * (found["across_s"] or 0.0)
        rests = way < _RESTING_WAY
        # Before a camera at rest, a picture of which little is left can still be compared in place.
        if contrast and unlike < (self.other_scene if rests else FOLLOWED):
            # Exposure that follows the light, or a zoom, changes contrast too, but a fade goes on
            # while we look; where there is doubt it must be twice as deep.
            now = found["short_contrast"]
            sure = rests and (now is None or abs(math.log(now)) > math.log(_GOES_ON))
            if abs(math.log(contrast)) > math.log(self.fade_contrast) * (1 if sure else 2):
                return f"contrast is {contrast:.2f} of what it was {since}"
        if unlike <= self.other_scene or (found["across_points"] or 0) >= self.same_points:
            return ""
        colours = found["across_colours"] or 0.0
        if way > _OUT_OF_SIGHT and colours < self.other_colours:
            return ""
        return f"{unlike:.0%} of the detail is gone {since}, colours {colours:.2f} apart"


def _over(seconds: float | None) -> str:
    return "" if seconds is None else f"over {seconds:.3g} s"
