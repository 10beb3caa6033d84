"""Bars and frames of a pack: shares add up, and stretches cover every position once."""

import numpy as np
import pytest

from infra.layout import Image, Text, Vocabulary, layout
from infra.schedules import SCHEDULES
from packing.cost import Coefficients
from pipelines.pack_bars import SIDE, cost_bar, mask_figure, position_bars


def image(role: str, num_scales: int = 4) -> Image:
    codes = np.zeros(SCHEDULES[3].num_codes(num_scales), np.int32)
    return Image(3, num_scales, codes, codes, role)


def text(length: int, loss: bool = True) -> Text:
    return Text(np.zeros(length, np.int32), loss)


@pytest.fixture
def sequence():
    documents = [[text(7, False), image("condition"), text(5), image("target")], [text(9)]]
    return layout(documents, Vocabulary(64, 100))


def test_bars_count_every_position_once(sequence):
    stands, predicts = position_bars(sequence)
    n = SCHEDULES[3].num_codes(4)
    assert {piece.name: piece.amount for piece in stands.pieces} == {
        "text": "21",
        "<boi>, <eoi>": "4",
        "codes of targets": str(n - 1),
        "codes of conditions": str(n),
    }
    counts = sequence.counts
    assert {piece.name: piece.amount for piece in predicts.pieces} == {
        "text ids": str(5 + 1 + 8),  # <boi> of the target too, not the document's first id
        "codes": str(n),
        "nothing": str(counts.num_tokens - counts.num_loss),
    }
    for bar in (stands, predicts):
        assert sum(piece.share for piece in bar.pieces) == pytest.approx(1)


def test_costs_are_split_by_their_causes(sequence):
    of = Coefficients(2.0, 0.5, 3.0, per_pack=10.0, unit="s")
    bar = cost_bar(sequence.counts, of)
    tokens, loss, pairs = sequence.counts
    costs = [2.0 * tokens, 0.5 * pairs, 3.0 * loss, 10.0]
    assert [piece.share for piece in bar.pieces] == pytest.approx(np.divide(costs, sum(costs)))
    assert all(piece.amount.endswith(" s") for piece in bar.pieces)
    assert len(cost_bar(sequence.counts, Coefficients(2.0, 0.5, 3.0)).pieces) == 3


def test_stretches_lie_end_to_end(sequence):
    figure = mask_figure(sequence)
    unit = SIDE / sequence.num_tokens
    for stretches in (figure.kinds, figure.documents):
        end = 0.0
        for stretch in stretches:
            assert stretch.start == pytest.approx(end, abs=0.02)
            end = stretch.start + stretch.length
        assert end == pytest.approx(SIDE, abs=0.02)
    assert len(figure.documents) == 2
    # text, boi, 4 scales, eoi, text, boi, 3 scales, eoi, and the other document's text
    colours = [stretch.colour for stretch in figure.kinds]
    odd_even = ["odd", "even"] * 2
    assert colours == [
        *("text", "mark", *(f"condition {c}" for c in odd_even), "mark", "text", "mark"),
        *(f"target {c}" for c in odd_even[1:]),
        *("mark", "text"),
    ]
    predicting = sum(stretch.length for stretch in figure.losses)
    assert predicting == pytest.approx(sequence.counts.num_loss * unit, abs=0.1)


def test_images_side_by_side_are_told_apart():
    codes = layout([[image("target", 1), image("target", 1)]], Vocabulary(64, 100))
    kinds = mask_figure(codes).kinds
    assert [stretch.colour for stretch in kinds] == ["mark", "mark"]
    assert kinds[0].length == kinds[1].length
