"""Counts against the numbers of the paper's schedules, and segments that cannot be."""

import numpy as np
import pytest

from infra.schedules import SCHEDULES
from infra.segments import Image, Segment, Text, Vocabulary, count

SQUARE = 20


@pytest.mark.parametrize(
    ("num_scales", "num_tokens", "num_pairs"),
    [(12, 901, 477_631), (16, 3_685, 7_938_847), (18, 10_085, 63_045_663)],
)
def test_reference_counts_of_a_square_image(
    num_scales: int, num_tokens: int, num_pairs: int
) -> None:
    codes = np.zeros(SCHEDULES[SQUARE].num_codes(num_scales), np.int32)
    image = Image(SQUARE, num_scales, codes, codes)
    assert count([image]) == (num_tokens, len(codes), num_pairs)


def test_counts_of_text_to_image_with_a_caption_of_100() -> None:
    codes = np.zeros(SCHEDULES[SQUARE].num_codes(512), np.int32)
    document: list[Segment] = [
        Text(np.zeros(100, np.int32), loss=False),
        Image(SQUARE, 16, codes, codes),
    ]
    assert count(document) == (3_785, 3_685, 8_312_397)


@pytest.mark.parametrize("schedule", range(41))
def test_a_target_takes_n_plus_1_positions_and_a_condition_n_plus_2(schedule: int) -> None:
    codes = np.zeros(SCHEDULES[schedule].num_codes(256), np.int32)
    assert count([Image(schedule, 12, codes, codes)]).num_tokens == len(codes) + 1
    condition = Image(schedule, 12, codes, codes, role="condition")
    assert count([condition])[:2] == (len(codes) + 2, 0)


def test_the_vocabulary_is_text_then_boi_eoi_and_codes() -> None:
    vocabulary = Vocabulary(num_codes=16_384)
    assert (vocabulary.boi, vocabulary.eoi, vocabulary.first_code) == (152_064, 152_065, 152_066)
    assert vocabulary.size == 168_450


def test_a_documents_first_token_is_not_counted_as_predicted() -> None:
    codes = np.zeros(5, np.int32)
    text, image = Text(np.arange(3, dtype=np.int32)), Image(SQUARE, 2, codes, codes)
    silent = Text(np.arange(3, dtype=np.int32), loss=False)
    assert count([text]).num_loss == 2
    assert count([Text(np.arange(0, dtype=np.int32)), text]).num_loss == 2
    assert count([silent, text]).num_loss == 3
    assert count([image]).num_loss == 5
    assert count([silent, image]).num_loss == 6  # its <boi> too
    assert count([]) == (0, 0, 0)


def test_mistakes_name_the_value() -> None:
    codes = np.zeros(5, np.int32)
    with pytest.raises(ValueError, match="6 codes"):
        Image(SQUARE, 2, np.zeros(6, np.int32), codes)
    with pytest.raises(ValueError, match="schedule is 41"):
        Image(41, 2, codes, codes)
    with pytest.raises(ValueError, match="num_scales is 19"):
        Image(SQUARE, 19, codes, codes)
    with pytest.raises(ValueError, match="role is 'both'"):
        Image(SQUARE, 2, codes, codes, role="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="integers"):
        Text(np.array([0.5]))
    with pytest.raises(ValueError, match="beside 100 text ids use 1 to 2147483546"):
        Vocabulary(2**31, 100)
    assert Vocabulary(2_147_483_546, 100).size == 2**31
