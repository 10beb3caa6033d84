"""DeepSpeed's set-up: a group of one without a launcher, the weight decay's groups."""

import torch

from trainer.config import ModelConfig, TrainConfig
from trainer.engine import build_engine, process_group

CONFIG = TrainConfig("packs", "out", 1, model=ModelConfig(), weight_decay=0.1, micro_batches=3)


def test_a_plain_process_is_a_group_of_one_and_leaves_nothing_behind():
    for _ in range(2):
        with process_group() as (rank, ranks, device):
            assert (rank, ranks) == (0, 1)
            assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
            assert torch.distributed.is_initialized()
        assert not torch.distributed.is_initialized()


def test_matrices_decay_and_vectors_do_not():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.RMSNorm(3))
    with process_group() as (_, _, device):
        engine = build_engine(model, CONFIG, device)
        groups = engine.optimizer.param_groups
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        assert engine.zero_optimization_stage() == 2
        assert engine.gradient_accumulation_steps() == 3
        engine.destroy()
