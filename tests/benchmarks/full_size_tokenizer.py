"""The full-size tokenizer's encoding: images/s, the quantiser's share, and the encoder's MFU.

    python tests/benchmarks/full_size_tokenizer.py --device cpu --levels 256
    python tests/benchmarks/full_size_tokenizer.py --device cuda --pictures 64

The geometry of `tokenize_offline.model.FULL_SIZE` with random weights: what a picture costs does
not depend on them. The encoder computes in bfloat16 on a GPU and in float32 on one core of a CPU,
the quantiser in float32 on both. ``--pictures`` go through at once at level 256, a quarter as many
at 512 and a sixteenth at 1024, at least one. On a GPU the encoder is also measured compiled
(``--compile`` for the CPU as well), eager and compiled in turn; medians of the rounds.

Operations are counted, two to a multiplication and addition. MFU is of the GPU's dense bfloat16
peak; beside it stands the share of what one large matrix product reaches on the same machine.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infra.schedules import NUM_SCALES, Schedule, nearest
from tokenize_offline.model import FULL_SIZE, Tokenizer

# Dense bfloat16 operations per second by the makers' data sheets, by a part of the device's name.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


def main(device: str, levels: Sequence[int], pictures: int, rounds: int, compiled: bool) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    on_gpu = device != "cpu"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    tokenizer = full_size(device, dtype)
    name = torch.cuda.get_device_name() if on_gpu else "one core of the CPU"
    peak = next((ops for part, ops in PEAKS.items() if part in name), None)
    reached = matrix_product(device, dtype, rounds)
    weights = sum(p.numel() for p in tokenizer.parameters())
    print(f"{name}, torch {torch.__version__}: {weights / 1e6:.0f} M weights, encoder in {dtype}")
    print(f"  one large matrix product: {reached / 1e12:.2f} TFLOP/s")
    ways: dict[str, Callable[[Tensor], Tensor]] = {"eager": tokenizer.features}
    if on_gpu or compiled:
        ways["compiled"] = torch.compile(tokenizer.features)
    for level in levels:
        schedule = nearest(1, 1)
        batch = max(1, pictures * 256**2 // level**2)
        with torch.inference_mode():
            report(tokenizer, ways, schedule, level, batch, rounds, peak, reached)


def report(
    tokenizer: Tokenizer,
    ways: dict[str, Callable[[Tensor], Tensor]],
    schedule: Schedule,
    level: int,
    batch: int,
    rounds: int,
    peak: float | None,
    reached: float,
) -> None:
    """Measure and print one level."""
    weight = next(tokenizer.parameters())
    size, grids = schedule.image_size(level), schedule.grids[: NUM_SCALES[level]]
    pixels = torch.rand(batch, 3, *size, device=weight.device, dtype=weight.dtype) * 2 - 1
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    features = tokenizer.features(pixels)
    parts: dict[str, Callable[[], object]] = {
        name: lambda way=way: way(pixels)  # type: ignore[misc]
        for name, way in ways.items()
    }
    parts["semantic encoder"] = lambda: tokenizer.semantic_encoder(pixels)
    parts["pixel encoder"] = lambda: tokenizer.pixel_encoder(pixels)
    parts["quantiser"] = lambda: tokenizer.quantizer.encode(features, grids)
    first = {name: seconds(part, weight.device) for name, part in parts.items()}  # warm, compiled
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            times[name].append(seconds(part, weight.device))
    spent = {name: statistics.median(values) for name, values in times.items()}
    work = batch * operations(size)
    print(
        f"level {level}, {size[0]} x {size[1]}: {batch} at once, "
        f"{work / batch / 1e12:.2f} TFLOP an image in the encoder"
    )
    for name in ways:
        rate, whole = work / spent[name], spent[name] + spent["quantiser"]
        use = "" if peak is None else f", MFU {rate / peak:.1%}"
        once = f", first call {first[name]:.0f} s" if name == "compiled" else ""
        print(
            f"  {name:9} {batch / whole:8.2f} images/s with the quantiser, which has "
            f"{spent['quantiser'] / whole:.1%}; encoder {rate / 1e12:.2f} TFLOP/s{use}, "
            f"{rate / reached:.0%} of the matrix product{once}"
        )
    both = spent["semantic encoder"] + spent["pixel encoder"]
    print(f"  SigLIP2 has {spent['semantic encoder'] / both:.0%} of the eager encoder's time")
    if weight.is_cuda:
        print(f"  at most {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on the GPU")


def full_size(device: str, dtype: torch.dtype) -> Tokenizer:
    """Encoders and quantiser; random weights everywhere, since a GPU is faster at zeros."""
    with torch.device("meta"):
        tokenizer = Tokenizer(FULL_SIZE)
    tokenizer.pixel_decoder = tokenizer.semantic_decoder = nn.Sequential()
    tokenizer = tokenizer.to_empty(device=device)
    for parameter in tokenizer.parameters():
        nn.init.normal_(parameter, std=0.02)
    tokenizer.semantic_encoder.to(dtype)
    tokenizer.pixel_encoder.to(dtype)
    return tokenizer.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def operations(size: tuple[int, int]) -> int:
    """Of the encoder for one picture; attention is counted as its two matrix products."""
    with torch.device("meta"):
        tokenizer = Tokenizer(FULL_SIZE)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        tokenizer.features(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops()


def matrix_product(device: str, dtype: torch.dtype, rounds: int) -> float:
    """Operations per second of [n, n] times [n, n]."""
    n = 8192 if device != "cpu" else 2048
    a = torch.randn(n, n, device=device, dtype=dtype)
    times = [seconds(lambda: a @ a, a.device) for _ in range(rounds + 3)]
    return 2 * n**3 / statistics.median(times[3:])


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """CPU time on a CPU, which other programs may share; on a GPU until all is done there."""
    if device.type == "cpu":
        start = process_time()
        work()
        return process_time() - start
    torch.cuda.synchronize(device)
    start = perf_counter()
    work()
    torch.cuda.synchronize(device)
    return perf_counter() - start


def high_water_gib() -> float:
    """Most memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the full-size tokenizer's encoding.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--levels", type=int, nargs="+", default=[256], choices=NUM_SCALES)
    parser.add_argument("--pictures", type=int, default=0, help="at once, at level 256")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="on the CPU too")
    given = parser.parse_args()
    gpu = given.device != "cpu"
    if gpu and not torch.cuda.is_available():
        parser.error("there is no GPU here: use --device cpu")
    main(
        given.device,
        given.levels,
        given.pictures or (64 if gpu else 1),
        given.rounds or (20 if gpu else 3),
        given.compile,
    )
    print(f"at most {high_water_gib():.1f} GiB of memory")
