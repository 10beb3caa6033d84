"""Three packing strategies on the paper's 512-level mixture, by the arithmetic of their FLOPs.

    python tests/benchmarks/packing_strategies.py [documents] [seed]

Lengths are simulated: Table 2's samples at 512 (text 700 : text-to-image 345 : editing 20 :
interleaved 5), texts lognormal around 250 tokens, captions around 100, pictures of all schedules
alike, 3 to 5 frames. Cost: Qwen2.5-7B with full checkpointing. Packs hold 20,480 tokens.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from infra.schedules import SCHEDULES
from infra.segments import Image, count
from packing.cost import Coefficients, coefficients, qwen2_5_7b
from packing.simulate import Lengths, Packed, pack_lengths, simulate
from packing.strategies import Packing

NUM_SCALES = 16  # level 512
RANKS = (8, 64, 256, 1024)
SLACKS = (1.0, 1.1, 1.25)
Ints = NDArray[np.int64]


def picture_counts(role: str) -> NDArray[np.int64]:
    """[schedules, 3]: tokens, loss and pairs of a picture behind other tokens, but for those."""
    found = []
    for number, schedule in enumerate(SCHEDULES):
        codes = np.zeros(schedule.num_codes(NUM_SCALES), np.int32)
        counts = count([Image(number, NUM_SCALES, codes, codes, role)])  # type: ignore[arg-type]
        first = role == "target"  # alone, nothing predicts its first token
        found.append((counts.num_tokens, counts.num_loss + first, counts.num_pairs))
    return np.array(found)


KINDS = ("text", "text-to-image", "editing", "interleaved")
SAMPLES = np.array([700, 345, 20, 5]) / 1070


def mixture(n: int, seed: int) -> Lengths:
    """Tokens, positions with loss and pairs of each document."""
    draw = np.random.default_rng(seed)
    return lengths_of(draw.choice(4, n, p=SAMPLES), draw)


def lengths_of(kind: Ints, draw: np.random.Generator) -> Lengths:
    """Lengths of documents of these `KINDS`."""
    n = len(kind)
    totals = np.zeros((3, n), np.int64)
    target, condition = picture_counts("target"), picture_counts("condition")

    def text(rows: Ints, median: float, sigma: float, low: int, high: int) -> None:
        length = draw.lognormal(np.log(median), sigma, len(rows)).clip(low, high).astype(np.int64)
        start = totals[0, rows]
        totals[2, rows] += length * (length + 1) // 2 + start * length
        totals[1, rows] += length - (start == 0)
        totals[0, rows] += length

    def picture(rows: Ints, counts: NDArray[np.int64], schedule: Ints) -> None:
        tokens, loss, pairs = counts[schedule].T
        totals[2, rows] += pairs + totals[0, rows] * tokens
        totals[1, rows] += loss
        totals[0, rows] += tokens

    schedule = draw.integers(len(SCHEDULES), size=n)
    text(np.flatnonzero(kind == 0), 250.0, 0.8, 8, 8_000)
    rows = np.flatnonzero(kind == 2)
    picture(rows, condition, schedule[rows])
    rows = np.flatnonzero((kind == 1) | (kind == 2))
    text(rows, 90.0, 0.45, 8, 400)
    picture(rows, target, schedule[rows])
    frames = draw.integers(3, 6, n)
    for frame in range(5):
        rows = np.flatnonzero((kind == 3) & (frame < frames))
        text(rows, 90.0, 0.45, 8, 400)
        picture(rows, target, schedule[rows])
    return Lengths(totals[0], totals[1], totals[2])


def pack(lengths: Lengths, of: Coefficients, how: Packing) -> Packed:
    packed = pack_lengths(lengths, how, of)
    most, mean = packed.padded_tokens.max(), packed.padded_tokens.mean()
    print(
        f"{how.strategy:14} cap {how.token_cap:6,}  {packed.num_packs:7,} packs "
        f"({packed.num_packs / packed.lower_bound - 1:+.3%} of the bound)  cost max/mean "
        f"{packed.imbalance:.4f}  fill {packed.fill:.3f}  tokens {mean:,.0f} to {most:,}  "
        f"{sum(packed.left_out.values())} left out"
    )
    return packed


def main(n: int = 1_000_000, seed: int = 0) -> None:
    of = coefficients(qwen2_5_7b(), checkpointing=True)
    lengths = mixture(n, seed)
    print(f"{n:,} documents, {lengths.num_tokens.mean():,.0f} tokens on average, seed {seed}\n")
    plans = {"length": pack(lengths, of, Packing("fixed_length"))}
    for slack in SLACKS:
        plans[f"compute {slack}"] = pack(lengths, of, Packing(token_slack=slack))
    for size in (1, 2, 4):
        tokens = size * int(lengths.num_tokens.max())  # batches of this size, whatever they pad to
        how = Packing("batch_padding", batch_size=size, tokens_per_pack=tokens)
        plans[f"padding {size}"] = pack(lengths, of, how)
    print("\ntokens per rank and FLOP, fixed_length = 1 (cost max/mean over ranks)")
    print("ranks   " + "".join(f"{name:>22}" for name in plans))
    for ranks in RANKS:
        runs = [simulate(packed, num_ranks=ranks) for packed in plans.values()]
        base = runs[0].throughput
        cells = [f"{run.throughput / base:.3f} ({run.imbalance:.3f})" for run in runs]
        print(f"{ranks:5,}   " + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main(*(int(word.replace("_", "")) for word in sys.argv[1:]))
