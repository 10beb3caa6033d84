"""The planner at one and ten million documents, beside TRL's `bfd` packer on the same lengths.

    python -m venv peer && peer/bin/pip install trl datasets
    python tests/benchmarks/planner.py [--peer-python peer/bin/python] [--documents 1_000_000 ...]

Lengths: the simulated mixture of packing_strategies.py, packs of 20,480 tokens. In one dimension
(tokens) both solve the same task: ours moves numbers, TRL the tokens themselves, here of one byte
each and in memory, without the files that its `pack_dataset` writes. It gets a million documents at
most, in batches of 1,000 (its default) and of 100,000, which take 2 GB. ``plan`` orders documents
by a hash of their ids before it packs, as `nextscale pack` does; ``pack_lengths``, for the
simulator, knows no ids. ``blend, plan_windows`` is what a mixture of any size goes through: a
stream of batches of each of the four kinds of documents, blended in shares of tokens, packed and
summed up; its last number is how far any 1% of the packs is off the quotas. Every line is a process
of its own; memory is what its peak adds to the input. Times are of the CPU (one core's worth,
whatever else the machine does), without imports and compilation.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from packing_strategies import KINDS, SAMPLES, lengths_of, mixture

from packing.blend import blend
from packing.cost import Coefficients, coefficients, cost, qwen2_5_7b
from packing.lower_bound import lower_bound
from packing.plan import MANIFEST, Summary, plan, plan_windows
from packing.simulate import Lengths, pack_lengths
from packing.strategies import Packing, default_budget

MIB = 1024
PEER_DOCUMENTS = 1_000_000
PEER_BATCHES = (1_000, 100_000)
WAYS = {
    "pack_lengths, tokens": Packing("fixed_length"),
    "plan, tokens": Packing("fixed_length"),
    "plan, compute, cap 1.0": Packing(token_slack=1.0),
    "plan, compute, cap 1.25": Packing(token_slack=1.25),
}
STREAMED = {
    "blend, plan_windows, cap 1.0": Packing(token_slack=1.0),
    "blend, plan_windows, cap 1.25": Packing(token_slack=1.25),
}
BATCH = 1 << 15

MEMORY = """
def peak_kib(reset=False):
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0])
"""

THEIRS = (
    MEMORY
    + """
import json, sys, time
import numpy as np
import pyarrow as pa
from trl.data_utils import _pack_bfd
lengths, capacity, batch = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def table(of):
    offsets = np.append(0, np.cumsum(of)).astype(np.int32)
    values = pa.array(np.zeros(int(offsets[-1]), np.int8))
    return pa.table({"input_ids": pa.ListArray.from_arrays(pa.array(offsets), values)})
_pack_bfd(table(lengths[:100]), capacity)
packs, seconds, peak = 0, 0.0, 0
for start in range(0, len(lengths), batch):
    tokens = table(lengths[start : start + batch])
    before = peak_kib(reset=True)
    started = time.process_time()
    packs += len(_pack_bfd(tokens, capacity))
    seconds += time.process_time() - started
    peak = max(peak, peak_kib() - before)
