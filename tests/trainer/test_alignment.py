"""The alignment stage moves the new parts and nothing else, bit for bit, however it is sharded."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from packing.packs import open_packs
from trainer.model import Decoder
from trainer.train import train

OLD = ("layers.", "norm.")
TABLES = ("embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_only_the_connector_and_the_new_rows_move(config, zero_stage):
    config = replace(config, steps=3, weight_decay=0.5, trainable="new", zero_stage=zero_stage)
    facts = open_packs(config.packs).facts
    torch.manual_seed(config.seed)
    before = Decoder(config.model, facts.vocabulary, config.code_dim).state_dict()
    after = weights(train(config).checkpoint, zero_stage)
    assert set(after) == set(before)
    for name, values in after.items():
        moved = (values != before[name]).reshape(len(values), -1)
        if name in TABLES:
            assert not moved[: facts.text_vocab_size].any()
            met = moved[facts.text_vocab_size :].any(dim=1)
            assert met.float().mean() > 0.2
        else:
            assert bool(moved.any()) != name.startswith(OLD), name
    with pytest.raises(ValueError, match="was made with trainable new, this run has all"):
        train(replace(config, trainable="all", steps=4))


def weights(checkpoint, zero_stage: int) -> dict[str, Tensor]:
    if zero_stage == 3:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag="engine")
    states = torch.load(checkpoint / "engine/mp_rank_00_model_states.pt", weights_only=False)
    return states["module"]
