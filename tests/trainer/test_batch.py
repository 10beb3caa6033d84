"""A pack as tensors: every position once, targets and weights as the layout and equation 2 say."""

import numpy as np
import pytest
import torch

from infra.layout import NO_TARGET, Image, Text, Vocabulary, layout
from infra.schedules import SCHEDULES
from trainer.batch import pack_tensors
from trainer.config import ModelConfig
from trainer.loss import scale_weights

VOCABULARY = Vocabulary(num_codes=40, text_size=30)
WIDE = 38
GRIDS = SCHEDULES[WIDE].grids[:4]


def _image(role="target", loss=True):
    codes = np.random.default_rng(0).integers(0, 40, (2, SCHEDULES[WIDE].num_codes(4)))
    return Image(WIDE, 4, codes[0], codes[1], role, loss)


def _tensors(*segments, alpha=0.9):
    return pack_tensors(layout([segments], VOCABULARY), ModelConfig(), alpha)


def test_text_and_vision_positions_share_the_pack_out():
    tensors = _tensors(Text(np.arange(3)), _image(), _image("condition"), Text(np.arange(2)))
    index = torch.cat([tensors.text_index, tensors.vision_index]).sort().values
    assert index.tolist() == list(range(tensors.num_tokens))
    assert len(tensors.text_ids) == 3 + 2 + 2 + 2
    assert len(tensors.length_index) == len(tensors.vision_index) + 2  # and each <boi>
    assert set(tensors.length.tolist()) == {4}


def test_targets_are_those_of_the_layout():
    segments = [Text(np.arange(3)), _image(), Text(np.arange(2))]
    sequence, tensors = layout([segments], VOCABULARY), _tensors(*segments)
    has_target = sequence.targets != NO_TARGET
    assert tensors.loss_index.tolist() == np.flatnonzero(has_target).tolist()
    assert tensors.targets.tolist() == sequence.targets[has_target].tolist()


@pytest.mark.parametrize("alpha", [0.0, 0.9])
def test_weights_of_an_image_follow_equation_2_and_text_counts_one(alpha):
    tensors = _tensors(Text(np.arange(2)), _image(), Text(np.arange(1)), alpha=alpha)
    assert set(tensors.weights[tensors.loss_scale == 0].tolist()) == {1.0}
    for scale, expected in enumerate(scale_weights(GRIDS, alpha), start=1):
        weights = tensors.weights[tensors.loss_scale == scale]
        assert len(weights) == GRIDS[scale - 1][0] * GRIDS[scale - 1][1]
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
    codes = tensors.loss_scale > 0
    assert float(tensors.weights[codes].sum()) == pytest.approx(int(codes.sum()), rel=1e-5)


def test_segments_without_loss_have_no_targets():
    tensors = _tensors(Text(np.array([1, 2]), loss=False), _image(loss=False), Text(np.array([3])))
    assert tensors.targets.tolist() == [3]
    assert _tensors(_image("condition"), Text(np.array([3]))).targets.tolist() == [3]
