"""What of an optical flow is the camera's doing, and what moves by itself.

The camera's share is found robustly: similarities are drawn from pairs of flow vectors, the one
that most of the frame agrees with is refined by re-weighted least squares (RANSAC with MSAC's
score: P. Torr and A. Zisserman, "MLESAC", CVIU 78, 2000), and tilted planes get the eight
parameters of planar motion where these fit better (J. Bergen et al., "Hierarchical model-based
motion estimation", ECCV 1992). What remains, the residual, is an object only where the pictures
bear it out: flow that explains them no better than the camera does is noise.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.pixels import Pixels

FlowField = NDArray[np.float32]
"""[h, w, 2]: where a pixel of the first frame went, (x right, y down) in pixels."""
Grey = NDArray[np.float32]

_STEP = 8  # pixels between the vectors that the camera is fitted to
_DRAWS = 256
_REFINEMENTS = 8
_FLOOR = 0.25  # pixels: agreement better than this is chance, flow is not that exact
_SHARE = 0.05  # of its own length: how exact flow of long vectors is
_LEAST_AREA = 1 / 800  # of the frame: a region of 10 x 10 pixels
_EDGE = 6  # pixels
_SAME_WAY = 0.95  # cosine
_OTHER = 120.0  # (grey levels)²: a misplaced edge differs by less over a square of 7 pixels
_BETTER = 0.8  # the plane must leave at most this share of the similarity's cost


@dataclass(frozen=True)
class Camera:
    """The dominant motion of a flow.

    ``flow`` [h, w, 2] is the camera's share in pixels, ``residual`` [h, w, 2] the rest;
    ``tolerance`` is the length of a residual that still agrees, in pixels; ``inliers`` the share
    of the frame that does. ``parameters`` are those of `_similarity` (4) or `_plane` (8), for
    coordinates from the centre in units of half the long side.
    """

    model: Literal["similarity", "plane"]
    parameters: tuple[float, ...]
    inliers: float
    tolerance: float
    flow: FlowField
    residual: FlowField


@dataclass(frozen=True)
class Moving:
    """Regions that move by themselves: their ``share`` of the frame, and the mean ``length`` of the
    residual in them, in pixels (0 without any); ``changed``: share of the frame in regions that the
    camera's motion does not account for, whether flow does or not (what came, went, or jumped)."""

    share: float
    length: float
    changed: float


def fit(flow: FlowField) -> Camera:
    """The motion that most of the frame agrees with; the same for the same flow, always.

    A region of more than half the frame is the camera: nothing in the flow says otherwise.
    """
    height, width = flow.shape[:2]
    start = min(_STEP, height, width) // 2
    sampled = flow[start::_STEP, start::_STEP].reshape(-1, 2).astype(np.float64)
    rows, columns = np.mgrid[start:height:_STEP, start:width:_STEP]
    points = _normalised(columns.ravel(), rows.ravel(), flow.shape)
    length = float(np.median(np.hypot(sampled[:, 0], sampled[:, 1])))
    tolerance = _FLOOR + _SHARE * length

    drawn = _drawn(points, sampled, tolerance)
    similar, cost = _refined(_similarity(points), sampled, drawn, tolerance)
    # The plane starts from the similarity: its parameters are the first four of the plane's.
    flat, flat_cost = _refined(_plane(points), sampled, _as_plane(similar), tolerance)
    planar = flat_cost < _BETTER * cost
    parameters = flat if planar else similar

    rows, columns = np.mgrid[:height, :width]
    places = _normalised(columns.ravel(), rows.ravel(), flow.shape)
    basis = _plane(places) if planar else _similarity(places)
    camera = np.asarray((basis @ parameters).reshape(flow.shape), np.float32)
    residual = flow - camera
    agree = np.hypot(residual[..., 0], residual[..., 1]) <= tolerance
    return Camera(
        model="plane" if planar else "similarity",
        parameters=tuple(parameters.tolist()),
        inliers=float(agree.mean()),
        tolerance=tolerance,
        flow=camera,
        residual=residual,
    )


def moving(first: Pixels, second: Pixels, flow: FlowField, camera: Camera) -> Moving:
    """Where ``flow`` differs from ``camera`` by more than its noise, and brings the second frame
    nearer to the first than the camera alone does.

    Regions of less than 0.125% of the frame are left out: noise has no extent. So are those at the
    frame's edge whose flow has the camera's direction at another speed: a nearer or farther part of
    the scene (parallax).
    """
    one, two = grey(first), grey(second)
    by_camera, inside = warped(two, camera.flow)
    by_flow, _ = warped(two, flow)
    # What two neighbouring frames differ in as a whole (flicker, exposure) moves nothing.
    lighter = float(np.median(one) - np.median(by_camera))
    wrong = cv2.blur((one - by_camera - lighter) ** 2, (7, 7))
    left = cv2.blur((one - by_flow - lighter) ** 2, (7, 7))
    noise = max(float(np.median(wrong)), 2.0)
    length = np.hypot(camera.residual[..., 0], camera.residual[..., 1])
    # Flow errs by a share of its length, and in some pictures everywhere: most pixels tell how far.
    far = np.hypot(camera.flow[..., 0], camera.flow[..., 1])
    expected = np.maximum(1.5 * (_FLOOR + _SHARE * far), 3 * np.median(length))
    own = (length > expected) & (wrong - left > 3 * noise) & inside
    there = _without_parallax(_regions(own, 5, _LEAST_AREA), flow, camera)
    changed = (wrong > max(8 * noise, _OTHER)) & inside
    return Moving(
        share=float((there > 0).mean()),
        length=float(length[there > 0].mean()) if there.any() else 0.0,
        changed=float((_regions(changed, 9, 2 * _LEAST_AREA) > 0).mean()),
    )


