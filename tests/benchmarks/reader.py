"""How fast the reader gives packs, beside plain reads of the same bytes, and how soon the first.

    python tests/benchmarks/reader.py [packs] [rounds] [seed]

Packs of up to 20,480 tokens of text-to-image documents at level 512 (text of 80 ids, an image, an
end of text; random codes), on local disk and behind an S3 server process (moto). Plain reads the
same byte ranges in the same order in one thread: of files ``open`` and ``pread``, of S3 one ranged
GET after another with the same client. Beside it: plain with SHA-256, plain GETs two at a time (as
the reader has them), and plain bytes through a DataLoader's worker. Rounds are interleaved, ratios
are medians over the rounds. "Disk" runs start with the files' pages dropped from the cache, "cache"
runs with all of them in it. One rank; the time of a loader with workers starts with its first pack.
The last lines: the first pack of an index of 256,000 packs in 1,000 shards.
"""

import hashlib
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset

from infra.schedules import SCHEDULES
from infra.segments import Image, Text, count
from infra.storage import Storage
from packing.cost import coefficients, qwen2_5_7b
from packing.members import Document, decode
from packing.packs import Facts, Packs, open_packs
from packing.reader import PackStream
from packing.shards import PACK_INDEX, PACKS_PER_SHARD, shard_name, split_members, write_shard

CAP, NUM_CODES, SHARDS = 20_480, 16_384, 1_000
# Tokens/s of one rank: 6 FLOPs a parameter and token, 40% of an H100's 989 TFLOP/s.
NEEDED = 0.4 * 989e12 / (6 * 1e9)
WORKERS = (0, 1, 2)
FIRST = """
import sys, time
begun = float(sys.argv[2])
from torch.utils.data import DataLoader
from packing.reader import PackStream, open_packs
def memory(name):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[name].split()[0]) / 1024
imported, before = time.time(), memory("VmRSS")
packs = open_packs(sys.argv[1])
opened, after = time.time(), memory("VmRSS")
for pack in DataLoader(PackStream(packs), batch_size=None):
    break
first = time.time()
print(imported - begun, opened - imported, first - imported, first - begun, after - before,
      memory("VmHWM") - before)
"""


def documents(draw: np.random.Generator, pack: int) -> list[Document]:
    """Documents up to the cap."""
    found: list[Document] = []
    num_tokens = 0
    while True:
        schedule = int(draw.integers(len(SCHEDULES)))
        codes = draw.integers(0, NUM_CODES, (2, SCHEDULES[schedule].num_codes(16)), np.int32)
        segments = (
            Text(draw.integers(0, 150_000, 80, np.int32), True),
            Image(schedule, 16, *codes),
            Text(np.array([151_643], np.int32), True),
        )
        num_tokens += count(segments).num_tokens
        if num_tokens > CAP:
            return found
        found.append(Document(f"{pack:016x}{len(found):016x}", 0, "t2i", "drawn", segments))


def write(storage: Storage, num_packs: int, seed: int) -> None:
    """Shards, index and facts, as `nextscale pack` leaves them."""
    draw, indexes = np.random.default_rng(seed), []
    for number, start in enumerate(range(0, num_packs, PACKS_PER_SHARD)):
        file, stop = io.BytesIO(), min(start + PACKS_PER_SHARD, num_packs)
        packs = ((i, documents(draw, i)) for i in range(start, stop))
        of = coefficients(qwen2_5_7b())
        indexes.append(write_shard(file, shard_name(number), packs, of, NUM_CODES))
        storage.write(shard_name(number), file.getvalue())
    storage.write_part("index.parquet", pa.concat_tables(indexes), PACK_INDEX, "pack")
    facts = Facts("drawn", "drawn", NUM_CODES, 152_064, 512, "fixed_compute", CAP, seed)
    storage.write("packs.json", facts.to_json())


