"""The quantiser on one core against the matrix product it consists of, and its memory.

    python tests/benchmarks/quantizer.py [rounds]

The limit is one dense float32 product [rows, D + 2] x [D + 2, V] of the same rows; the second limit
is the same product in pieces that stay in the cache, as the search makes it. CPU time, rounds
interleaved, medians; a ratio of 1 is the limit's own speed. The memory is of a process of its own,
over what it had before the first image. Codebooks and features are random.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from time import process_time

import torch
from torch import Tensor

from infra.schedules import NUM_SCALES, Grid, nearest
from tokenize_offline.correction import Correction, encode
from tokenize_offline.quantizer import Quantizer

SIZES = ((4_096, 8, 16), (32_768, 32, 8))  # codes, semantic and pixel dimensions
PIECE_BYTES = 2 * 2**20
MOST_GROWTH_MB = 1_500


def main(rounds: int = 5) -> None:
    torch.set_num_threads(1)
    print("         limits, ms        all scales, ms              limit / it")
    print("level    dense   pieces    encode corrected training   encode corrected training")
    for num_codes, *dims in SIZES:
        print(f"{num_codes:,} codes")
        for level in NUM_SCALES:
            compare_walks(num_codes, dims, level, rounds)
    print("         limits, ms        largest scale, ms  dense / it    pieces / it")
    print("level    dense   pieces    k = 1    k = 8     k=1   k=8     k=1   k=8")
    for num_codes, *dims in SIZES:
        print(f"{num_codes:,} codes")
        for level in NUM_SCALES:
            compare_searches(num_codes, dims, level, rounds)
    for num_codes, *dims in SIZES:
        for level in NUM_SCALES:
            with get_context("spawn").Pool(1) as pool:
                growth = pool.apply(growth_mb, (num_codes, dims, level))
            assert growth < MOST_GROWTH_MB
            print(f"{num_codes:,} codes, level {level}: {growth} MB more")


def compare_walks(num_codes: int, dims: Sequence[int], level: int, rounds: int) -> None:
    """All scales of a square picture: plain, with self-correction, training's forward pass."""
    quantizer, features, grids = make(num_codes, dims, level)
    rows = torch.randn(sum(height * width for height, width in grids), sum(dims) + 2)
    dense, pieces, encoded, corrected, trained = medians(
        [
            *limits(quantizer, rows),
            lambda: quantizer.encode(features, grids),
            lambda: encode(quantizer, features, grids, ["picture"], Correction()),
            lambda: quantizer(features, grids),
        ],
        rounds,
    )
    of_it = [dense / it for it in (encoded, corrected, trained)]
    print(
        f"{level:5} {dense:8.1f} {pieces:8.1f}  {encoded:8.1f} {corrected:9.1f} {trained:8.1f}"
        f"   {of_it[0]:6.2f} {of_it[1]:9.2f} {of_it[2]:8.2f}"
    )


def compare_searches(num_codes: int, dims: Sequence[int], level: int, rounds: int) -> None:
    """The nearest codes of the largest scale's residuals."""
    quantizer, features, grids = make(num_codes, dims, level)
    residuals, keys = features.flatten(2).mT, quantizer.keys()
    rows = torch.randn(residuals.shape[1], sum(dims) + 2)
    dense, pieces, one, eight = medians(
        [
            *limits(quantizer, rows),
            lambda: quantizer.nearest(residuals, len(grids) - 1, 1, keys),
            lambda: quantizer.nearest(residuals, len(grids) - 1, 8, keys),
        ],
        rounds,
    )
    print(
        f"{level:5} {dense:8.1f} {pieces:8.1f}  {one:8.1f} {eight:8.1f}"
        f"  {dense / one:6.2f}{dense / eight:6.2f}  {pieces / one:6.2f}{pieces / eight:6.2f}"
    )


def limits(quantizer: Quantizer, rows: Tensor) -> list[Callable[[], object]]:
    keys = quantizer.keys()
    pieces = rows.split(PIECE_BYTES // (4 * quantizer.num_codes))  # type: ignore[no-untyped-call]

    def in_pieces() -> None:
        for piece in pieces:
            _ = piece @ keys  # dropped at once: its memory is the next one's

    return [lambda: rows @ keys, in_pieces]


@torch.inference_mode()
def medians(parts: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Milliseconds of processor time of each; the first round warms up."""
    spent: list[list[float]] = [[] for _ in parts]
    for _ in range(rounds + 1):
        for part, times in zip(parts, spent, strict=True):
            start = process_time()
            part()
            times.append((process_time() - start) * 1e3)
    return [statistics.median(times[1:]) for times in spent]


def make(
    num_codes: int, dims: Sequence[int], level: int
) -> tuple[Quantizer, Tensor, tuple[Grid, ...]]:
    """A quantiser whose units fall from scale to scale, and the features of a square picture."""
    torch.manual_seed(0)
    quantizer = Quantizer(num_codes, dims[0], dims[1])
    with torch.no_grad():
        quantizer.log_magnitude.copy_(-torch.arange(36.0).view(-1, 2) / 36)
    grids = nearest(1, 1).grids[: NUM_SCALES[level]]
    return quantizer, torch.randn(1, sum(dims), *grids[-1]), grids


def growth_mb(num_codes: int, dims: Sequence[int], level: int) -> int:
    """What one picture with self-correction adds to the most memory the process has had."""
    torch.set_num_threads(1)
    quantizer, features, grids = make(num_codes, dims, level)
    before = high_water_mb()
    with torch.inference_mode():
        encode(quantizer, features, grids, ["picture"], Correction())
    return high_water_mb() - before


def high_water_mb() -> int:
    """Most memory that this process has had (getrusage counts its parent's as well)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
