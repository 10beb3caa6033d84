"""Multi-scale 3D RoPE: equation 1, and what rotation must keep."""

from dataclasses import replace

import numpy as np
import torch

from infra.layout import Image, Text, Vocabulary, layout
from infra.schedules import SCHEDULES
from trainer.config import ModelConfig
from trainer.rope import positions_3d, rotary, rotate, sinusoid

SIX = ModelConfig(spatial_range=6.0)
SQUARE = next(s.index for s in SCHEDULES if s.ratio == 1)


def _sequence():
    codes = np.zeros(SCHEDULES[SQUARE].num_codes(3), np.int32)
    image = Image(SQUARE, 3, codes, codes)
    return layout([[Text(np.arange(4)), image, Text(np.arange(2))]], Vocabulary(9, 9))


def test_text_stands_on_the_diagonal_and_cells_on_equation_1():
    sequence = _sequence()
    positions = positions_3d(sequence, SIX)
    assert positions.dtype == np.float32
    np.testing.assert_array_equal(positions[3], [3, 3, 3])
    np.testing.assert_array_equal(positions[4], [4, 4, 4])  # <boi>
    # scale 2 is 2 x 2: C / sqrt(4) = 3 per cell; scale 3 is 3 x 3: 2 per cell
    np.testing.assert_allclose(positions[5:9], [[2, 1.5, 1.5], [2, 1.5, 4.5], [2, 4.5, 1.5],
                                                [2, 4.5, 4.5]])  # fmt: skip
    np.testing.assert_allclose(positions[9], [3, 1, 1])
    np.testing.assert_allclose(positions[17], [3, 5, 5])
    np.testing.assert_array_equal(positions[18:], [[5] * 3, [6] * 3, [7] * 3])  # <eoi>, text


def test_follow_text_moves_the_image_with_its_boi():
    sequence, follow = _sequence(), replace(SIX, image_positions="follow_text")
    moved = positions_3d(sequence, follow) - positions_3d(sequence, SIX)
    assert set(moved[5:18].ravel()) == {4.0}
    assert not moved[:5].any()
    assert not moved[18:].any()


def test_text_behind_an_image_stands_past_its_largest_coordinate():
    wide = SCHEDULES[38]
    codes = np.zeros(wide.num_codes(4), np.int32)
    image = Image(wide.index, 4, codes, codes)
    documents = [[Text(np.arange(2)), image, Text(np.arange(1)), image], [Text(np.arange(3))]]
    sequence = layout(documents, Vocabulary(9, 9))
    text = np.flatnonzero(sequence.scale == 0)
    next_ = positions_3d(sequence, SIX)[text, 0]
    behind = positions_3d(sequence, replace(SIX, text_after_image="behind"))
    height, width = wide.grids[3]
    extent = np.ceil(6.0 * max(height, width) / np.sqrt(height * width))
    assert next_.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    shifts = np.array([0, 0, 0, 1, 1, 1, 2, 0, 0, 0]) * extent
    assert (behind[text, 0] - next_).tolist() == shifts.tolist()
    first_eoi = behind[text[3]]
    before = slice(text[2] + 1, text[3])
    assert (behind[before, 1:].max(axis=0) < first_eoi[1:]).all()


def test_each_axis_rotates_its_own_section_of_the_frequencies():
    for axis, frequencies in enumerate([range(4), range(4, 10), range(10, 16)]):
        position = torch.zeros(1, 3)
        position[0, axis] = 1.0
        cos, sin = rotary(position, (4, 6, 6), 1e4, 32)
        moved = {i % 16 for i in torch.nonzero(sin[0]).flatten().tolist()}
        assert moved == set(frequencies)
        assert torch.equal(cos[:, :16], cos[:, 16:])


def test_scores_depend_on_distance_alone():
    query, key = torch.randn(2, 1, 1, 32)

    def score(at_query: float, at_key: float) -> float:
        places = torch.tensor([[at_query] * 3, [at_key] * 3])
        cos, sin = rotary(places, (4, 6, 6), 1e4, 32)
        turned = [rotate(x, (cos[i], sin[i])) for i, x in enumerate((query, key))]
        return float((turned[0] * turned[1]).sum())

    assert abs(score(7, 3) - score(104, 100)) < 1e-4


def test_bf16_keeps_exact_angles():
    rotation = rotary(torch.full((1, 3), 4097.0), (4, 6, 6), 1e4, 32)
    assert rotation[0].dtype == torch.float32
    assert rotate(torch.ones(1, 32, dtype=torch.bfloat16), rotation).dtype == torch.bfloat16


def test_sinusoid_tells_the_numbers_of_scales_apart():
    codes = sinusoid(torch.arange(1, 19), 64)
    assert codes.shape == (18, 64)
    assert torch.pdist(codes).min() > 0.5
