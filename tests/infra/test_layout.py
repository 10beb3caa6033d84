"""The layout against a slow reading of its rules, position by position."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.layout import (
    NO_TARGET,
    Counts,
    Image,
    Segment,
    Text,
    Vocabulary,
    count,
    layout,
)
from infra.schedules import SCHEDULES

SQUARE = 20
VOCABULARY = Vocabulary(num_codes=50, text_size=100)
BOI, EOI, CODE = 100, 101, 102


@st.composite
def texts(draw: st.DrawFn) -> Text:
    ids = draw(st.lists(st.integers(0, 99), max_size=6))
    return Text(np.array(ids, np.int32), loss=draw(st.booleans()))


@st.composite
def images(draw: st.DrawFn) -> Image:
    schedule, num_scales = draw(st.integers(0, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 1_000)))
    codes = rng.integers(0, 50, (2, SCHEDULES[schedule].num_codes(num_scales)))
    role = draw(st.sampled_from(["target", "condition"]))
    return Image(schedule, num_scales, codes[0], codes[1], role, draw(st.booleans()))  # type: ignore[arg-type]


documents = st.lists(st.one_of(texts(), images()), min_size=1, max_size=5).filter(
    lambda segments: count(segments).num_tokens > 0
)
packs = st.lists(documents, min_size=1, max_size=3)


@dataclass
class Position:
    """What one position is, for the slow reading."""

    document: int
    block: tuple[int, int] | None = None  # (segment, scale) of vision
    token: int = -1
    target: int = NO_TARGET
    loss_scale: int = -1
    cell: tuple[int, int] = (0, 0)
    source: tuple[int, int, int] = (-1, 0, 0)  # start in the pack's codes, height, width


def read_slowly(pack: list[list[Segment]]) -> list[Position]:
    out: list[Position] = []
    first_code = 0
    for d, segments in enumerate(pack):
        for i, segment in enumerate(segments):

            def predict(token: int, scale: int, d: int = d) -> None:
                if out and out[-1].document == d:
                    out[-1].target, out[-1].loss_scale = token, scale

            if isinstance(segment, Text):
                for token in segment.ids.tolist():
                    if segment.loss:
                        predict(token, 0)
                    out.append(Position(d, token=token))
                continue
            loss = segment.loss and segment.role == "target"
            if loss:
                predict(BOI, 0)
            out.append(Position(d, token=BOI))
            starts, at = [], 0
            for h, w in (grids := SCHEDULES[segment.schedule].grids[: segment.num_scales]):
                starts.append(at)
                at += h * w
            if loss:
                out[-1].target, out[-1].loss_scale = CODE + int(segment.target_codes[0]), 1
            for s, (h, w) in enumerate(grids, 1):
                if s == 1 and segment.role == "target":
                    continue
                of = s - 2 if segment.role == "target" else s - 1
                for cell in range(h * w):
                    position = Position(d, block=(i, s), cell=(cell // w, cell % w))
                    position.source = (first_code + starts[of], *grids[of])
                    if loss:
                        position.target = CODE + int(segment.target_codes[starts[s - 1] + cell])
                        position.loss_scale = s
                    out.append(position)
            out.append(Position(d, token=EOI))
            first_code += at
    return out


def read_mask_slowly(positions: list[Position]) -> np.ndarray:
    n = len(positions)
    mask = np.zeros((n, n), bool)
    for q, query in enumerate(positions):
        for k, key in enumerate(positions):
            same_block = query.block is not None and query.block == key.block
            mask[q, k] = query.document == key.document and (k <= q or same_block)
    return mask


@settings(max_examples=60, deadline=None)
@given(packs)
def test_layout_is_what_the_rules_say(pack: list[list[Segment]]) -> None:
    sequence, slow = layout(pack, VOCABULARY), read_slowly(pack)
    assert sequence.token_ids.tolist() == [p.token for p in slow]
    assert sequence.targets.tolist() == [p.target for p in slow]
    assert sequence.loss_scale.tolist() == [p.loss_scale for p in slow]
    assert sequence.document.tolist() == [p.document for p in slow]
    assert sequence.scale.tolist() == [p.block[1] if p.block else 0 for p in slow]
    assert list(zip(sequence.row, sequence.col, strict=True)) == [p.cell for p in slow]
    source = (sequence.source_start, sequence.source_height, sequence.source_width)
    assert list(zip(*source, strict=True)) == [p.source for p in slow]
    mask = read_mask_slowly(slow)
    assert np.array_equal(sequence.dense_mask(), mask)
    expected = Counts(len(slow), sum(p.target != NO_TARGET for p in slow), int(mask.sum()))
    closed = np.sum([count(segments) for segments in pack], axis=0)
    assert sequence.counts == expected == tuple(closed)


@settings(max_examples=30, deadline=None)
@given(packs, documents)
def test_a_document_does_not_depend_on_its_neighbours(
    pack: list[list[Segment]], document: list[Segment]
) -> None:
    alone, packed = layout([document], VOCABULARY), layout([*pack, document], VOCABULARY)
    here = slice(packed.num_tokens - alone.num_tokens, None)
    for name in ("token_ids", "targets", "loss_scale", "text_position", "num_scales", "grid_width"):
        assert np.array_equal(getattr(packed, name)[here], getattr(alone, name))
    shift = packed.num_tokens - alone.num_tokens
    assert np.array_equal(packed.key_start[here], alone.key_start + shift)
    assert np.array_equal(packed.key_end[here], alone.key_end + shift)


def test_a_small_document_in_full() -> None:
    """Text, an image of 1 x 1 and 2 x 2, text: the layout as one would draw it."""
    image = Image(SQUARE, 2, [10, 11, 12, 13, 14], [20, 21, 22, 23, 24])  # type: ignore[arg-type]
    document: list[Segment] = [Text([1, 2], loss=False), image, Text([3])]  # type: ignore[arg-type]
    sequence = layout([document], VOCABULARY)
    assert sequence.token_ids.tolist() == [1, 2, BOI, -1, -1, -1, -1, EOI, 3]
    codes = [CODE + c for c in (20, 21, 22, 23, 24)]
    assert sequence.targets.tolist() == [NO_TARGET, BOI, *codes, 3, NO_TARGET]
    assert sequence.loss_scale.tolist() == [-1, 0, 1, 2, 2, 2, 2, 0, -1]
    assert sequence.key_end.tolist() == [1, 2, 3, 7, 7, 7, 7, 8, 9]
    assert sequence.text_position.tolist() == [0, 1, 2, 2, 2, 2, 2, 3, 4]
    assert sequence.num_scales.tolist() == [0, 0, 2, 2, 2, 2, 2, 0, 0]
    assert sequence.image.tolist() == [-1, -1, 0, 0, 0, 0, 0, 0, -1]
    assert sequence.input_codes.tolist() == [10, 11, 12, 13, 14]
    assert sequence.images == ((0, SQUARE, 2, "target", True, 2, 8, 0),)


def test_the_last_code_of_the_largest_codebook_is_the_last_int32() -> None:
    largest = Vocabulary(2**31 - 102, 100)
    codes = np.full(5, largest.num_codes - 1, np.int32)
    sequence = layout([[Image(SQUARE, 2, codes, codes)]], largest)
    assert sequence.targets.max() == 2**31 - 1
    assert sequence.counts.num_loss == 5


def test_an_empty_pack_is_an_empty_sequence() -> None:
    assert layout([], VOCABULARY).counts == (0, 0, 0)


def test_mistakes_name_value_and_place() -> None:
    codes = np.zeros(5, np.int32)
    with pytest.raises(ValueError, match="input codes reach from 0 to 50"):
        layout([[Image(SQUARE, 2, np.array([0, 0, 0, 0, 50]), codes)]], VOCABULARY)
    with pytest.raises(ValueError, match="text ids reach from 100 to 100"):
        layout([[Text(np.array([100]))]], VOCABULARY)  # <boi> is not text
    with pytest.raises(ValueError, match="document 1"):
        layout([[Text(np.array([1]))], [Text(np.array([], np.int32))]], VOCABULARY)
