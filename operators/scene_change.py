"""Whether two frames show the same scene: a cut or a fade lies between them, or does not."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.pixels import Pixels
from operators.camera_motion import FlowField, Grey, grey, warped

_WINDOW = 15  # pixels of the square that is compared
_DETAIL = 16.0  # (grey levels)² of variance: less is flat, and like everything
_SOME = 0.01  # of the frame: less detail tells nothing
_ALIKE = 0.5  # correlation from which on two squares show the same
_LEAST_POINTS = 6  # a similarity goes through any two
_CLEARER = 0.75  # the best match's distance must be below this share of the next one's
_BINS = 8  # per channel of the histogram


@dataclass(frozen=True)
class Change:
    """How two frames compare, where motion points from one into the other.

    ``unlike`` is the share of a frame's detail (by contrast) that the other does not show; of the
    frame that lost less, for what comes into a view hides little of it, and a cut ends both.
    ``contrast``: the second frame's to the first's, where they are alike; None if that is nowhere.
    ``colours``: total variation between the histograms of colour, 0..1. ``detail``: share of the
    first frame that has any.
    """

    unlike: float
    contrast: float | None
    colours: float
    detail: float


def change(first: Pixels, second: Pixels, *flows: FlowField) -> Change:
    """Compare two frames [h, w, 3] of one size along any of ``flows``.

    Detail that all of them bring out of the frame is not judged.
    """
    one, two = grey(first), grey(second)
    spread = _covariance(one, one)
    best = np.full(one.shape, -1.0, np.float32)
    other = spread.copy()
    seen = np.zeros(one.shape, np.bool_)
    for flow in flows:
        back, inside = warped(two, flow)
        around = _covariance(back, back)
        alike = _covariance(one, back) / np.sqrt(np.maximum(spread, 1) * np.maximum(around, 1))
        better = (alike > best) & inside
        best[better], other[better] = alike[better], around[better]
        seen |= inside
    matched = seen & (best >= _ALIKE)
    gone = []
    for variance in (spread, other):
        detail = np.where(seen & (variance > _DETAIL), np.sqrt(np.maximum(variance, 0)), 0)
        if (detail > 0).mean() >= _SOME:
            gone.append(1 - float(detail[matched].sum() / detail.sum()))
    both = matched & (np.maximum(spread, other) > _DETAIL)
    ratio = np.sqrt(np.maximum(other[both], 0.5) / np.maximum(spread[both], 0.5))
    return Change(
        unlike=max(0.0, min(gone, default=0.0)),
        contrast=float(np.median(ratio)) if both.mean() >= _SOME else None,
        colours=float(np.abs(_histogram(first) - _histogram(second)).sum() / 2),
        detail=float((spread > _DETAIL).mean()),
    )


def rematched(first: Pixels, second: Pixels) -> tuple[int, FlowField | None]:
    """How many points of the first frame are found again in the second by one similarity, and its
    flow: SIFT features (D. Lowe, IJCV 60, 2004), which see through motion too large for flow."""
    sift = cv2.SIFT.create(nfeatures=400)
    one, two = (cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) for rgb in (first, second))
    points, described = sift.detectAndCompute(one, None)
    others, described_others = sift.detectAndCompute(two, None)
    if len(points) < _LEAST_POINTS or len(others) < _LEAST_POINTS:
        return 0, None
    matches = cv2.BFMatcher(cv2.NORM_L2).knnMatch(described, described_others, k=2)
    clear = [best for best, next_ in matches if best.distance < _CLEARER * next_.distance]
    if len(clear) < _LEAST_POINTS:
        return 0, None
    a = np.array([points[match.queryIdx].pt for match in clear], np.float32)
    b = np.array([others[match.trainIdx].pt for match in clear], np.float32)
    # OpenCV's draws start from the same seed each time.
    found, agree = cv2.estimateAffinePartial2D(a, b, method=cv2.RANSAC, ransacReprojThreshold=3.0)
    if found is None or agree is None or agree.sum() < _LEAST_POINTS:
        return 0, None
    rows, columns = np.mgrid[: one.shape[0], : one.shape[1]]
    went = np.stack([columns, rows, np.ones_like(rows)], 2) @ found.T
    return int(agree.sum()), np.asarray(went - np.stack([columns, rows], 2), np.float32)


def _covariance(one: Grey, two: Grey) -> Grey:
    size = (_WINDOW, _WINDOW)
    means = cv2.blur(one, size) * cv2.blur(two, size)
    return np.asarray(cv2.blur(one * two, size) - means, np.float32)


def _histogram(rgb: Pixels) -> NDArray[np.float64]:
    levels = (rgb // (256 // _BINS)).astype(np.int64)
    bins = (levels[..., 0] * _BINS + levels[..., 1]) * _BINS + levels[..., 2]
    return np.bincount(bins.ravel(), minlength=_BINS**3) / bins.size
