"""What is packed of a document: slices, contiguous ranges of its row's segments.

Most documents are one slice with all their segments. A text-to-image document that loses its prompt
(for classifier-free guidance) is the slice that starts at its first image; a document that fits no
pack whole may be cut behind images into several slices. All else stays as the tokens have it:
codes, ids and their order.
"""

from collections import abc
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from infra.schema import uniform
from infra.segments import Counts, Segment
from packing.cost import Coefficients, cost
from packing.measures import SEGMENT_COLUMNS, Measures, measure, measure_rows

Int64 = NDArray[np.int64]

COUNTS = Counts._fields
COLUMNS = ["doc_id", "task", *COUNTS, *SEGMENT_COLUMNS]
"""What `slices_of` needs of a table of tokens, as names of Parquet columns: no codes."""

SLICES = pa.schema(
    [
        ("row", pa.int64()),
        ("copy", pa.int32()),
        ("piece", pa.int32()),
        ("first_segment", pa.int32()),
        ("num_segments", pa.int32()),
        *((name, pa.int64()) for name in COUNTS),
        ("reason", pa.string()),
    ],
)
_REASONS = pa.array([None, "over_token_cap", "over_budget"], pa.string())  # `plan.REASONS`


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """Which documents are packed in part. ``drop_captions``: share of the copies of text-to-image
    documents that lose their prompt (`dropped`, with ``seed``). ``split_at_images``: whether what
    fits no pack is cut behind images; otherwise it is rejected."""

    drop_captions: float = 0.1
    split_at_images: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop_captions <= 1:  # NaN is not either
            raise ValueError(f"drop_captions is {self.drop_captions}: use a share from 0 to 1")


@dataclass(frozen=True)
class Slice:
    """Segments ``first_segment`` to ``first_segment + num_segments`` - 1, counted as a document."""

    first_segment: int
    num_segments: int
    counts: Counts


def dropped(doc_id: str, copy: int, slicing: Slicing) -> bool:
    """Whether a copy of a text-to-image document is drawn to lose its prompt: copy 0 by its id,
    copy c by ``<doc_id>/<c>``, so that a document that is packed often is seen both ways."""
    id_ = f"{doc_id}/{copy}" if copy else doc_id
    return uniform(id_, slicing.seed) < slicing.drop_captions


def without_caption(segments: abc.Sequence[Segment]) -> Slice | None:
    """The slice that starts at the first image; None where there is no prompt to drop: no text
    before an image, or one that is not predicted (a condition, or without loss)."""
    of = measure(segments)
    start = _first_drawn(of, np.array([0]), np.array([len(of)]))
    return None if start[0] < 0 else _slice(of, int(start[0]), len(of))


def cut(
    segments: abc.Sequence[Segment], token_cap: int, budget: float, of: Coefficients
) -> tuple[Slice, ...] | None:
    """Consecutive slices that each fit a pack, in order; None where that cannot be.

    A cut is behind an image, so that text stays with the image that follows it. Slices are as few
    as can be. Of the ways to do so that is taken which has the fewest slices without any position
    with loss, then that with the longest first slice, and so on. What still has no loss (a text
    end of one id behind an image that fills a pack) is a slice like the others: its ``num_loss``
    of 0 says so, and nothing of a document disappears.
    """
    measures = measure(segments)
    bounds = _cut(measures, 0, len(measures), token_cap, budget, of)
    if bounds is None:
        return None
    return tuple(_slice(measures, a, b) for a, b in pairwise(bounds.tolist()))


def slices_of(
    tokens: pa.Table,
    copies: ArrayLike,
    slicing: Slicing,
    token_cap: int,
    budget: float,
    of: Coefficients,
    *,
    first_copy: ArrayLike = 0,
) -> pa.Table:
    """The slices of a part of a table of tokens, as a table of schema `SLICES`.

    ``tokens`` holds at least `COLUMNS`, as `pq.read` of these gives them; ``copies`` says for each
    row how many copies are packed (0 leaves it out: those that failed must be left out). Copies are
    numbered from ``first_copy``, which later epochs raise. Rows come by ``row`` (number of the row
    in ``tokens``), ``copy`` and ``piece``. A slice that fits no pack of ``token_cap`` positions and
    cost ``budget`` has its ``reason``: over_token_cap or over_budget, as the document has it that
    could not be cut.

    Segments are looked at only in rows that lose a prompt or fit no pack. Raises ValueError for
    such a row whose segments are not what its counts say, and for a row without segments.
    """
    times = np.broadcast_to(np.asarray(copies, np.int64), len(tokens))
    row = np.repeat(np.arange(len(tokens)), times)
    copy = np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)
    copy += np.broadcast_to(np.asarray(first_copy, np.int64), len(tokens))[row]
    segments = tokens["segments"].combine_chunks()
    if segments.null_count and (times[segments.is_null().to_numpy(zero_copy_only=False)] > 0).any():
        raise ValueError("a row of tokens has no segments: it failed and cannot be packed")
    num_segments = pc.fill_null(pc.list_value_length(segments), 0).to_numpy().astype(np.int64)[row]
    said = np.stack(
        [pc.fill_null(tokens[name], 0).to_numpy().astype(np.int64) for name in COUNTS], axis=1
    )
    counts = said[row]

    drawn = _drawn(tokens, row, copy, slicing)
    over = _reasons(counts, token_cap, budget, of) > 0
    looked, place = np.unique(row[drawn | over], return_inverse=True)
    measures, starts = measure_rows(segments.take(pa.array(looked)))
    _check(tokens["doc_id"], looked, said[looked], measures.count(starts[:-1], starts[1:]))
    first, last = np.zeros(len(row), np.int64), num_segments.copy()
    base = np.zeros(len(row), np.int64)  # where the row's segments are in `measures`
    base[drawn | over] = starts[:-1][place]

    at = np.flatnonzero(drawn)
    image = _first_drawn(measures, base[at], base[at] + last[at])
    at, image = at[image >= 0], image[image >= 0]
    first[at] = image - base[at]
    counts[at] = measures.count(image, base[at] + last[at])

    reason = _reasons(counts, token_cap, budget, of)
    pieces = np.ones(len(row), np.int64)
    bounds: dict[int, Int64] = {}
    known: dict[tuple[int, int], Int64 | None] = {}
    for i in np.flatnonzero(reason > 0).tolist() if slicing.split_at_images else ():
        key = int(base[i] + first[i]), int(base[i] + last[i])
        if key not in known:
            known[key] = _cut(measures, *key, token_cap, budget, of)
        if (found := known[key]) is not None:
            bounds[i], pieces[i], reason[i] = found, len(found) - 1, 0

    which = np.repeat(np.arange(len(row)), pieces)
    offset = np.cumsum(pieces) - pieces
    piece = np.arange(len(which)) - offset[which]
    first, last, counts = first[which], last[which], counts[which]
    for i, edges in bounds.items():
        here = slice(offset[i], offset[i] + pieces[i])
        counts[here] = measures.count(edges[:-1], edges[1:])
        first[here], last[here] = edges[:-1] - base[i], edges[1:] - base[i]
    columns = (row[which], copy[which], piece, first, last - first, *counts.T)
    arrays = [*map(pa.array, columns), _REASONS.take(pa.array(reason[which]))]
    return pa.table(arrays, names=SLICES.names).cast(SLICES)


