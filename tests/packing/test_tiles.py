"""Tiles that a block mask keeps, counted from intervals, against dense masks cut into tiles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.layout import Image, Segment, Sequence, Text, Vocabulary, count, layout
from infra.schedules import SCHEDULES
from packing.tiles import TILE, document_tile_pairs, tile_pairs

VOCABULARY = Vocabulary(num_codes=4, text_size=8)
SQUARE = 20


def text(length: int) -> Text:
    return Text(np.zeros(length, np.int32))


def image(num_scales: int, role: str = "target", schedule: int = SQUARE) -> Image:
    codes = np.zeros(SCHEDULES[schedule].num_codes(num_scales), np.int32)
    return Image(schedule, num_scales, codes, codes, role)  # type: ignore[arg-type]


def brute_force(pack: Sequence, tile: int) -> int:
    """Tiles of the dense mask in which anything is seen."""
    side = -(-pack.num_tokens // tile) * tile
    mask = np.zeros((side, side), np.bool_)
    mask[: pack.num_tokens, : pack.num_tokens] = pack.dense_mask()
    tiles = mask.reshape(side // tile, tile, side // tile, tile).any(axis=(1, 3))
    return int(tiles.sum()) * tile * tile


segments = st.one_of(
    st.integers(0, 40).map(text),
    st.builds(
        image, st.integers(1, 6), st.sampled_from(["target", "condition"]), st.integers(0, 40)
    ),
)
documents = st.lists(segments, min_size=1, max_size=4).filter(lambda d: count(d).num_tokens > 0)


@settings(max_examples=150, deadline=None)
@given(st.lists(documents, min_size=1, max_size=5), st.sampled_from([1, 3, 8, 16, 128]))
def test_tiles_are_those_of_the_dense_mask_and_shares_add_up(
    pack: list[list[Segment]], tile: int
) -> None:
    laid = layout(pack, VOCABULARY)
    found = tile_pairs(laid.key_start, laid.key_end, tile)
    assert found == brute_force(laid, tile)
    assert found >= laid.counts.num_pairs
    starts = np.cumsum([0, *(count(document).num_tokens for document in pack)])
    shares = [
        document_tile_pairs(document, int(start), tile)
        for document, start in zip(pack, starts[:-1], strict=True)
    ]
    assert sum(shares) == found


@settings(max_examples=50, deadline=None)
@given(documents, st.sampled_from([1, 3, 8, 128]))
def test_without_a_start_it_is_the_mean_over_all(document: list[Segment], tile: int) -> None:
    every = [document_tile_pairs(document, start, tile) for start in range(tile)]
    assert document_tile_pairs(document, tile=tile) == pytest.approx(np.mean(every))
    assert document_tile_pairs(document, 5 * tile + 1, tile) == every[1 % tile]


def test_tiles_of_one_position_are_the_pairs() -> None:
    document: list[Segment] = [text(30), image(6), text(3)]
    assert document_tile_pairs(document, tile=1) == count(document).num_pairs


def test_a_text_of_whole_tiles() -> None:
    assert document_tile_pairs([text(1024)], 0) == 36 * TILE**2
    assert document_tile_pairs([text(0)]) == 0
    assert tile_pairs([], []) == 0


@pytest.mark.parametrize(
    ("num_scales", "num_tokens", "pairs", "tiles", "over"),
    [
        (12, 901, 477_631, 45, 1.544),
        (16, 3_685, 7_938_847, 517, 1.067),
        (18, 10_085, 63_045_663, 3_941, 1.024),
    ],
)
def test_a_square_image_alone(
    num_scales: int, num_tokens: int, pairs: int, tiles: int, over: float
) -> None:
    """Tokens and pairs of the paper's levels, counted by hand, and the tiles of their masks."""
    assert count([image(num_scales)])[::2] == (num_tokens, pairs)
    computed = document_tile_pairs([image(num_scales)], 0)
    assert computed == tiles * TILE**2
    assert computed / pairs == pytest.approx(over, abs=0.001)
