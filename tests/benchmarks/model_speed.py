"""Forward and backward of one pack: eager against compiled, interval masks against a dense one.

    python tests/benchmarks/model_speed.py [runs] [peak TFLOP/s]

On a GPU a Qwen2.5-1.5B with 16,384 codes over 20,480 tokens in bf16, on a CPU the decoder of
real_steps.py over 4,096 in fp32, with one thread. No optimiser, no communication. The ways take
turns, and the median run counts; a share of the peak is told where the peak is given (989 for an
H100 in bf16). Where `liger_kernel` is installed, its fused cross-entropy with a weight for every
position is timed beside ours.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from real_steps import FACTS_OF, LEVEL, MODEL, NUM_SCALES, TOKENS_PER_PACK
from torch import Tensor
from torch.nn import functional as F

from infra.layout import Image, Segment, Text, layout
from infra.schedules import SCHEDULES
from infra.segments import Vocabulary
from packing.cost import flops
from trainer import attention
from trainer.batch import PackTensors, pack_tensors
from trainer.config import ModelConfig
from trainer.loss import fused_linear_cross_entropy
from trainer.model import Decoder

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
QWEN = ModelConfig(1536, 8960, 28, 12, 2, 128, (16, 24, 24), 1e6)
SHAPE, VOCABULARY, NUM_TOKENS = (
    (QWEN, Vocabulary(16_384), 20_480) if GPU else (MODEL, FACTS_OF.vocabulary, TOKENS_PER_PACK)
)


def main(runs: int = 5, peak_tflops: float = 0.0) -> None:
    if not GPU:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    sequence = layout(documents(NUM_TOKENS), VOCABULARY)
    pack = pack_tensors(sequence, SHAPE, 0.9).to(torch.device(DEVICE))
    model = Decoder(SHAPE, VOCABULARY, 40).to(DEVICE, DTYPE)
    compiled = Decoder(SHAPE, VOCABULARY, 40).to(DEVICE, DTYPE)
    compiled.compile_layers()
    pairs = int((pack.key_end - pack.key_start).sum())
    work = float(flops(pack.num_tokens, len(pack.targets), pairs, SHAPE.shape(VOCABULARY)))
    print(
        f"{DEVICE}, {DTYPE}: {sum(p.numel() for p in model.parameters()) / 1e6:,.0f} million "
        f"parameters, {pack.num_tokens:,} tokens, {len(pack.targets):,} targets of "
        f"{VOCABULARY.size:,}, {pairs / pack.num_tokens**2:.1%} of all pairs attended"
    )
    ways: dict[str, Callable[[], object]] = {
        "mask alone": lambda: attention.build_mask(pack.key_start, pack.key_end),
        "loss alone, ours": partial(loss_step, ours),
        "eager": partial(step, model, pack),
        "compiled": partial(step, compiled, pack),
        "eager, dense mask": partial(step, model, pack, dense=True),
    }
    if GPU and find_spec("liger_kernel"):
        ways["loss alone, Liger"] = partial(loss_step, liger)
    for name, seconds in timed(ways, runs).items():
        line = f"{name:20} {seconds * 1e3:10,.1f} ms"
        if name in ("eager", "compiled", "eager, dense mask"):
            line += (
                f" {pack.num_tokens / seconds:10,.0f} tokens/s {work / seconds / 1e12:8.3f} TFLOP/s"
            )
            line += f" {work / seconds / peak_tflops / 1e12:6.1%}" if peak_tflops else ""
        print(line)


def documents(num_tokens: int) -> list[list[Segment]]:
    """Captions of 60 ids with a picture each, as many as ``num_tokens`` hold."""
    rng = np.random.default_rng(0)
    num_scales = NUM_SCALES if LEVEL == 512 else 1
    num_codes = SCHEDULES[0].num_codes(num_scales)
    codes = rng.integers(0, VOCABULARY.num_codes, num_codes)
    text = Text(rng.integers(0, VOCABULARY.text_size, 60))
    picture = Image(0, num_scales, codes, codes)
    return [[text, picture]] * (num_tokens // (60 + num_codes + 1))


def timed(ways: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds by name; everything has run once before."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            synchronize()
            start = time.perf_counter()
            way()
            synchronize()
            if run:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) for name, taken in seconds.items()}


def synchronize() -> None:
    if GPU:
        torch.cuda.synchronize()


def step(model: Decoder, pack: PackTensors, dense: bool = False) -> None:
    model.zero_grad()
    if not dense:
        model(pack).loss.backward()
        return
    keys = torch.arange(pack.num_tokens, device=DEVICE)
    visible = (keys >= pack.key_start[:, None]) & (keys < pack.key_end[:, None])

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch = (query[None], key[None], value[None])
        return F.scaled_dot_product_attention(*batch, attn_mask=visible, enable_gqa=True)[0]

    hidden = model.run(model.embed(pack), pack.positions, [attend] * len(model.layers))
    model.lm_head(hidden[pack.loss_index], pack.targets, pack.weights).loss.backward()


def loss_step(of: Callable[..., Tensor]) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(
        NUM_TOKENS, SHAPE.hidden_size, device=DEVICE, dtype=DTYPE, generator=generator
    )
    head = torch.zeros(VOCABULARY.size, SHAPE.hidden_size, device=DEVICE, dtype=DTYPE)
    targets = torch.randint(VOCABULARY.size, (NUM_TOKENS,), device=DEVICE, generator=generator)
    weights = torch.rand(NUM_TOKENS, device=DEVICE, generator=generator)
    of(hidden.requires_grad_(), head.requires_grad_(), targets, weights).backward()


def ours(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return fused_linear_cross_entropy(hidden, head, targets, weights).loss


def liger(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    each = liger_fused_linear_cross_entropy(hidden, head, targets, reduction="none")
    return (weights * each).sum()


if __name__ == "__main__":
    main(*(int(a) if i == 0 else float(a) for i, a in enumerate(sys.argv[1:])))  # type: ignore[arg-type]