def _regions(mask: NDArray[np.bool_], width: int, least: float) -> NDArray[np.int32]:
    """Numbers, from 1, of connected parts at least ``width`` pixels wide that fill at least
    ``least`` of the frame; 0 around them."""
    kernel = np.ones((width, width), np.uint8)
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    opened = cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel)
    _, regions, found, _ = cv2.connectedComponentsWithStats(opened, connectivity=8)
    areas = found[:, cv2.CC_STAT_AREA]
    large = areas >= least * mask.size
    large[0] = False  # what lies around them
    return np.asarray(np.where(large[regions], regions, 0), np.int32)


def _without_parallax(
    regions: NDArray[np.int32], flow: FlowField, camera: Camera
) -> NDArray[np.int32]:
    height, width = regions.shape
    reach = np.abs(camera.flow).max((0, 1)) + _EDGE  # what leaves the frame is not compared
    for number in np.unique(regions[regions > 0]):
        rows, columns = np.nonzero(regions == number)
        at_edge = (
            min(columns.min(), width - 1 - columns.max()) <= reach[0]
            or min(rows.min(), height - 1 - rows.max()) <= reach[1]
        )
        own, by_camera = flow[rows, columns].mean(0), camera.flow[rows, columns].mean(0)
        along = float(own @ by_camera) / max(float(np.hypot(*own) * np.hypot(*by_camera)), 1e-6)
        if at_edge and along > _SAME_WAY and np.hypot(*by_camera) > _FLOOR:
            regions = np.where(regions == number, 0, regions).astype(np.int32)
    return regions


def grey(rgb: Pixels) -> Grey:
    """Luma [h, w], smoothed by a pixel: sensor noise is finer than what flow can follow."""
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(luma, (0, 0), 1.0), np.float32)


def warped(second: Grey, flow: FlowField) -> tuple[Grey, NDArray[np.bool_]]:
    """The second picture brought back along the flow, and where that is inside of it."""
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    back = cv2.remap(second, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return np.asarray(back, np.float32), inside


def _normalised(
    x: NDArray[np.int64], y: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """[n, 2] from the centre, in half the long side: all parameters are then of one size."""
    centre = np.array([shape[1] - 1, shape[0] - 1]) / 2
    return np.asarray((np.stack([x, y], 1) - centre) / (max(shape[:2]) / 2))


def _similarity(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 2, 4]: the flow of a shift (2), a zoom and a turn at points [n, 2]."""
    x, y = points.T
    one, zero = np.ones_like(x), np.zeros_like(x)
    return np.stack([np.stack([one, zero, x, -y], 1), np.stack([zero, one, y, x], 1)], 1)


def _plane(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 2, 8]: beside the similarity's, two shears and two of perspective."""
    x, y = points.T
    more = [np.stack([x, y, x * x, x * y], 1), np.stack([-y, x, x * y, y * y], 1)]
    return np.concatenate([_similarity(points), np.stack(more, 1)], 2)


def _as_plane(similar: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([similar, np.zeros(4)])


def _drawn(
    points: NDArray[np.float64], vectors: NDArray[np.float64], tolerance: float
) -> NDArray[np.float64]:
    """The similarity through two vectors that most vectors agree with, or none at all."""
    rng = np.random.default_rng(0)  # the same draws for each flow of a size
    pairs = rng.integers(0, len(points), (2, _DRAWS))
    z = points[:, 0] + 1j * points[:, 1]
    w = vectors[:, 0] + 1j * vectors[:, 1]
    apart = z[pairs[1]] - z[pairs[0]]
    slope = np.divide(w[pairs[1]] - w[pairs[0]], apart, where=abs(apart) > 0.1, out=0 * apart)
    shift = w[pairs[0]] - slope * z[pairs[0]]
    slope, shift = np.append(slope, 0), np.append(shift, 0)  # a camera at rest, too
    misses = np.abs(slope[:, None] * z + shift[:, None] - w) ** 2
    best = int(np.minimum(misses, tolerance**2).sum(1).argmin())
    return np.array([shift[best].real, shift[best].imag, slope[best].real, slope[best].imag])


def _refined(
    basis: NDArray[np.float64],
    vectors: NDArray[np.float64],
    parameters: NDArray[np.float64],
    tolerance: float,
) -> tuple[NDArray[np.float64], float]:
    """Re-weighted least squares from ``parameters`` on, and what they cost then.

    A vector that misses by the tolerance counts a quarter (Geman and McClure's weights); far ones
    count nothing. A touch of ridge keeps what a few points on a line cannot tell at rest.
    """
    flat = basis.reshape(-1, basis.shape[-1])
    ridge = 1e-6 * len(flat) * np.eye(flat.shape[1])
    for _ in range(_REFINEMENTS):
        misses = ((basis @ parameters - vectors) ** 2).sum(1)
        weights = np.repeat(1 / (1 + misses / tolerance**2) ** 2, 2)
        weighted = flat * weights[:, None]
        parameters = np.linalg.solve(flat.T @ weighted + ridge, weighted.T @ vectors.ravel())
    misses = ((basis @ parameters - vectors) ** 2).sum(1)
    return parameters, float(np.minimum(misses, tolerance**2).sum())
