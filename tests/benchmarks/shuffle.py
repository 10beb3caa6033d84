"""Documents from tokens to shards: bytes read, speed and memory, against reading them directly.

    python tests/benchmarks/shuffle.py [documents ...]

Synthetic documents of level 256 (a caption of 10 to 80 ids and 900 codes of each kind) in parts of
2,500, put at random into packs of 21 and shards of 32 packs, so that a small table has many shards.
``direct`` reads every shard's documents out of all parts, as it was done before. ``plain`` reads
the tokens' files once and writes as many bytes as the shards have. Each way is one process without
Ray, files in the page cache; read is what the process asked of the system over the tables' bytes,
memory what its peak adds.
"""

import io
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from infra.runs import Part, TableRecord
from infra.schedules import SCHEDULES
from infra.schema import TOKENS
from infra.storage import Storage
from packing.cost import Coefficients
from packing.members import from_tokens
from packing.plan import PLAN
from packing.shards import shard_name, write_shard
from pipelines import write_shards
from pipelines.write_shards import ShardJob

PART_ROWS, PER_PACK, PACKS_PER_SHARD, NUM_CODES = 2_500, 21, 32, 16_384
PLAN_FILE = "packs/plan/part-000000.parquet"
SCALES = 12
SCHEDULE = next(i for i, s in enumerate(SCHEDULES) if s.num_codes(SCALES) == 900)
MIB = 2**20


def write_inputs(storage: Storage, num_documents: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(num_documents // PART_ROWS):
        rows = [
            {
                "doc_id": f"{number:04d}{i:028d}",
                "task": "t2i",
                "source": "photos",
                "segments": [
                    {
                        "kind": "text",
                        "loss": True,
                        "text_ids": rng.integers(0, 152_064, int(rng.integers(10, 80))),
                    },
                    {
                        "kind": "image",
                        "role": "target",
                        "loss": True,
                        "schedule": SCHEDULE,
                        "num_scales": SCALES,
                        "input_codes": rng.integers(0, NUM_CODES, 900),
                        "target_codes": rng.integers(0, NUM_CODES, 900),
                    },
                ],
            }
            for i in range(PART_ROWS)
        ]
        schema = pa.schema([field.remove_metadata() for field in TOKENS])
        file = f"v/part-{number:05d}.parquet"
        table = pa.Table.from_pylist(rows, schema=schema)
        storage.write_part(f"tokens/{file}", table, TOKENS, "doc_id")
    order, n = rng.permutation(num_documents), np.arange(num_documents)
    columns = {
        "row": n,
        "component": np.zeros_like(n),
        "copy": np.zeros_like(n),
        "part": order // PART_ROWS,
        "token_row": order % PART_ROWS,
        "first_segment": np.zeros_like(n),
        "num_segments": np.full_like(n, 2),
        "num_tokens": np.full_like(n, 950),
        "pack": n // PER_PACK,
        "position": n % PER_PACK,
    }
    plan = pa.table(
        [
            pa.array(columns[field.name]).cast(field.type)
            if field.name in columns
            else pa.nulls(num_documents, field.type)
            for field in PLAN
        ],
        names=PLAN.names,
    )
    storage.write_part(PLAN_FILE, plan, PLAN, "row")


def make_job(num_documents: int) -> ShardJob:
    files = [f"v/part-{number:05d}.parquet" for number in range(num_documents // PART_ROWS)]
    parts = tuple(Part(file, PART_ROWS) for file in files)
    record = TableRecord("tokens", "f", "r", "doc_id", parts, {})
    num_packs = -(-num_documents // PER_PACK)
    of = Coefficients(1.0, 1.0, 1.0)
    return ShardJob("packs", (PLAN_FILE,), ((record,),), num_packs, of, NUM_CODES)


def direct(storage: Storage, job: ShardJob) -> None:
    """Each shard by itself: the rows that it needs out of every part."""
    plan = storage.read_table(job.plan[0], ["pack", "part", "token_row"])
    pack, part, row = (column.to_numpy() for column in plan.columns)
    [[record]] = job.tables
    for start in range(0, job.num_packs, PACKS_PER_SHARD):
        bounds = np.searchsorted(pack, (start, start + PACKS_PER_SHARD))
        here = np.arange(*bounds)
        found = {}
        for number in np.unique(part[here]).tolist():
            wanted = here[part[here] == number]
            rows = storage.read_rows(record.path(number), row[wanted].tolist())
            found |= dict(zip(wanted.tolist(), from_tokens(rows), strict=True))
        packs = [
            (number, [found[i] for i in of])
            for number, of in itertools.groupby(here.tolist(), lambda i: int(pack[i]))
        ]
        name, buffer = shard_name(start // PACKS_PER_SHARD), io.BytesIO()
        write_shard(buffer, name, packs, job.coefficients, NUM_CODES)
        storage.write(f"packs/{name}", buffer.getvalue())


def plain(storage: Storage, job: ShardJob) -> None:
    [[record]] = job.tables
    for part in range(len(record.parts)):
        storage.read(record.path(part))
    shards = sum(size for name, size, _ in storage.find("packs") if name.endswith(".tar"))
    for number, start in enumerate(range(0, shards, MIB)):
        storage.write(f"plain/{number}", bytes(min(MIB, shards - start)))


WAYS = {"direct": direct, "shuffled": write_shards.write_shards, "plain": plain}


def told(file: str, name: str) -> int:
    return int(Path(f"/proc/self/{file}").read_text().split(f"{name}:")[1].split()[0])


def one(way: str, root: str, num_documents: int) -> None:
    storage = Storage(root)
    job = make_job(num_documents)
    write_shards.PACKS_PER_SHARD = PACKS_PER_SHARD
    Path("/proc/self/clear_refs").write_text("5")
    read, peak_kib, started = told("io", "rchar"), told("status", "VmHWM"), time.perf_counter()
    WAYS[way](storage, job)
    seconds = time.perf_counter() - started
    grown = told("status", "VmHWM") - peak_kib
    print(json.dumps([seconds, told("io", "rchar") - read, grown * 1024]))


def main(sizes: list[int]) -> None:
    print(f"{'documents':>10} {'shards':>7} {'way':9} {'s':>7} {'MB/s':>7} {'read':>7} {'MiB':>6}")
    for size in sizes:
        with tempfile.TemporaryDirectory() as root:
            storage = Storage(root)
            write_inputs(storage, size)
            tokens = sum(length for _, length, _ in storage.find("tokens"))
            for way in WAYS:
                command = [sys.executable, __file__, "--one", way, root, str(size)]
                done = subprocess.run(command, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr[-2000:]
                seconds, read, peak = json.loads(done.stdout)
                shards = [n for n, *_ in storage.find("packs") if n.endswith(".tar")]
                written = sum(length for n, length, _ in storage.find("packs") if n in shards)
                print(
                    f"{size:10,} {len(shards):7,} {way:9} {seconds:7.1f} "
                    f"{written / seconds / 1e6:7.1f} {read / tokens:7.1f} {peak / MIB:6.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main([int(size) for size in sys.argv[1:]] or [5_000, 10_000, 20_000])
