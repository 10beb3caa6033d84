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
    pack = pack_tensors(sequence, ModelConfig(), 1.0, [("t2i", "photos")])
    scale = pack.loss_scale
    # text costs 1 and is right, the 1 x 1 code costs 2 and is wrong, scale 2 costs 4, half right
    cost = torch.tensor([1.0, 2.0, 4.0])[scale]
    correct = (scale == 0) | ((scale == 2) & (torch.arange(len(scale)) % 2 == 0))
    totals = log.StepTotals(torch.device("cpu"))
    for _ in range(2):
        totals.add(pack, TokenLoss((pack.weights * cost).sum(), cost, correct))
    return _log(totals, step)


def _log(totals, step=1):
    return totals.log(
        step=step,
        packs_consumed=2,
        duration_s=0.5,
        data_s=0.1,
        gradient_norm=1.5,
        learning_rate=1e-3,
    )


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


def test_losses_per_task_and_source_add_up_to_the_whole():
    def document(length, seed):
        return [Text(np.random.default_rng(seed).integers(0, 9, length))]

    labels = [("text", "web"), ("t2i", "web"), ("text", "books"), ("i2t", "empty")]
    documents = [document(4, 0), document(6, 1), document(3, 2), document(1, 3)]
    pack = pack_tensors(layout(documents, Vocabulary(9, 9)), ModelConfig(), 1.0, labels)
    cost = torch.tensor([1.0, 2.0, 3.0])[pack.loss_document]
    totals = log.StepTotals(torch.device("cpu"))
    for _ in range(2):
        totals.add(pack, TokenLoss(cost.sum(), cost, pack.loss_document == 1))
    entry = _log(totals)
    assert entry.tasks == {
        "text": log.Share(2 * (3 + 2), pytest.approx((3 * 1 + 2 * 3) / 5), 0.0),
        "t2i": log.Share(2 * 5, 2.0, 1.0),
    }
    assert entry.sources == {
        "web": log.Share(2 * (3 + 5), pytest.approx((3 * 1 + 5 * 2) / 8), 5 / 8),
        "books": log.Share(2 * 2, 3.0, 0.0),
    }
    shares = entry.tasks.values()
    whole = sum(share.loss * share.num_targets for share in shares)
    assert entry.loss == pytest.approx(whole / sum(share.num_targets for share in shares))


def test_a_modality_that_is_absent_has_no_loss():
    pack = pack_tensors(layout([[Text(np.arange(3))]], Vocabulary(9, 9)), ModelConfig(), 1.0)
    totals = log.StepTotals(torch.device("cpu"))
    totals.add(pack, TokenLoss(torch.tensor(2.0), torch.ones(2), torch.ones(2, dtype=torch.bool)))
    assert _log(totals).vision_loss is None


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
