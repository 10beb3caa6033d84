"""The one definition of a sequence: segments to positions, targets, attention, T and pairs.

Tokenising takes its lengths from here, packing its costs and training its masks (paper sections 2
and 3). NumPy only. The rules:

- A **target** image of K scales and N codes is ``<boi>``, the inputs of scales 2 .. K (each read
  from the previous scale's input codes), ``<eoi>``: T = N + 1. ``<boi>`` predicts the 1 x 1 code
  and each position of scale s the target code of the *same* cell; nothing predicts ``<eoi>``.
- A **condition** image is ``<boi>``, the codes of scales 1 .. K on their own grids, ``<eoi>``:
  T = N + 2. Nothing is predicted inside it, nor its ``<boi>``.
- The last text id or ``<eoi>`` before a segment predicts that segment's first token: the next text
  id, or ``<boi>`` of a target image, an image after an image included. A document's first token is
  predicted by nothing, its last predicts nothing (an end-of-text id is part of the ids).
- A prediction counts iff the segment that *holds the predicted token* has ``loss``.
- Targets are explicit per position and never a shift. A query sees one contiguous key interval:
  from the start of its document to itself, or to the end of its block inside an image scale.
"""

from collections import abc
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.schedules import SCHEDULES, Grid
from infra.segments import Counts, Image, Int32, Role, Segment, Text, Vocabulary, count

__all__ = [
    "NO_TARGET",
    "Counts",
    "Image",
    "ImageSpan",
    "Segment",
    "Sequence",
    "Text",
    "Vocabulary",
    "count",
    "layout",
]

Int8 = NDArray[np.int8]

NO_TARGET = -100


class ImageSpan(NamedTuple):
    """One image of a pack: positions [start, stop) with its ``<boi>`` and ``<eoi>``."""

    document: int
    schedule: int
    num_scales: int
    role: Role
    loss: bool
    start: int
    stop: int
    first_code: int  # where its codes start in `Sequence.input_codes`


