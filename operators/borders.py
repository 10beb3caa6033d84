"""Bars, frames and plain grounds: how much of a picture is no picture.

Two different things, told apart by where they end. A bar (letterbox, pillarbox) or a frame is flat
and ends in a straight edge along a whole side of what it encloses. The ground of a product shot, a
night sky or a blank page may be as flat, but an object stands on it, or it fades.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.pixels import Pixels, pictures_of
from infra.schema import column
from operators.colour import reduced

_SHORT_SIDE = 224  # pixels, about: the whole factor that comes nearest
_SAME = 8  # levels per channel: JPEG's noise on a flat colour stays below, also at quality 50
_OUTLIERS = 0.03  # share of a bar's row that may be something else: specks, a scratch
_STEP = 10  # levels: what a pixel must differ by across the end of a bar
_BLOCK = 16  # pixels of the decoded picture: JPEG's ringing beside an edge, with halved chroma
_CLIP = 64  # levels: more than this says no more of an end
_STRAIGHT = 0.7  # share of the enclosed side where there must be such a step
_LEAST = 8  # pixels: shorter sides of what is enclosed are not judged
_BAND = 0.015  # of the short side: how far in from the sides the ground's colour is looked for
_LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601


class BorderScores(NamedTuple):
    """One picture's scores, as in `Borders.writes`."""

    border_share: float
    background_share: float
    background_luma: float


class _Rect(NamedTuple):
    """Rows [top, bottom) and columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class Borders:
    """Write ``border_share``, ``background_share`` and ``background_luma``.

    ``border_share`` is the share of the area taken by letterbox, pillarbox and frames of any
    colour, also one within another: rows and columns at the sides of one colour each (97 % of a
    row within 8 levels), that end within the reach of JPEG's ringing in a step along 70 % of what
    they enclose. Of two opposite bars only one needs such an end. Photographs without bars have 0,
    with a clear sky, a night or a studio wall as well; a picture of one colour has 1. Bars are
    measured to about 1 % of the area, at JPEG qualities from 30 on; bars below 2 % of a side may go
    unseen, and a rectangle on a plain ground looks like a framed picture.

    ``background_share`` is the share of pixels within 8 levels of the colour that is most frequent
    along the sides, in patches of at least 3 x 3 working pixels. Photographs have 0 to 0.3, before
    an even wall or on snow up to 0.6; cut-outs, product shots and pages have what is not object or
    text. Gradients count only as far as they stay near that colour. ``background_luma`` is the luma
    of that colour, whether its share is large or not: a plain white ground is
    ``background_share > 0.5 AND background_luma > 245``.

    All three at the working size, a short side of about 224 pixels.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            column("border_share", pa.float32(), "0..1", "area of letterbox, pillarbox or frame"),
            column("background_share", pa.float32(), "0..1", "pixels of the plain ground"),
            column("background_luma", pa.float32(), "0..255", "brightness of that ground's colour"),
        ],
    )
    version: ClassVar[int] = 1

    def __call__(self, batch: pa.Table) -> pa.Table:
        scores = [None if p is None else border_scores(p) for p in pictures_of(batch)]
        for i, field in enumerate(self.writes):
            values = [None if score is None else score[i] for score in scores]
            batch = batch.append_column(field, pa.array(values, field.type))
        return batch


