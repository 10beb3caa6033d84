"""Colour and flatness in four numbers: colourful or dull, grey, empty, photographed or drawn.

All are taken from the picture reduced by a whole factor to a short side of about 224 pixels, each
pixel the mean of those under it: noise and JPEG's ringing count for little, and the cost for less.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from infra.pixels import Pixels, pictures_of
from infra.schema import column

_SHORT_SIDE = 224  # pixels, about: the whole factor that comes nearest
_GREY = 8  # levels between a pixel's largest and smallest channel: below it no colour is seen
_FLAT = 4  # levels of luma within 3 x 3 pixels: less is one flat colour
_SHARP = 64  # and more than this the edge of something drawn, or a hard edge of a photograph


class ColourScores(NamedTuple):
    """One picture's scores, as in `Colour.writes`."""

    colourfulness: float
    entropy: float
    grey_share: float
    line_art: float


@dataclass(frozen=True)
class Colour:
    """Write ``colourfulness``, ``entropy``, ``grey_share`` and ``line_art``.

    ``colourfulness`` is M = σ + 0.3 μ of the opponent colours R - G and (R + G) / 2 - B: D. Hasler
    and S. Süsstrunk, "Measuring colourfulness in natural images" (SPIE 5007, 2003), who asked
    people: 0 not, 15 slightly, 33 moderately, 45 averagely, 59 quite, 82 highly, 109 extremely
    colourful. No picture exceeds 298.

    ``entropy`` in bits is that of the histogram of 256 luma levels: photographs have 5.4 to 7.9, a
    starry sky has 4.2, a page of text or a diagram 0.2 to 3.6, an empty picture 0.

    ``grey_share`` is the share of pixels without chroma. A grey photograph has 1, whatever its
    format; colour photographs have their shadows, clouds and walls, at most 0.9 or so. A toned
    picture (sepia, cyanotype) is not grey: its tint is a colour that a model would learn.

    ``line_art`` tells drawings, charts, screenshots and pages from photographs. A drawing is flat,
    and where it is not, it jumps: the score is the share of sharp pixels among those that are not
    flat, where more than 0.3 of the pixels are flat (in full from 0.6 on). Photographs score below
    0.2 (a wall of bricks 0.26), drawings above 0.4, small or badly compressed ones above 0.28.
    A picture without any edge scores 0.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            column("colourfulness", pa.float32(), "0..298", "Hasler and Süsstrunk's M; 0 is grey"),
            column("entropy", pa.float32(), "bits", "of the luma histogram, 0..8; 0 is empty"),
            column("grey_share", pa.float32(), "0..1", "pixels without chroma; 1 is a grey photo"),
            column("line_art", pa.float32(), "0..1", "flat areas, sharp edges: drawn, not shot"),
        ],
    )
    version: ClassVar[int] = 1

    def __call__(self, batch: pa.Table) -> pa.Table:
        scores = [None if p is None else colour_scores(p) for p in pictures_of(batch)]
        for i, field in enumerate(self.writes):
            values = [None if score is None else score[i] for score in scores]
            batch = batch.append_column(field, pa.array(values, field.type))
        return batch


def colour_scores(rgb: Pixels) -> ColourScores:
    """The scores of one picture [h, w, 3] uint8."""
    small = reduced(rgb, _SHORT_SIDE)
    red, green, blue = cv2.split(small)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    largest = cv2.max(cv2.max(red, green), blue)
    chroma = cv2.subtract(largest, cv2.min(cv2.min(red, green), blue))
    square = np.ones((3, 3), np.uint8)
    contrast = cv2.subtract(cv2.dilate(grey, square), cv2.erode(grey, square))
    return ColourScores(
        colourfulness=_colourfulness(red, green, blue),
        entropy=_entropy(grey),
        grey_share=int(np.count_nonzero(chroma <= _GREY)) / grey.size,
        line_art=_line_art(contrast),
    )


def reduced(rgb: Pixels, short_side: int) -> Pixels:
    """``rgb`` reduced by the whole factor that brings its short side nearest to ``short_side``.

    Each pixel is the mean of those under it; up to factor - 1 rows and columns at the bottom and
    the right, which fill no pixel, are left out. Whole factors cost a tenth of others.
    """
    h, w = rgb.shape[:2]
    factor = max(1, round(min(h, w) / short_side))
    if factor == 1:
        return rgb
    whole = rgb[: h // factor * factor, : w // factor * factor]
    size = (w // factor, h // factor)
    return np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.uint8)


def _colourfulness(
    red: cv2.typing.MatLike, green: cv2.typing.MatLike, blue: cv2.typing.MatLike
) -> float:
    # In whole numbers, the second opponent colour doubled: sums are exact, the same everywhere.
    red_green = cv2.subtract(red, green, dtype=cv2.CV_16S)
    sum_ = cv2.add(red, green, dtype=cv2.CV_16S)
    yellow_blue = cv2.subtract(sum_, cv2.add(blue, blue, dtype=cv2.CV_16S))
    mean_rg, variance_rg = _moments(red_green)
    mean_yb, variance_yb = _moments(yellow_blue)
    spread = math.sqrt(variance_rg + variance_yb / 4)
    return spread + 0.3 * math.hypot(mean_rg, mean_yb / 2)


def _moments(values: cv2.typing.MatLike) -> tuple[float, float]:
    mean = cv2.sumElems(values)[0] / values.size
    return mean, max(0.0, cv2.norm(values, cv2.NORM_L2SQR) / values.size - mean * mean)


def _entropy(grey: cv2.typing.MatLike) -> float:
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).reshape(-1).astype(np.float64)
    shares = counts[counts > 0] / grey.size
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # + 0.0: an empty picture has 0, not -0


def _line_art(contrast: cv2.typing.MatLike) -> float:
    num_flat = int(np.count_nonzero(contrast <= _FLAT))
    if num_flat == contrast.size:
        return 0.0
    sharp = int(np.count_nonzero(contrast >= _SHARP)) / (contrast.size - num_flat)
    return min(1.0, max(0.0, (num_flat / contrast.size - 0.3) / 0.3)) * sharp
