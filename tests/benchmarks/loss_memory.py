"""Peak memory of the loss, fused against logits that are stored, each in a process of its own.

    python tests/benchmarks/loss_memory.py [positions] [hidden size]

Forward and backward pass over so many positions with a target and a vocabulary of 168,450, hidden
size 256 on the CPU (fp32) or 3,584 on a GPU (bf16, softmax in fp32). Memory is the peak over what
the inputs, the head and the gradients of both take. Stored logits grow in proportion to positions:
where they do not fit, they are measured at an eighth and a quarter, and extended along that line.
"""

import sys
import time
from multiprocessing import get_context

import torch
from torch.nn import functional as F

from infra.layout import Vocabulary
from trainer.loss import fused_linear_cross_entropy

VOCABULARY = Vocabulary(16_384).size
GIB = 2**30


def main(positions: int = 20_480, hidden_size: int | None = None) -> None:
    gpu = torch.cuda.is_available()
    hidden_size = hidden_size or (3_584 if gpu else 256)
    print(f"{'GPU, bf16' if gpu else 'CPU, fp32'}, hidden size {hidden_size:,}, V {VOCABULARY:,}")
    print("way     positions      GiB   seconds")
    fused = show("fused", positions, hidden_size)
    points = [show("stored", positions // part, hidden_size) for part in (8, 4)]
    # A line through both: what does not grow with the positions is in the offset.
    stored = points[1] + (points[1] - points[0]) * 6
    print(f"stored  {positions:9,} {stored:8.2f}   by the line")
    if stored * GIB * 1.1 < free_bytes():
        stored = show("stored", positions, hidden_size)
    print(f"saved: {stored - fused:.1f} GiB of {stored:.1f}, a factor of {stored / fused:.0f}")
    assert fused < stored / 4


def show(way: str, positions: int, hidden_size: int) -> float:
    with get_context("spawn").Pool(1) as pool:
        peak, seconds = pool.apply(measure, (way, positions, hidden_size))
    print(f"{way:7} {positions:9,} {peak / GIB:8.2f} {seconds:9.1f}", flush=True)
    return peak / GIB


def measure(way: str, positions: int, hidden_size: int) -> tuple[int, float]:
    """(peak bytes over inputs and gradients, seconds) of one forward and backward pass."""
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    torch.manual_seed(0)
    hidden = torch.randn(positions, hidden_size, device=device, dtype=dtype)
    head = torch.randn(VOCABULARY, hidden_size, device=device, dtype=dtype) / hidden_size**0.5
    targets = torch.randint(VOCABULARY, (positions,), device=device)
    weights = torch.rand(positions, device=device)
    for tensor in (hidden, head):
        tensor.requires_grad_().grad = torch.zeros_like(tensor)
    before = peak_bytes(reset=True)
    start = time.perf_counter()
    if way == "fused":
        loss = fused_linear_cross_entropy(hidden, head, targets, weights).loss
    else:
        logits = (hidden @ head.T).float()
        loss = (weights * F.cross_entropy(logits, targets, reduction="none")).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    loss.item()
    return peak_bytes() - before, time.perf_counter() - start


def peak_bytes(reset: bool = False) -> int:
    """The most memory since the last reset: of the GPU, or of this process."""
    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0]) * 1024


def free_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as file:
        return int(file.read().split("MemAvailable:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