def _drawn(tokens: pa.Table, row: Int64, copy: Int64, slicing: Slicing) -> NDArray[np.bool_]:
    """Which copies are drawn to lose their prompt."""
    drawn = np.zeros(len(row), bool)
    if slicing.drop_captions:
        is_t2i = pc.fill_null(pc.equal(tokens["task"], "t2i"), False).to_numpy()
        at = np.flatnonzero(is_t2i[row])
        ids = tokens["doc_id"].take(pa.array(row[at])).to_pylist()
        pairs = zip(ids, copy[at].tolist(), strict=True)
        drawn[at] = [dropped(id_, number, slicing) for id_, number in pairs]
    return drawn


def _first_drawn(of: Measures, start: Int64, stop: Int64) -> Int64:
    """Of each range its first image, if text stands before it and it is predicted; else -1."""
    images = np.flatnonzero(of.is_image)
    first = np.append(images, len(of))[np.searchsorted(images, start)]
    found = (first > start) & (first < stop)
    found[found] = of.num_loss[first[found]] > 0
    return np.where(found, first, -1)


def _cut(
    measures: Measures, start: int, stop: int, token_cap: int, budget: float, of: Coefficients
) -> Int64 | None:
    """Bounds of the slices of [start, stop), with both ends; None where a unit does not fit.

    Read from the end: best[i] is the least (slices, slices without loss) of all from bound i on,
    as one number. Only bounds within the token cap are tried.
    """
    behind = np.flatnonzero(measures.is_image[start:stop]) + start + 1
    bounds = np.unique(np.concatenate([[start], behind, [stop]]))
    num_units = len(bounds) - 1
    tokens = measures.tokens_before[bounds]
    best = np.zeros(num_units + 1, np.int64)
    following = np.zeros(num_units + 1, np.int64)
    for i in range(num_units - 1, -1, -1):
        end = int(np.searchsorted(tokens, tokens[i] + token_cap, side="right"))
        to = np.arange(i + 1, end)
        counts = measures.count(np.full(len(to), bounds[i]), bounds[to])
        fits = _reasons(counts, token_cap, budget, of) == 0
        if not fits.any():
            return None  # the unit alone does not: cost grows with length
        to, counts = to[fits], counts[fits]
        score = best[to] + (1 << 32) + (counts[:, 1] == 0)
        best[i] = score.min()
        following[i] = to[score == best[i]][-1]
    found, i = [0], 0
    while i < num_units:
        i = int(following[i])
        found.append(i)
    cuts: Int64 = bounds[found]
    return cuts


def _reasons(counts: Int64, token_cap: int, budget: float, of: Coefficients) -> Int64:
    """Index into `_REASONS` for counts [n, 3]."""
    num_tokens, num_loss, num_pairs = counts.T
    reason = np.where(cost(num_tokens, num_loss, num_pairs, of) > budget, 2, 0)
    reason[num_tokens > token_cap] = 1
    return reason


def _check(doc_ids: pa.ChunkedArray, rows: Int64, said: Int64, found: Int64) -> None:
    """Counts say what a pack costs: they must be those of the segments that go into it."""
    wrong = np.flatnonzero((said != found).any(axis=1))
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            f"document {doc_ids[int(rows[i])]}: its segments have {found[i].tolist()} tokens, "
            f"positions with loss and pairs, its row says {said[i].tolist()}"
        )


def _slice(of: Measures, start: int, stop: int) -> Slice:
    [counts] = of.count(np.array([start]), np.array([stop])).tolist()
    return Slice(start, stop - start, Counts(*counts))