def border_scores(rgb: Pixels) -> BorderScores:
    """The scores of one picture [h, w, 3] uint8."""
    small = reduced(rgb, _SHORT_SIDE)
    h, w = small.shape[:2]
    inner = _inside(small, -(-_BLOCK * h // rgb.shape[0]))
    share = 1.0 - (inner.bottom - inner.top) * (inner.right - inner.left) / (h * w)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    colour = _ground_colour(small, grey)
    # What is plain is plain over a few pixels: texture in the ground's colour does not count.
    plain = cv2.morphologyEx(_like(small, colour), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return BorderScores(share, cv2.countNonZero(plain) / (h * w), float(colour @ _LUMA))


def _inside(small: Pixels, block: int) -> _Rect:
    """What is left within bars and frames."""
    rect = _Rect(0, small.shape[0], 0, small.shape[1])
    while rect.top < rect.bottom and rect.left < rect.right:
        part = small[rect.top : rect.bottom, rect.left : rect.right]
        top, bottom, left, right = _bars(part, block)
        if top + bottom + left + right == 0:
            break
        rect = _Rect(rect.top + top, rect.bottom - bottom, rect.left + left, rect.right - right)
    return rect


def _bars(part: Pixels, block: int) -> tuple[int, int, int, int]:
    """Pixels of the bars at top, bottom, left and right of ``part``; frames need several rounds.

    A picture of one colour is a bar all over. ``block`` is how far JPEG's ringing may reach.
    """
    h, w = part.shape[:2]
    # Each side as if it were the top: views, no copies.
    across = part.transpose(1, 0, 2)
    sides = (part, part[::-1], across, across[::-1])
    flat = [_flat_rows(side) for side in sides]
    top, bottom, left, right = flat
    if max(top, bottom) == h or max(left, right) == w:
        return h, 0, w, 0
    spans = [slice(left, w - right)] * 2 + [slice(top, h - bottom)] * 2
    bars = [_straight_end(*side, block) for side in zip(sides, flat, spans, strict=True)]
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        if bars[one] == 0 < flat[one] and flat[one] + block >= bars[other]:
            bars[one] = bars[other]  # a dark scene melts into one of two equal bars
    top, bottom, left, right = bars
    return top, bottom, left, right


def _flat_rows(side: NDArray[np.uint8]) -> int:
    """How many rows from the first on are flat and of the first row's colour."""
    few = int(_OUTLIERS * len(side[0]))
    green = np.partition(side[0, :, 1], (few, -1 - few))
    if int(green[-1 - few]) - int(green[few]) > 2 * _SAME:
        return 0  # as nearly all photographs: found out at a fifth of the cost
    colour = _median(side[0])
    depth, step = 0, 1
    while depth < len(side):
        alike = _like(np.ascontiguousarray(side[depth : depth + step]), colour) > 0
        ends = np.flatnonzero(alike.mean(axis=1) < 1 - _OUTLIERS)
        if len(ends):
            return depth + int(ends[0])
        depth, step = depth + len(alike), 4 * step  # most sides end at their first row
    return depth


def _straight_end(side: NDArray[np.uint8], flat: int, span: slice, block: int) -> int:
    """Where the ``flat`` rows and up to ``block`` noisy ones end in one step; 0 if they do not.

    The step has to show in most of the columns ``span``.
    """
    last = min(flat + block, len(side) - 2)
    if flat == 0 or last < flat or span.stop - span.start < _LEAST:
        return 0
    rows = side[flat - 1 : last + 2, span].astype(np.int16)
    # [ends, columns]: how row flat + i differs from the one before it
    jumps = np.minimum(np.abs(rows[1:-1] - rows[:-2]).max(-1), _CLIP).mean(-1)
    end = int((jumps >= 0.75 * jumps.max()).argmax())  # the first large one: pictures have others
    # Over three rows, because a reduced picture blends both sides in the one between.
    steps = np.abs(rows[end + 2] - rows[max(0, end - 1)]).max(-1) > _STEP
    return flat + end if steps.mean() >= _STRAIGHT else 0


def _ground_colour(small: Pixels, grey: cv2.typing.MatLike) -> NDArray[np.float64]:
    """The colour [3] that is most frequent along the four sides."""
    band = max(1, round(_BAND * min(small.shape[:2])))
    along = (slice(None, band), slice(-band, None))
    places = [(rows, slice(None)) for rows in along] + [(slice(None), columns) for columns in along]
    luma = np.concatenate([grey[place].reshape(-1) for place in places])
    colours = np.concatenate([small[place].reshape(-1, 3) for place in places])
    counts = np.convolve(np.bincount(luma, minlength=256), np.ones(2 * _SAME + 1), "same")
    near = np.abs(luma.astype(np.int16) - int(counts.argmax())) <= _SAME
    return _median(colours[near])


def _median(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The upper median per channel of colours [n, 3]."""
    half = len(colours) // 2
    return np.partition(colours, half, axis=0)[half].astype(np.float64)


def _like(pixels: NDArray[np.uint8], colour: NDArray[np.float64]) -> NDArray[np.uint8]:
    """255 where a pixel is nearly of ``colour``."""
    low, high = np.clip([colour - _SAME, colour + _SAME], 0, 255)
    return np.asarray(cv2.inRange(pixels, low, high), np.uint8)
