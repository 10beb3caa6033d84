"""The alignment stage moves the new parts and nothing else, bit for bit, however it is sharded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from packing.packs import open_packs
from trainer.checkpoint import complete
from trainer.model import Decoder
from trainer.train import train

OLD = ("layers.", "norm.")
TABLES = ("embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_only_the_connector_and_the_new_rows_move(config, weights_of, zero_stage):
    config = replace(config, steps=3, weight_decay=0.5, trainable="new", zero_stage=zero_stage)
    check_moved(config, weights_of(train(config).checkpoint))
    with pytest.raises(ValueError, match="was made with trainable new, this run has all"):
        train(replace(config, trainable="all", steps=4))


@pytest.mark.slow
def test_nothing_else_moves_on_two_ranks(two_ranks, weights_of):
    """That they learn as one rank does, and go on after a stop: test_train."""
    config = two_ranks["alignment"]
    check_moved(config, weights_of(complete(Path(config.output) / "checkpoints")[-1]))


def check_moved(config, after):
    facts = open_packs(config.packs).facts
    torch.manual_seed(config.seed)
    before = Decoder(config.model, facts.vocabulary, config.code_dim).state_dict()
    assert set(after) == set(before)
    for name, values in after.items():
        moved = (values != before[name]).reshape(len(values), -1)
        if name in TABLES:
            assert not moved[: facts.text_vocab_size].any()
            met = moved[facts.text_vocab_size :].any(dim=1)
            assert met.float().mean() > 0.2
        else:
            assert bool(moved.any()) != name.startswith(OLD), name