@dataclass(frozen=True, eq=False)
class Sequence:
    """One pack as arrays over its T positions, and its images. All indices are in the pack."""

    token_ids: Int32  # text id, <boi> or <eoi>; -1 for vision positions
    targets: Int32  # vocabulary id to predict; NO_TARGET for none
    loss_scale: Int8  # 0: a text id, <boi> included; s >= 1: a code of scale s; -1: no target
    document: Int32  # index of the document
    image: Int32  # index into `images`, for <boi>, vision and <eoi>; -1 for text
    scale: Int8  # s of a vision position; 0 for text, <boi> and <eoi>, which are text-like
    num_scales: Int8  # K of the image on <boi> (it predicts the 1 x 1 code) and vision; else 0
    text_position: Int32  # t: text-like positions before this one in its document; vision: <boi>'s
    key_start: Int32  # a query sees the keys [key_start, key_end)
    key_end: Int32
    row: Int32  # cell of a vision position in its grid; all four 0 elsewhere
    col: Int32
    grid_height: Int32
    grid_width: Int32
    # The grid that a vision position's input is read from, upsampled to its own grid if smaller:
    source_start: Int32  # where it starts in `input_codes`; -1 for positions without a source
    source_height: Int32
    source_width: Int32
    input_codes: Int32  # flat input codes of all images, without offset
    images: tuple[ImageSpan, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def counts(self) -> Counts:
        """T, positions with a target and attended pairs, summed over the pack."""
        pairs = (self.key_end.astype(np.int64) - self.key_start).sum()
        return Counts(self.num_tokens, int((self.targets != NO_TARGET).sum()), int(pairs))

    def dense_mask(self) -> NDArray[np.bool_]:
        """[T, T]: whether a query (row) sees a key (column). For small packs and pictures."""
        keys = np.arange(self.num_tokens)
        return (keys >= self.key_start[:, None]) & (keys < self.key_end[:, None])


def layout(
    documents: abc.Sequence[abc.Sequence[Segment]],
    vocabulary: Vocabulary,
) -> Sequence:
    """Lay the documents of one pack one after another; no document sees another.

    Raises ValueError for a document without tokens and for ids outside the vocabulary.
    """
    counts = [count(segments) for segments in documents]
    arrays = _allocate(sum(c.num_tokens for c in counts))
    codes: list[Int32] = [np.zeros(0, np.int32)]
    images: list[ImageSpan] = []
    start = first_code = 0
    for index, (segments, document) in enumerate(zip(documents, counts, strict=True)):
        if document.num_tokens == 0:
            raise ValueError(f"document {index} of the pack has no tokens: leave it out")
        stop = start + document.num_tokens
        arrays["document"][start:stop] = index
        arrays["key_start"][start:stop] = start
        at, text_position = start, 0
        for segment in segments:
            if isinstance(segment, Text):
                _place_text(arrays, segment, at, text_position, start, vocabulary)
                text_position += len(segment.ids)
                at += len(segment.ids)
                continue
            end = at + segment.num_tokens
            kind = (segment.schedule, segment.num_scales, segment.role, segment.has_loss)
            span = ImageSpan(index, *kind, at, end, first_code)
            _place_image(arrays, segment, span, len(images), text_position, start, vocabulary)
            images.append(span)
            codes.append(segment.input_codes)
            first_code += segment.num_codes
            text_position += 2  # <boi> and <eoi>; vision takes no text position
            at = end
        start = stop
    return Sequence(**arrays, input_codes=np.concatenate(codes), images=tuple(images))


def _place_text(
    arrays: dict[str, NDArray[Any]],
    text: Text,
    at: int,
    text_position: int,
    document_start: int,
    vocabulary: Vocabulary,
) -> None:
    ids = text.ids
    if not len(ids):
        return
    _check_range(ids, vocabulary.text_size, "text ids")
    here = slice(at, at + len(ids))
    arrays["token_ids"][here] = ids
    arrays["text_position"][here] = text_position + np.arange(len(ids))
    arrays["key_end"][here] = np.arange(at + 1, at + len(ids) + 1)
    if text.loss:
        first = 1 if at == document_start else 0  # the first token of a document has no predictor
        predictors = slice(at - 1 + first, at + len(ids) - 1)
        arrays["targets"][predictors] = ids[first:]
        arrays["loss_scale"][predictors] = 0


def _place_image(
    arrays: dict[str, NDArray[Any]],
    image: Image,
    span: ImageSpan,
    index: int,
    text_position: int,
    document_start: int,
    vocabulary: Vocabulary,
) -> None:
    _check_range(image.input_codes, vocabulary.num_codes, "input codes")
    _check_range(image.target_codes, vocabulary.num_codes, "target codes")
    start, stop = span.start, span.stop
    for name, values in _template(image.schedule, image.num_scales, image.role).items():
        arrays[name][start:stop] = values
    arrays["key_end"][start:stop] += start
    vision = slice(start + 1, stop - 1)
    arrays["source_start"][vision] += span.first_code
    arrays["image"][start:stop] = index
    arrays["text_position"][start:stop] = text_position
    arrays["text_position"][stop - 1] += 1
    arrays["token_ids"][start] = vocabulary.boi
    arrays["token_ids"][stop - 1] = vocabulary.eoi
    if span.loss:
        # A target image's positions before <eoi> are as many as its codes, in the same order:
        # <boi> stands where the 1 x 1 input would be.
        arrays["targets"][start : stop - 1] = image.target_codes + vocabulary.first_code
        arrays["loss_scale"][start] = 1
        arrays["loss_scale"][vision] = arrays["scale"][vision]
        if start > document_start:
            arrays["targets"][start - 1] = vocabulary.boi
            arrays["loss_scale"][start - 1] = 0


@lru_cache(maxsize=256)
def _template(schedule: int, num_scales: int, role: Role) -> dict[str, NDArray[Any]]:
    """What every image of this kind has in common, with positions and codes counted from 0."""
    grids = SCHEDULES[schedule].grids[:num_scales]
    first_scale = 2 if role == "target" else 1
    parts: list[NDArray[Any]] = []
    source_start, end = 0, 1
    for scale in range(first_scale, num_scales + 1):
        height, width = grids[scale - 1]
        source: Grid = grids[scale - 2] if role == "target" else grids[scale - 1]
        end += height * width
        cells = np.arange(height * width)
        block = np.empty((len(_TEMPLATE), height * width), np.int32)
        block[0], block[1] = cells // width, cells % width
        block[2:] = np.array([scale, height, width, end, source_start, *source])[:, None]
        parts.append(block)
        source_start += source[0] * source[1]
    boi, eoi = np.zeros((2, len(_TEMPLATE), 1), np.int32)
    boi[5], eoi[5] = 1, end + 1  # key_end
    boi[6] = eoi[6] = -1  # source_start
    arrays = dict(zip(_TEMPLATE, np.concatenate([boi, *parts, eoi], axis=1), strict=True))
    arrays["num_scales"] = np.full(len(arrays["row"]), num_scales, np.int8)
    arrays["num_scales"][-1] = 0
    for values in arrays.values():
        values.flags.writeable = False  # shared by every image of this kind
    return arrays


_TEMPLATE = (
    "row",
    "col",
    "scale",
    "grid_height",
    "grid_width",
    "key_end",
    "source_start",
    "source_height",
    "source_width",
)


def _allocate(num_tokens: int) -> dict[str, NDArray[Any]]:
    empty = {"targets": NO_TARGET}
    empty |= dict.fromkeys(("token_ids", "loss_scale", "image", "source_start"), -1)
    small = ("loss_scale", "scale", "num_scales")
    return {
        field.name: np.full(
            num_tokens,
            empty.get(field.name, 0),
            np.int8 if field.name in small else np.int32,
        )
        for field in fields(Sequence)
        if field.name not in ("input_codes", "images")
    }


def _check_range(values: Int32, size: int, what: str) -> None:
    if values.size and (values.min() < 0 or values.max() >= size):
        raise ValueError(
            f"{what} reach from {values.min()} to {values.max()}: they must lie in 0..{size - 1}"
        )
