"""How fast tokenizer training gets its pictures: decoded, kept in memory, from tables of documents.

    python tests/benchmarks/training_pictures.py FOLDER [--pictures 200] [--rounds 3]

Draws random crops at level 256 from the photographs in FOLDER (and from a table of documents made
of them) with threads that run ahead, against the bare work that each needs: read, decode, resize.
The kinds take turns. The table is read with room for a few of its row groups, as one is that is
much larger than memory. Pictures per second of wall time, and per CPU second of this process, which
other work on the machine changes little. Before that: what an index of a million pictures takes.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count as count_from
from itertools import cycle, islice
from pathlib import Path

# Libraries read it when they are loaded.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from infra import pixels, runs
from infra.runs import Part, TableRecord
from infra.schedules import SCHEDULES
from infra.schema import DOCUMENTS, doc_id, sample_id
from infra.storage import Storage
from tokenize_offline.batches import ahead
from tokenize_offline.decoded_pictures import DecodedPictures
from tokenize_offline.draws import StepDraws
from tokenize_offline.learning import Learning
from tokenize_offline.photographs import Pictures, draw_crop, open_pictures, to_unit
from tokenize_offline.picture_sources import DocumentImages

BATCH = 4
SHORT_SIDE = 1_600
FEW_ROW_GROUPS = 6 * 9 * 2**20  # bytes: the four of a batch, of some 9 MiB, and two more
DOCUMENTS_IN_TABLE = 2_048


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    count_row_groups()
    million()  # first: later its memory would come out of what the others have freed
    files = sorted(p for p in arguments.folder.rglob("*") if p.suffix in (".jpg", ".png"))
    with tempfile.TemporaryDirectory() as folder:
        table = write_documents(Storage(folder), files)
        kinds: dict[str, Callable[[int], Iterator[int]]] = {
            "bare: read, decode, resize": lambda count: bare(files, count)
        }
        for workers in (0, 1, 2):
            for name, sources, cache, near in (
                ("files, decoded each time", {"images": files}, 0, False),
                ("files, all in memory", {"images": files}, 2**33, False),
                ("documents, drawn among all", {"documents": [table]}, FEW_ROW_GROUPS, False),
                ("documents, 16 steps near", {"documents": [table]}, FEW_ROW_GROUPS, True),
            ):
                pictures = open_pictures(**sources, short_side=SHORT_SIDE, cache_bytes=cache)
                if "images" in sources and cache:
                    for _ in pictures.decodable():
                        pass
                kinds[f"{name}, {workers} threads"] = drawing(pictures, workers, near)
        rates: dict[str, list[tuple[float, float, float]]] = {name: [] for name in kinds}
        for _ in range(arguments.rounds):
            for name, make in kinds.items():
                wall, cpu, read = time.perf_counter(), time.process_time(), len(READ)
                count = sum(make(arguments.pictures))
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                rates[name].append((count / wall, count / cpu, (len(READ) - read) / count))
    print(f"{'':42} per s   per CPU s   row groups per picture   (medians of {arguments.rounds})")
    for name, measured in rates.items():
        per_s, per_cpu_s, read = np.median(np.array(measured), axis=0)
        print(f"{name:42} {per_s:5.1f}   {per_cpu_s:9.1f}   {read:22.2f}")


READ: list[int] = []  # row groups


def count_row_groups() -> None:
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        READ.append(group)
        return original(self, group, columns=columns)

    pq.ParquetFile.read_row_group = counted


def bare(files: list[Path], count: int) -> Iterator[int]:
    for number, file in enumerate(islice(cycle(files), count)):
        schedule = SCHEDULES[number % len(SCHEDULES)]
        rgb = pixels.decode(file.read_bytes(), SHORT_SIDE).rgb
        pixels.resize_crop(rgb, *schedule.image_size(256))
        yield 1


def drawing(pictures: Pictures, workers: int, near: bool) -> Callable[[int], Iterator[int]]:
    def make(number: int) -> Tensor:
        rng, draws = np.random.default_rng(number), StepDraws(Learning(), "joint", number)
        schedule = SCHEDULES[int(rng.integers(len(SCHEDULES)))]
        places = [draws.near(n) if near else None for n in range(BATCH)]
        return to_unit([draw_crop(pictures, rng, schedule, 256, place) for place in places])

    rounds = count_from(0)

    def batches(count: int) -> Iterator[int]:
        first = next(rounds) * (count // BATCH)  # a round goes on where the last one ended
        with closing(ahead(make, first, first + count // BATCH, workers)) as made:
            for batch in made:
                yield len(batch)

    return batches


def write_documents(storage: Storage, files: list[Path]) -> str:
    """A document per picture, the photographs over and over, cut for level 512 as in curation."""
    rows = []
    for number, file in enumerate(islice(cycle(files), DOCUMENTS_IN_TABLE)):
        schedule = SCHEDULES[number % len(SCHEDULES)]
        rgb, _ = pixels.resize_crop(
            pixels.decode(file.read_bytes(), SHORT_SIDE).rgb, *schedule.image_size(512)
        )
        image = {"kind": "image", "image": pixels.encode_jpeg(rgb)}
        image |= {"height": rgb.shape[0], "width": rgb.shape[1]}
        image |= {"sample_id": sample_id("benchmark", str(number))}
        row = {"doc_id": doc_id("benchmark", "t2i", [str(number)]), "segments": [image]}
        rows.append(row | {"task": "t2i", "source": "benchmark"})
    part = "v-0/part-00000.parquet"
    table = pa.Table.from_pylist(rows, DOCUMENTS)
    storage.write_part(f"documents/benchmark/{part}", table, DOCUMENTS, "doc_id")
    record = TableRecord("documents/benchmark", "f", "r", "doc_id", (Part(part, len(rows)),))
    runs.save_record(storage, record)
    return storage.path("documents/benchmark")


def million() -> None:
    """Memory and the time of a draw, with the columns that a table of a million pictures gives."""
    count = 1_000_000
    before = resident_bytes()
    names = pa.array([f"{number:032x}" for number in range(count)], pa.large_string())
    sizes = np.full((count, 2), 512, np.int32)
    places = np.arange(count, dtype=np.int32)
    source = DocumentImages(names, sizes, places // 64, places, (), np.zeros(1, np.int64), 0)
    index = names.nbytes + sizes.nbytes + source.groups.nbytes + places.nbytes
    decoded = DecodedPictures([source], SHORT_SIDE, 0, print)
    pictures = Pictures(decoded, np.arange(count), np.where(places % 10, 1.0, 3.0))
    rng, start = np.random.default_rng(0), time.process_time()
    for _ in range(100_000):
        pictures.draw_index(rng)
    draw = (time.process_time() - start) / 100_000
    grown = (resident_bytes() - before) / count
    print(f"a million: index {index / count:.0f} bytes per picture; to draw from, {grown:.0f}")
    print(f"weighted draw: {1e6 * draw:.1f} CPU us")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