print(json.dumps({"seconds": seconds, "packs": packs, "peak_kib": peak}))
"""
)


def peak_kib(reset: bool = False) -> int:
    scope: dict = {}
    exec(MEMORY, scope)  # one definition for both processes
    return scope["peak_kib"](reset)


def one(way: str, lengths: Lengths, of: Coefficients) -> dict[str, float]:
    """Pack once in this process."""
    packing = WAYS[way]
    n = len(lengths)
    costs = cost(lengths.num_tokens, lengths.num_loss, lengths.num_pairs, of)
    few = Lengths(*(counts[:100] for counts in vars(lengths).values()))
    pack_lengths(few, packing, of)  # compiled before the clock
    names = [f"{i:032x}" for i in np.random.default_rng(0).integers(2**62, size=n).tolist()]
    before = peak_kib(reset=True)
    started = time.process_time()
    if way.startswith("plan"):
        made = plan(names, lengths.num_tokens, costs, packing)
        packs, lost, imbalance = made.num_packs, int((made.pack < 0).sum()), made.imbalance
    else:
        packed = pack_lengths(lengths, packing, of)
        packs, lost = packed.num_packs, sum(packed.left_out.values())
        imbalance = float(packed.document_cost.max() / packed.document_cost.mean())
    seconds = time.process_time() - started
    peak = peak_kib() - before
    budget = default_budget(lengths.num_tokens, costs, packing)
    fits = (lengths.num_tokens <= packing.token_cap) & (costs <= budget)
    bound = lower_bound(lengths.num_tokens[fits], costs[fits], packing, budget)
    return {
        "seconds": seconds,
        "packs": packs,
        "peak_kib": peak,
        "bound": bound,
        "lost": lost,
        "imbalance": imbalance,
    }


class Stream:
    """Batches of a manifest of one kind of documents, made as they are asked for."""

    def __init__(self, kind: int, n: int, seed: int, of: Coefficients) -> None:
        self.kind, self.n, self.seed, self.of = kind, n, seed, of
        self.seconds = 0.0  # of the CPU, for the input alone

    def counts(self) -> Iterator[tuple[Lengths, np.ndarray]]:
        for start in range(0, self.n, BATCH):
            draw = np.random.default_rng([self.seed, self.kind, start])
            lengths = lengths_of(np.full(min(BATCH, self.n - start), self.kind), draw)
            yield lengths, cost(lengths.num_tokens, lengths.num_loss, lengths.num_pairs, self.of)

    def tables(self, packing: Packing, budget: float) -> Iterator[pa.Table]:
        batches = self.counts()
        while True:
            started = time.process_time()
            lengths, costs = next(batches, (None, None))
            if lengths is None:
                return
            n = len(costs)
            known = vars(lengths) | {
                "component": np.full(n, self.kind),
                "doc_id": [f"{i:032x}" for i in range(n)],
                "cost": costs,
            }
            columns = [
                pa.nulls(n, field.type)
                if field.name == "reason"
                else pa.array(known.get(field.name, np.zeros(n))).cast(field.type)
                for field in MANIFEST
            ]
            table = pa.Table.from_arrays(columns, schema=MANIFEST)
            fits = (lengths.num_tokens <= packing.token_cap) & (costs <= budget)
            table = table.filter(pa.array(fits))
            self.seconds += time.process_time() - started
            yield table


def streamed(way: str, n: int, seed: int, of: Coefficients) -> dict[str, float]:
    """Blend and pack streams of `KINDS` in this process, nothing but sums of which is kept."""
    packing = STREAMED[way]
    sample = mixture(1_000_000, seed)
    costs = cost(sample.num_tokens, sample.num_loss, sample.num_pairs, of)
    budget = default_budget(sample.num_tokens, costs, packing)
    del sample, costs
    streams = [Stream(k, round(n * SAMPLES[k]), seed, of) for k in range(len(KINDS))]
    tokens, lost = [0] * len(KINDS), 0
    for stream in streams:
        for lengths, costs in stream.counts():
            fits = (lengths.num_tokens <= packing.token_cap) & (costs <= budget)
            tokens[stream.kind] += int(lengths.num_tokens[fits].sum())
            lost += int((~fits).sum())
    few = blend([Stream(k, 100, 0, of).tables(packing, budget) for k in range(4)], tokens)
    list(plan_windows(few, packing, budget))  # compiled before the clock
    summary = Summary(packing, budget, tokens)
    before = peak_kib(reset=True)
    started = time.process_time()
    blended = blend([stream.tables(packing, budget) for stream in streams], tokens)
    for table in plan_windows(blended, packing, budget):
        summary.add(table)
    seconds = time.process_time() - started
    return {
        "seconds": seconds - math.fsum(stream.seconds for stream in streams),
        "packs": summary.num_packs,
        "peak_kib": peak_kib() - before,
        "bound": summary.lower_bound,
        "lost": lost,
        "imbalance": summary.imbalance,
        "deviation": float(summary.deviation.max()),
    }


def run(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def line(name: str, n: int, told: dict[str, float], bound: float) -> None:
    rest = f"  {told['imbalance']:.4f}  {told['lost']:6,.0f}" if "lost" in told else ""
    rest += f"  {told['deviation']:.3%}" if "deviation" in told else ""
    print(
        f"{name:29} {n:11,} {n / told['seconds']:12,.0f} {told['peak_kib'] / MIB:8,.0f} "
        f"{1024 * told['peak_kib'] / n:8,.0f} {told['packs']:10,.0f} "
        f"{told['packs'] / bound - 1:+8.3%}{rest}",
        flush=True,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--documents", nargs="+", type=int, default=[1_000_000, 10_000_000])
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--peer-python", help="a Python that has trl and datasets")
    options.add_argument("--way", choices=WAYS | STREAMED, help=argparse.SUPPRESS)
    args = options.parse_args()
    of = coefficients(qwen2_5_7b(), checkpointing=True)
    if args.way in STREAMED:
        print(json.dumps(streamed(args.way, args.documents[0], args.seed, of)))
        return
    if args.way:
        print(json.dumps(one(args.way, mixture(args.documents[0], args.seed), of)))
        return
    print(
        f"{'planner':29} {'documents':>11} {'documents/s':>12} {'peak MiB':>8} {'B/doc':>8} "
        f"{'packs':>10} {'bound':>8}  cost max/mean, left out, off quota"
    )
    for n in args.documents:
        for way in WAYS | STREAMED:
            ours = [sys.executable, __file__, "--way", way, "--documents", str(n)]
            told = run([*ours, "--seed", str(args.seed)])
            line(way, n, told, told["bound"])
        if args.peer_python and n <= PEER_DOCUMENTS:
            tokens = mixture(n, args.seed).num_tokens
            packing = Packing("fixed_length")
            bound = lower_bound(tokens, np.ones(n), packing)
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder, "lengths.npy"))
                np.save(path, tokens)
                for batch in PEER_BATCHES:
                    told = run(
                        [args.peer_python, "-c", THEIRS, path, str(packing.token_cap), str(batch)]
                    )
                    line(f"trl bfd, batches of {batch:,}", n, told, bound)


if __name__ == "__main__":
    main()
