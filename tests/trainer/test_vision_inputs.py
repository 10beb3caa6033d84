"""Upsampled inputs: one gather and weighted sum equals torch's bicubic interpolation."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from infra.layout import Image, Text, Vocabulary, layout
from infra.schedules import SCHEDULES
from trainer.vision_inputs import bicubic_taps, sequence_taps

GENERATOR = np.random.default_rng(0)


def _interpolate(cells: torch.Tensor, source: tuple[int, int], target: tuple[int, int]):
    grid = cells.T.reshape(1, -1, *source)
    up = F.interpolate(grid, size=target, mode="bicubic", align_corners=False)
    return up.flatten(2)[0].T


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: f"row{schedule.index}")
def test_taps_equal_interpolate_on_every_transition(schedule):
    for source, target in pairwise(schedule.grids):
        cells = torch.randn(source[0] * source[1], 3)
        index, weight = bicubic_taps(source, target)
        ours = (cells[torch.tensor(index)] * torch.tensor(weight)[..., None]).sum(1)
        torch.testing.assert_close(
            ours, _interpolate(cells, source, target), atol=2e-5, rtol=0, msg=f"{source}->{target}"
        )


def _image(schedule: int, num_scales: int, role: str) -> Image:
    codes = GENERATOR.integers(0, 50, (2, SCHEDULES[schedule].num_codes(num_scales)))
    return Image(schedule, num_scales, codes[0], codes[1], role)


def test_pack_inputs_are_the_previous_scales_upsampled_and_condition_images_their_own_codes():
    target, condition = _image(3, 6, "target"), _image(20, 5, "condition")
    sequence = layout([[target], [condition, _image(3, 4, "target")]], Vocabulary(50, 10))
    codes, weights = sequence_taps(sequence)
    table = torch.randn(50, 4)
    inputs = (table[torch.from_numpy(codes).long()] * torch.from_numpy(weights)[..., None]).sum(1)

    expected, start = [], 0
    grids = SCHEDULES[3].grids[:6]
    for source, to in pairwise(grids):
        stop = start + source[0] * source[1]
        cells = table[torch.from_numpy(target.input_codes[start:stop]).long()]
        expected.append(_interpolate(cells, source, to))
        start = stop
    expected.append(table[torch.from_numpy(condition.input_codes).long()])
    together = torch.cat(expected)
    torch.testing.assert_close(inputs[: len(together)], together, atol=2e-5, rtol=0)
    assert len(inputs) == np.count_nonzero(sequence.scale)


def test_a_pack_without_images_has_no_taps():
    codes, weights = sequence_taps(layout([[Text(np.arange(5))]], Vocabulary(50, 10)))
    assert codes.shape == weights.shape == (0, 16)