def write_large_index(source: Storage, target: Storage) -> None:
    """The first shard and an index of 1,000 times its packs, whose other shards are not there."""
    of_one = source.read_table("index.parquet").slice(0, PACKS_PER_SHARD)
    table = pa.concat_tables([of_one] * SHARDS).combine_chunks()
    numbers = np.arange(len(table))
    shards = [shard_name(i // len(of_one)) for i in numbers.tolist()]
    hashes = [hashlib.sha256(b"%d" % i).hexdigest() for i in numbers.tolist()]
    hashes[: len(of_one)] = of_one["sha256"].to_pylist()
    for name, values in (("pack", numbers), ("shard", shards), ("sha256", hashes)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    target.write(shard_name(0), source.read(shard_name(0)))
    target.write_part("index.parquet", table, PACK_INDEX, "pack")
    target.write("packs.json", source.read("packs.json"))


def ranges(packs: Packs) -> list[tuple[str, int, int]]:
    index = packs.index.select(["shard", "offset", "length"]).to_pydict()
    return list(zip(index["shard"], index["offset"], index["length"], strict=True))


def plain_files(packs: Packs, of: Callable[[bytes], object] = len) -> Iterator[bytes]:
    descriptors: dict[str, int] = {}
    for shard, offset, length in ranges(packs):
        if shard not in descriptors:
            descriptors[shard] = os.open(packs.storage.path(shard), os.O_RDONLY)
        data = os.pread(descriptors[shard], length, offset)
        of(data)
        yield data
    for descriptor in descriptors.values():
        os.close(descriptor)


def plain_gets(packs: Packs, at_a_time: int = 1) -> Iterator[bytes]:
    def get(place: tuple[str, int, int]) -> bytes:
        path, (_, offset, length) = packs.storage.path(place[0]), place
        found: bytes = packs.storage.fs.cat_file(path, start=offset, end=offset + length)
        return found

    if at_a_time == 1:
        yield from map(get, ranges(packs))
        return
    with ThreadPoolExecutor(at_a_time) as pool:
        yield from pool.map(get, ranges(packs))


class Plain(IterableDataset[bytes]):
    """Bytes that one worker of a loader reads plainly."""

    def __init__(self, packs: Packs) -> None:
        super().__init__()
        self.packs = packs

    def __iter__(self) -> Iterator[bytes]:
        fresh = replace(self.packs, storage=Storage(self.packs.storage.root))
        return plain_files(fresh) if fresh.storage.is_local else plain_gets(fresh)


def reader(packs: Packs, num_workers: int) -> Iterator[Any]:
    return loaded(PackStream(packs), num_workers)


def loaded(stream: IterableDataset[Any], num_workers: int) -> Iterator[Any]:
    yield from DataLoader(stream, batch_size=None, num_workers=num_workers)


def drop_pages(packs: Packs) -> None:
    for name in sorted({shard for shard, _, _ in ranges(packs)}):
        descriptor = os.open(packs.storage.path(name), os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def rate(way: Iterator[Any], packs: Packs) -> float:
    """Tokens/s; with workers from the first pack on, when they run."""
    tokens = packs.index["num_tokens"].to_numpy()
    start = time.perf_counter()
    next(way)
    first = time.perf_counter()
    left = sum(1 for _ in way)
    end = time.perf_counter()
    assert left == len(tokens) - 1
    return max(tokens.sum() / (end - start), tokens[1:].sum() / (end - first))


def compare(
    title: str,
    packs: Packs,
    ways: dict[str, Callable[[], Iterator[Any]]],
    rounds: int,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Run all ways ``rounds`` times in turn and print medians; the first way is the measure."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            before()
            rates[name].append(rate(way(), packs))
    bytes_a_token = sum(r[2] for r in ranges(packs)) / packs.index["num_tokens"].to_numpy().sum()
    plain = next(iter(rates.values()))
    for name, found in rates.items():
        median = statistics.median(found)
        ratio = statistics.median(a / b for a, b in zip(found, plain, strict=True))
        print(
            f"{title:<6} {name:<18} {median / 1e6:8.2f} M tokens/s "
            f"{bytes_a_token * median / 1e6:8.1f} MB/s  {ratio:5.2f} of plain  "
            f"{median / NEEDED:6.0f} x what a rank needs"
        )


def profile(packs: Packs) -> None:
    """The parts of one pack's way, in one thread, best of three."""
    places = ranges(packs)[:128]
    best = [float("inf")] * 5
    for _ in range(3):
        spent = [0.0] * 5
        for i, (shard, offset, length) in enumerate(places):
            t0 = time.perf_counter()
            data = packs.storage.read(shard, offset, length)
            t1 = time.perf_counter()
            hashlib.sha256(data).hexdigest()
            t2 = time.perf_counter()
            members = split_members(data, i)
            t3 = time.perf_counter()
            json.loads(members["layout.json"])
            t4 = time.perf_counter()
            decode(members)
            t5 = time.perf_counter()
            parts = (t1 - t0, t2 - t1, t3 - t2, t4 - t3, t5 - t4)
            spent = [a + b for a, b in zip(spent, parts, strict=True)]
        best = [min(a, b) for a, b in zip(best, spent, strict=True)]
    names = ("read", "SHA-256", "tar", "JSON alone", "decode with JSON")
    told = (f"{n} {1e6 * s / len(places):,.0f}" for n, s in zip(names, best, strict=True))
    print(f"us a pack of {places[0][2]:,} bytes: {', '.join(told)}")


def first_batch(title: str, path: str) -> None:
    found = []
    for _ in range(3):
        command = [sys.executable, "-c", FIRST, path, repr(time.time())]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append([float(value) for value in done.stdout.split()])
    imports, opened, first, whole, memory, peak = (
        statistics.median(column) for column in zip(*found, strict=True)
    )
    print(
        f"{title:<6} first batch of {SHARDS * PACKS_PER_SHARD:,} packs: {first:.2f} s after the "
        f"imports ({opened:.2f} s of it opening), {whole:.2f} s after the start of the process "
        f"({imports:.2f} s of it imports); open it takes {memory:.0f} MB, {peak:.0f} MB at its peak"
    )


def serve() -> tuple[subprocess.Popen[bytes], str]:
    """A moto server process and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
            return server, address
        except OSError:
            assert server.poll() is None, "the S3 server did not start"
            time.sleep(0.2)


def main() -> None:
    warnings.filterwarnings("ignore", "This DataLoader will create")
    torch.set_num_threads(1)
    num_packs = int(sys.argv[1]) if len(sys.argv) > 1 else 1_024
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    print(f"a rank of a 1B model needs {NEEDED:,.0f} tokens/s (6 x 1e9 FLOPs, 40% of 989 TFLOP/s)")
    # Beside the checkout, not in /tmp, which may be memory.
    with tempfile.TemporaryDirectory(dir=".") as folder:
        local, large = Storage(f"{folder}/packs"), Storage(f"{folder}/large")
        write(local, num_packs, seed)
        write_large_index(local, large)
        os.sync()
        packs = open_packs(local.root)
        profile(packs)
        ways: dict[str, Callable[[], Iterator[Any]]] = {
            "plain": lambda: plain_files(packs),
            "plain, SHA-256": lambda: plain_files(packs, lambda data: hashlib.sha256(data)),
            "plain, 1 worker": lambda: loaded(Plain(packs), 1),
        } | {f"reader, {n} workers": partial(reader, packs, n) for n in WORKERS}
        compare("disk", packs, ways, rounds, lambda: drop_pages(packs))
        compare("cache", packs, ways, rounds)
        server, address = serve()
        try:
            os.environ["AWS_ENDPOINT_URL"] = address
            os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "testing"
            os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
            some = Storage("s3://reader/packs")
            some.fs.mkdir("reader")
            write(some, max(num_packs // 8, PACKS_PER_SHARD), seed)
            write_large_index(some, Storage("s3://reader/large"))
            remote = open_packs(some.root)
            ways = {
                "plain": lambda: plain_gets(remote),
                "plain, 2 at a time": lambda: plain_gets(remote, 2),
                "plain, 1 worker": lambda: loaded(Plain(remote), 1),
            } | {f"reader, {n} workers": partial(reader, remote, n) for n in WORKERS}
            compare("S3", remote, ways, rounds)
            first_batch("local", large.root)
            first_batch("S3", "s3://reader/large")
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
