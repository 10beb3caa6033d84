"""The plan of millions of documents on disk: from tables of tokens to the parts of the plan.

    python tests/benchmarks/plan_out_of_core.py [documents ...]

Four components, lengths and shares as in packing_strategies.py (the paper's 512-level mixture),
packs of 20,480 tokens; no prompt is dropped, since the tables hold no codes to drop one from. Each
size is planned in a process of its own, as `nextscale mix` does it, but without Ray: manifest parts
one after another. Memory is the process's peak above what it takes before; DuckDB may have 1 GiB
of it. Disk is the most that its spilled files and the manifest took at a time. The last line
projects from the largest size: costs and disk by documents, memory as it is.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from packing_strategies import mixture
from planner import peak_kib

from infra.runs import Part, TableRecord
from infra.schema import TOKENS
from infra.storage import Storage
from packing.cost import coefficients, qwen2_5_7b
from packing.plan import Packing
from packing.simulate import Lengths
from packing.slices import Slicing
from pipelines import plan_packs
from pipelines.pack_phase import PackComponent, PackPhase

SIZES = (1_000_000, 10_000_000)
PART_ROWS = 100_000
LONGEST = {"text": 2_900, "t2i": 5_000, "edit": 8_000, "film": 1 << 31}  # by tokens, about
BILLION = 1_000_000_000


def write_tokens(storage: Storage, name: str, lengths: Lengths) -> TableRecord:
    """Tokens of so many documents as far as planning reads them: counts, and that there is a
    segment."""
    bare = pa.schema([field.remove_metadata() for field in TOKENS])
    of = TOKENS.field("segments").type
    parts = []
    for number, start in enumerate(range(0, len(lengths), PART_ROWS)):
        here = lengths.take(np.arange(start, min(start + PART_ROWS, len(lengths))))
        ids = duckdb.sql(
            f"SELECT md5('{name}' || i) AS doc_id FROM range({start}, {start + len(here)}) AS t(i)"
        ).to_arrow_table()["doc_id"]
        segments = pa.array([[{"kind": "text", "loss": True}]], of).take(
            pa.array(np.zeros(len(here), np.int64))
        )
        known = {"doc_id": ids, "segments": segments, **vars(here)}
        columns = [
            known[field.name] if field.name in known else pa.nulls(len(here), field.type)
            for field in bare
        ]
        file = f"v/part-{number:05d}.parquet"
        path = Path(storage.path(f"tokens/{name}/{file}"))
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns, names=bare.names).cast(bare), path, compression="zstd")
        parts.append(Part(file, len(here)))
    return TableRecord(f"tokens/{name}", name, name, "doc_id", tuple(parts))


def components(storage: Storage, n: int) -> tuple[PackComponent, ...]:
    """The mixture as tables of their own, by their lengths; shares are what they hold."""
    lengths = mixture(n, 0)
    found = []
    low = 0
    for name, high in LONGEST.items():
        rows = np.flatnonzero((lengths.num_tokens > low) & (lengths.num_tokens <= high))
        low = high
        held = lengths.take(rows)
        tokens = write_tokens(storage, name, held)
        found.append(PackComponent(name, tokens, share=float(held.num_tokens.sum())))
    return tuple(found)


def timed(into: dict[str, float], name: str) -> None:
    """Let `pipelines.plan_packs` tell how long one of its steps takes."""
    step: Callable[..., Any] = getattr(plan_packs, name)

    def run(*args: Any) -> Any:
        started = time.monotonic()
        made = step(*args)
        into[name] = into.get(name, 0.0) + time.monotonic() - started
        return made

    setattr(plan_packs, name, run)


def write(n: int, folder: str) -> None:
    """Write the tokens and say what is to be planned; a few documents besides, to warm up with."""
    of = coefficients(qwen2_5_7b(), checkpointing=True)
    jobs = []
    for name, size in (("few", 3_000), ("workspace", n)):
        storage = Storage(f"{folder}/{name}")
        slicing = Slicing(drop_captions=0.0)
        phase = PackPhase("all", components(storage, size), Packing(), of, slicing)
        jobs.append((storage, phase))
    Path(folder, "jobs").write_bytes(pickle.dumps(jobs))


def plan(folder: str) -> dict[str, Any]:
    """Plan once in this process."""
    few, (storage, phase) = pickle.loads(Path(folder, "jobs").read_bytes())
    plan_packs.plan_packs(*few)  # compiled, and everything imported, before the clock
    seconds: dict[str, float] = {}
    for step in ("select", "write_manifest"):
        timed(seconds, step)
    spilled, done = [0], threading.Event()

    def watch() -> None:
        manifest = Path(storage.path(f"{phase.folder}/_plan"))
        while not done.wait(0.2):
            files = [*Path(os.environ["TMPDIR"]).rglob("*"), *manifest.rglob("*")]
            sizes = []
            for file in files:
                try:
                    sizes.append(file.stat().st_blocks * 512)
                except FileNotFoundError:
                    continue
            spilled[0] = max(spilled[0], sum(sizes))

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, started, cpu = peak_kib(reset=True), time.monotonic(), time.process_time()
    made = plan_packs.plan_packs(storage, phase)
    seconds["all"] = time.monotonic() - started
    peak = peak_kib() - before
    done.set()
    watcher.join()
    plan = sum(Path(storage.path(path)).stat().st_size for path in made["plan"])
    return {
        "seconds": seconds,
        "cpu_s": time.process_time() - cpu,
        "peak_mib": peak / 1024,
        "disk_bytes": spilled[0],
        "plan_bytes": plan,
        "packs": made["num_packs"],
        "over_bound": made["num_packs"] / made["lower_bound"] - 1,
        "deviation": max(one["deviation"] for one in made["components"]),
    }


def main(sizes: list[int]) -> None:
    print(
        f"{'documents':>13} {'documents/s':>12} {'select':>8} {'manifest':>9} {'sort, plan':>11} "
        f"{'peak MiB':>9} {'disk GB':>8} {'plan GB':>8} {'packs':>10} {'bound':>8} {'off quota':>9}"
    )
    told: dict[str, Any] = {}
    for n in sizes:
        with tempfile.TemporaryDirectory(prefix="plan-") as folder:
            os.makedirs(f"{folder}/tmp")
            for step in (["--write", str(n)], ["--plan"]):
                done = subprocess.run(
                    [sys.executable, __file__, *step, folder],
                    env=os.environ | {"TMPDIR": f"{folder}/tmp"},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
        told = json.loads(done.stdout.splitlines()[-1])
        all_s, select_s, manifest_s = (
            told["seconds"][name] for name in ("all", "select", "write_manifest")
        )
        print(
            f"{n:>13,} {n / all_s:>12,.0f} {select_s:>7.1f}s {manifest_s:>8.1f}s "
            f"{all_s - select_s - manifest_s:>10.1f}s {told['peak_mib']:>9,.0f} "
            f"{told['disk_bytes'] / 1e9:>8.2f} {told['plan_bytes'] / 1e9:>8.2f} "
            f"{told['packs']:>10,} {told['over_bound']:>+8.3%} {told['deviation']:>9.3%}",
            flush=True,
        )
    times = BILLION / n
    print(
        f"{BILLION:>13,} projected: {told['seconds']['all'] * times / 3600:.1f} h, "
        f"{told['disk_bytes'] * times / 1e9:,.0f} GB of disk for a while, "
        f"{told['plan_bytes'] * times / 1e9:,.0f} GB of plan"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(int(sys.argv[2]), sys.argv[3])
    elif sys.argv[1:2] == ["--plan"]:
        print(json.dumps(plan(sys.argv[2])))
    else:
        main([int(word.replace("_", "")) for word in sys.argv[1:]] or list(SIZES))
