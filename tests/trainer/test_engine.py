"""DeepSpeed's set-up: a group of one without a launcher, the weight decay's groups."""

from dataclasses import replace

import pytest
import torch

from trainer.config import ModelConfig, TrainConfig
from trainer.engine import build_engine, process_group, settings

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


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_many_small_gradients_in_bf16_are_added_up_in_fp32(zero_stage):
    """1 + 255 x 2^-10 is 1.249: bf16 has 8 bits, so that 1 + 2^-10 would stay 1."""
    import deepspeed

    steps = [1.0] + [2**-10] * 255
    model = torch.nn.Linear(1, 1, bias=False)
    of = replace(CONFIG, micro_batches=len(steps), zero_stage=zero_stage, gradient_clip=1e9)
    with process_group():
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings(of, bf16=True)
        )
        for value in steps:
            loss = engine(torch.tensor([[value]], dtype=torch.bfloat16)).sum()
            engine.backward(loss * len(steps))  # which divides by their number
            engine.step()
        assert float(engine.get_global_grad_norm()) == pytest.approx(sum(steps), rel=1e-3)
        engine.destroy()


def test_the_first_step_in_bf16_is_the_same_at_all_stages():
    """DeepSpeed's wrapper of stage 0 takes a step of its own before; Adam must not count it."""
    weight = torch.linspace(-1, 1, 64).reshape(8, 8)
    moved = []
    for zero_stage in (0, 1, 2):
        model = torch.nn.Linear(8, 8, bias=False)
        model.weight.data.copy_(weight)
        of = replace(CONFIG, zero_stage=zero_stage, micro_batches=1, gradient_clip=1e9)
        with process_group() as (_, _, device):
            engine = build_engine(model, of, device, bf16=True)
            for group in engine.optimizer.param_groups:
                group["lr"] = 0.05
            engine.backward(engine(torch.ones(1, 8, dtype=torch.bfloat16)).sum())
            engine.step()
            moved.append(engine.module.weight.detach().float().clone())
            engine.destroy()
    for other in moved[1:]:
        torch.testing.assert_close(moved[0], other)
    # Adam's first step is the rate itself, beside the decay of 0.1.
    change = weight.bfloat16().float() * (1 - 0.05 * 0.1) - moved[0]
    torch.testing.assert_close(change, torch.full_like(change, 0.05), atol=5e-3, rtol=0)
