"""DeepSpeed around the decoder: processes, device and engine. Imported by the loop alone, lazily.

One code path serves a plain process, the ``deepspeed`` launcher and torchrun: the launchers set
RANK and friends, without them the run is a group of one.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from trainer.alignment import train_new_parts, widened_tables
from trainer.config import TrainConfig
from trainer.model import Decoder


@contextmanager
def process_group() -> Iterator[tuple[int, int, torch.device]]:
    """Join the launcher's processes, or be a group of one; gives (rank, ranks, device).

    NCCL and the local GPU where there is one, else gloo and the CPU.
    """
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it had to guess
    for name in ("DeepSpeed", "torch.utils.cpp_extension"):  # a page of INFO lines per start
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed 0.19 calls, at every step of ZeRO-3, what torch 2.14 has given another name.
    warnings.filterwarnings("ignore", ".*(all_gather_into|reduce_scatter)_tensor", FutureWarning)
    import deepspeed

    # On CPUs DeepSpeed would compile a shared-memory all-reduce at its first start (25 s, and it
    # needs a compiler). Saying that no extension is compatible makes it use gloo.
    deepspeed.ops.__compatible_ops__ = {}
    dist = torch.distributed
    backend = "nccl" if cuda else "gloo"
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    started = not dist.is_initialized()
    if started and "RANK" in os.environ:
        # Reading all packs before the first step takes hours, and not the same on every rank.
        dist.init_process_group(backend, timeout=timedelta(hours=12))
    elif started:  # a store in memory: no port to find, none to collide with
        dist.init_process_group(
            backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
        )
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    try:
        yield dist.get_rank(), dist.get_world_size(), device
    finally:
        if started:
            deepspeed.comm.destroy_process_group()


def build_engine(
    model: Decoder,
    config: TrainConfig,
    device: torch.device,
    universal: bool = False,
    bf16: bool | None = None,
) -> Any:
    """The DeepSpeed engine: ZeRO, AdamW, clipping; bf16 (fp32 states) on a GPU, fp32 on a CPU.

    ``universal``: it is to load a checkpoint that was converted from another number of ranks. The
    rate is 0 until the loop sets that of the first step.
    """
    import deepspeed

    whole: list[Tensor] = []
    if config.trainable == "new":
        train_new_parts(model)
        whole += widened_tables(model)
    # torch's AdamW: DeepSpeed's own CPU Adam compiles for over a minute at its first start.
    optimizer = torch.optim.AdamW(
        _decayed(model, config.weight_decay, whole),
        lr=0.0,
        betas=config.betas,
        fused=True,
    )
    bf16 = device.type == "cuda" if bf16 is None else bf16
    engine, *_ = deepspeed.initialize(
        model=model.to(device),
        optimizer=optimizer,
        config=settings(config, bf16=bf16, universal=universal),
    )
    if bf16 and not config.zero_stage:
        # DeepSpeed's wrapper of this stage has taken a step without gradients, to make the moments.
        for moments in optimizer.state.values():
            moments["step"].zero_()
    return engine


def settings(config: TrainConfig, *, bf16: bool, universal: bool = False) -> dict[str, Any]:
    """What DeepSpeed is told."""
    told: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.micro_batches,
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {"stage": config.zero_stage},
        "bf16": {"enabled": bf16},
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**9,  # the loop has its own log
    }
    if config.zero_stage >= 2:
        # Else DeepSpeed adds micro-batches up in bf16, where small gradients get lost. Without ZeRO
        # it refuses this; at stage 1 it would take another optimiser, with files of its own.
        told["data_types"] = {"grad_accum_dtype": "fp32"}
    return told


def gradient_norm(engine: Any) -> Tensor | None:
    """The norm before clipping where DeepSpeed does not tell it: without ZeRO, in fp32."""
    if engine.zero_optimization_stage() or engine.bfloat16_enabled():
        return None
    return nn.utils.get_total_norm(p.grad for p in engine.parameters() if p.grad is not None)


def _decayed(
    model: nn.Module, weight_decay: float, without: Sequence[Tensor]
) -> list[dict[str, Any]]:
    """Weight decay for matrices only, but for some: norms, biases and gains keep their scale."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.dim() > 1 and all(p is not other for other in without)]
    rest = [p for p in parameters if all(p is not other for other in decayed)]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
