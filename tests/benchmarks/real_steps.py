"""Tokens/s of the trainer itself under the three packing strategies, beside the simulator's.

    python tests/benchmarks/real_steps.py [runs] [documents] [seed]

Two processes (gloo, ZeRO-2, one thread each) train a small decoder on packs on disk, as
`trainer.train` does anywhere; the strategies take turns, and the median run counts. Before, the
same two processes measure the coefficients (`pipelines.calibrate`), with which fixed_compute plans
and the simulator predicts.

Documents are of the paper's 512-level mixture (see packing_strategies.py) at a fifth of its size:
pictures of 11 scales (some 620 tokens), texts around 50 tokens, captions around 18, packs of 4,096
tokens. Codes and ids are random, which no kernel notices.

The trainer itself never pads, so padding is written into the packs, where it costs what it costs
elsewhere: under batch_padding each document ends in so many text positions without a target, which
see all that is before them, as under a causal mask over the padded length; under fixed_length a
pack ends in documents of 128 such positions, whose pairs (64 a token) hardly add to the linear
layers. Neither counts as tokens trained.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import distributed, multiprocessing

from infra.layout import Image, Segment, Text, count
from infra.schedules import SCHEDULES
from packing.cost import Coefficients, coefficients, cost
from packing.members import Document
from packing.packs import FACTS, INDEX, Facts, open_packs
from packing.plan import Packing, plan
from packing.shards import shard_name, write_shard
from packing.simulate import Lengths, Packed, simulate, sum_plan
from packing.strategies import Strategy
from pipelines.calibrate import Effort, calibrate, describe
from trainer.config import ModelConfig, TrainConfig
from trainer.train import train

RANKS, LEVEL, NUM_SCALES, TOKENS_PER_PACK, PADDING = 2, 512, 11, 4_096, 128
FACTS_OF = Facts("random", "random", 1_024, 1_024, LEVEL, "fixed_length", TOKENS_PER_PACK * 2, 0)
MODEL = ModelConfig(hidden_size=128, intermediate_size=352, num_layers=2, num_heads=8)
STRATEGIES: tuple[Strategy, ...] = ("batch_padding", "fixed_length", "fixed_compute")
Segments = tuple[Segment, ...]


def main(runs: int = 7, documents: int = 240, seed: int = 0) -> None:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (folder, runs, documents, seed), RANKS)
    print(f"{time.perf_counter() - began:.0f} s in all")


def work(rank: int, folder: str, runs: int, number: int, seed: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(RANKS)}
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    config = TrainConfig(
        packs="", output="", steps=10**6, model=MODEL, num_threads=1, checkpoint_every=10**6
    )
    documents = mixture(number, seed)
    root = Path(folder)
    if rank == 0:
        theory = coefficients(MODEL.shape(FACTS_OF.vocabulary))
        write_packs(root / "any", documents, Packing("fixed_length", TOKENS_PER_PACK), theory)
    distributed.barrier()
    packs = open_packs(root / "any")
    found = calibrate(packs, replace(config, packs=str(root / "any"), output=folder), Effort(24, 3))
    of = found.fitted.coefficients
    planned: dict[str, Packed] = {}
    if rank == 0:
        print(*describe(found, packs), sep="\n", flush=True)
        for strategy in STRATEGIES:
            how = Packing(strategy, TOKENS_PER_PACK, seed=seed)
            planned[strategy] = write_packs(root / strategy, documents, how, of)
    distributed.barrier()

    seconds: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
    for run in range(runs):
        for strategy in STRATEGIES:
            output = root / f"run-{run}-{strategy}"
            steps_s: list[float] = []
            train(
                replace(config, packs=str(root / strategy), output=str(output)),
                lambda entry, _, to=steps_s: to.append(entry.duration_s),
            )
            seconds[strategy].append(sum(steps_s))
    if rank == 0:
        show(planned, seconds)


def show(planned: dict[str, Packed], seconds: dict[str, list[float]]) -> None:
    runs = {name: simulate(packed, num_ranks=RANKS) for name, packed in planned.items()}
    rates = {name: runs[name].num_tokens / float(np.median(s)) for name, s in seconds.items()}
    base = "fixed_length"
    print(f"\n{'':14} packs   fill  tokens/s  (all runs)       ratio  predicted  tokens/s")
    off = []
    for name, run in runs.items():
        low, high = (run.num_tokens / of(seconds[name]) for of in (max, min))
        ratio, predicted = rates[name] / rates[base], run.throughput / runs[base].throughput
        off.append(abs(ratio / predicted - 1))
        print(
            f"{name:14} {planned[name].num_packs:5} {planned[name].fill:6.3f} {rates[name]:9,.0f}  "
            f"({low:6,.0f} to {high:6,.0f}) {ratio:6.3f} {predicted:10.3f} "
            f"{run.throughput * RANKS:9,.0f}"
        )
    same = sorted(rates, key=rates.__getitem__) == sorted(runs, key=lambda n: runs[n].throughput)
    print(f"\norder {'as' if same else 'NOT as'} predicted; ratios at most {max(off):.1%} off")
    assert same
    assert max(off) < 0.2


def write_packs(folder: Path, documents: list[Segments], how: Packing, of: Coefficients) -> Packed:
    """Plan, pad as the strategy does, and write; what the simulator makes of it."""
    counts = np.array([count(segments) for segments in documents])
    lengths = Lengths(*counts.T)
    costs = cost(*counts.T, of)
    made = plan([f"d{i}" for i in range(len(documents))], lengths.num_tokens, costs, how)
    packs: list[tuple[int, list[Document]]] = []
    for number in range(made.num_packs):
        rows = made.document[made.pack == number]
        padded = pad([documents[row] for row in rows.tolist()], how)
        packs.append((number, [Document(f"{i}", 0, "t2i", "", d) for i, d in enumerate(padded)]))
    folder.mkdir()
    with (folder / shard_name(0)).open("wb") as file:
        index = write_shard(file, shard_name(0), packs, of, FACTS_OF.num_codes)
    pq.write_table(index, folder / INDEX)
    (folder / FACTS).write_bytes(FACTS_OF.to_json())
    packed = sum_plan(made, lengths, of)
    assert np.array_equal(index["num_tokens"].to_numpy(), packed.padded_tokens)
    return packed


def pad(documents: Sequence[Segments], how: Packing) -> list[Segments]:
    """The documents of a pack with positions without a target, as many as the strategy adds."""
    tokens = [count(segments).num_tokens for segments in documents]

    def padding(length: int) -> Segments:
        return (Text(np.zeros(length, np.int32), loss=False),) if length else ()

    if how.strategy == "batch_padding":
        return [d + padding(max(tokens) - n) for d, n in zip(documents, tokens, strict=True)]
    free = how.token_cap - sum(tokens) if how.strategy == "fixed_length" else 0
    pieces = [PADDING] * (free // PADDING) + [free % PADDING] * (free % PADDING > 0)
    return [*documents, *(padding(length) for length in pieces)]


def mixture(number: int, seed: int) -> list[Segments]:
    """Documents: text 700 : text-to-image 345 : editing 20 : interleaved 5."""
    draw = np.random.default_rng(seed)

    def text(median: float, sigma: float, most: int) -> Text:
        length = int(np.clip(draw.lognormal(np.log(median), sigma), 4, most))
        return Text(draw.integers(0, FACTS_OF.text_vocab_size, length))

    def picture(role: str = "target") -> Image:
        schedule = int(draw.integers(len(SCHEDULES)))
        num_codes = SCHEDULES[schedule].num_codes(NUM_SCALES)
        codes = draw.integers(0, FACTS_OF.num_codes, num_codes)
        return Image(schedule, NUM_SCALES, codes, codes, role)  # type: ignore[arg-type]

    documents: list[Segments] = []
    for kind in draw.choice(4, number, p=np.array([700, 345, 20, 5]) / 1070).tolist():
        if kind == 0:
            documents.append((text(50, 0.8, 1_600),))
            continue
        frames = int(draw.integers(3, 6)) if kind == 3 else 1
        segments: Segments = (picture("condition"),) if kind == 2 else ()
        for _ in range(frames):
            segments += (text(18, 0.45, 80), picture())
        documents.append(segments)
    return documents


if __name__ == "__main__":
    main(*(int(word.replace("_", "")) for word in sys.argv[1:]))
