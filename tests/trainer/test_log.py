"""The step log: sums per modality and scale, and lines that a kill cannot spoil."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from infra.layout import Image, Text, Vocabulary, layout
from infra.schedules import SCHEDULES
from trainer import log
from trainer.batch import pack_tensors
from trainer.config import ModelConfig
from trainer.loss import TokenLoss


def _entry(step=1):
    codes = np.zeros(SCHEDULES[0].num_codes(2), np.int32)
    sequence = layout([[Text(np.arange(3)), Image(0, 2, codes, codes)]], Vocabulary(9, 9))
    pack = pack_tensors(sequence, ModelConfig(), scale_alpha=1.0)
    scale = pack.loss_scale
    # text costs 1 and is right, the 1 x 1 code costs 2 and is wrong, scale 2 costs 4, half right
    cost = torch.tensor([1.0, 2.0, 4.0])[scale]
    correct = (scale == 0) | ((scale == 2) & (torch.arange(len(scale)) % 2 == 0))
    totals = log.StepTotals(torch.device("cpu"))
    for _ in range(2):
        totals.add(pack, TokenLoss((pack.weights * cost).sum(), cost, correct))
    return totals.log(step, 2, 0.5, 1.5, 1e-3)


def test_losses_per_modality_and_scale():
    entry = _entry()
    assert entry.text_loss == 1.0
    assert entry.text_accuracy == 1.0
    assert entry.scale_losses == [2.0, 4.0] + [None] * 16
    assert entry.scale_accuracies[:2] == [0.0, 0.5]
    # alpha 1: both scales weigh the same in all, 2.5 each of 5 codes; 3 text targets
    assert entry.vision_loss == pytest.approx(3.0)
    assert entry.loss == pytest.approx((3 * 1.0 + 5 * 3.0) / 8)
    assert entry.num_tokens == 2 * 9
    assert entry.tokens_per_s == 36.0


def test_a_modality_that_is_absent_has_no_loss():
    pack = pack_tensors(layout([[Text(np.arange(3))]], Vocabulary(9, 9)), ModelConfig(), 1.0)
    totals = log.StepTotals(torch.device("cpu"))
    totals.add(pack, TokenLoss(torch.tensor(2.0), torch.ones(2), torch.ones(2, dtype=torch.bool)))
    assert totals.log(1, 1, 1.0, 0.0, 0.0).vision_loss is None


def test_lines_after_the_checkpoint_and_torn_ones_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    log.keep_until(path, 0)
    for step in (1, 2, 3):
        log.append(path, _entry(step))
    with path.open("a") as file:
        file.write('{"step": 2')
    log.keep_until(path, 2)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert json.loads(lines[0]) == asdict(_entry(1))
