"""What two pairs of frames tell about what moves: the statistics that `MotionRule` decides from.

Lengths are pixels of a frame whose short side is 256. Statistics whose names begin with ``short_``
speak of ``short_s`` seconds from a candidate on, those with ``across_`` of the ``across_s`` seconds
before it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.pixels import Pixels
from operators.camera_motion import FlowField, fit, moving
from operators.scene_change import change, rematched

Statistics = dict[str, float | None]
"""By name, see `STATISTICS`."""

STATISTICS: tuple[tuple[str, str, str], ...] = (
    ("short_s", "s", "baseline of all `short_` statistics: from this frame to its partner"),
    ("short_speed", "px/s", "mean length of the flow"),
    ("short_direction_variance", "0..1", "circular variance of its directions, by length"),
    ("short_camera_speed", "px/s", "mean length of the camera's share of the flow"),
    ("short_camera_share", "0..1", "share of the frame that agrees with the camera's motion"),
    ("short_object_speed", "px/s", "mean speed, against the camera, of what moves by itself"),
    ("short_object_share", "0..1", "share of the frame that moves by itself, in whole regions"),
    ("short_unlike", "0..1", "share of the detail that the partner does not show"),
    ("short_contrast", "ratio", "contrast of the detail that it shows, to this frame's"),
    ("short_detail_share", "0..1", "share of this frame that has any detail to compare"),
    ("across_s", "s", "baseline of all `across_` statistics: from the candidate before to this"),
    ("across_shift", "px", "mean length of the flow"),
    ("across_direction_variance", "0..1", "circular variance of its directions, by length"),
    ("across_camera_shift", "px", "mean length of the camera's share of the flow"),
    ("across_camera_share", "0..1", "share of the frame that agrees with the camera's motion"),
    ("across_object_shift", "px", "mean way, against the camera, of what has moved by itself"),
    ("across_object_share", "0..1", "share of the frame that has moved by itself"),
    ("across_changed_share", "0..1", "share of the frame that the camera does not account for"),
    ("across_unlike", "0..1", "share of the former detail that is found nowhere"),
    ("across_contrast", "ratio", "contrast of the detail that is found, to what it was"),
    ("across_colours", "0..1", "distance of the histograms of colour (total variation)"),
    ("across_points", "count", "points found again by one similarity; null if not looked for"),
)
"""Name, unit and meaning of each statistic of a verdict. One that needs a pair which is not there
is null."""

SIDE = 256
FOLLOWED = 0.3  # unlike: above, flow may just not have followed, and points are looked for


@dataclass(frozen=True)
class Pair:
    """Two frames [h, w, 3] uint8 RGB of one size, ``baseline_s`` seconds apart, and the flow
    [h, w, 2] from the first to the second in pixels."""

    first: Pixels
    second: Pixels
    flow: FlowField
    baseline_s: float


def measure(short: Pair | None, across: Pair | None) -> Statistics:
    """The `STATISTICS` of the pairs that are there."""
    found: Statistics = dict.fromkeys(name for name, *_ in STATISTICS)
    for name, pair in (("short", short), ("across", across)):
        if pair is None:
            continue
        camera = fit(pair.flow)
        objects = moving(pair.first, pair.second, pair.flow, camera)
        still = np.zeros_like(pair.flow)
        alike = change(pair.first, pair.second, still, pair.flow, camera.flow)
        scale = SIDE / min(pair.flow.shape[:2])
        if name == "short":
            scale /= pair.baseline_s
        lengths = _lengths(pair.flow)
        total = float(lengths.sum(dtype=np.float64))
        toward = float(np.hypot(*pair.flow.sum((0, 1), dtype=np.float64)))
        away = "speed" if name == "short" else "shift"
        found |= {
            f"{name}_s": pair.baseline_s,
            f"{name}_{away}": total / lengths.size * scale,
            f"{name}_direction_variance": 1 - toward / total if total else 0.0,
            f"{name}_camera_{away}": float(_lengths(camera.flow).mean()) * scale,
            f"{name}_camera_share": camera.inliers,
            f"{name}_object_{away}": objects.length * scale,
            f"{name}_object_share": objects.share,
            f"{name}_unlike": alike.unlike,
        }
        if name == "short":
            found |= {"short_contrast": alike.contrast, "short_detail_share": alike.detail}
        else:
            if alike.unlike > FOLLOWED:
                points, along = rematched(pair.first, pair.second)
                found["across_points"] = float(points)
                if along is not None:
                    by_points = change(pair.first, pair.second, along)
                    alike = min(alike, by_points, key=lambda change: change.unlike)
            found |= {
                "across_changed_share": objects.changed,
                "across_unlike": alike.unlike,
                "across_contrast": alike.contrast,
                "across_colours": alike.colours,
            }
    return found


def _lengths(flow: FlowField) -> NDArray[np.float32]:
    return np.asarray(np.hypot(flow[..., 0], flow[..., 1]), np.float32)
