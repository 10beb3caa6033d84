"""What Ray costs: the cheap score group over many small pictures, against plain processes.

    python tests/benchmarks/ray_overhead.py [pictures] [workers] [unit_rows]

Both read the same tars, run the same operators in the same batches on as many processes and write
Parquet; the phase also cuts units, commits them and compacts. The session's start is left out.
"""

import io
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from skimage import data

from infra.cluster import session
from infra.storage import Storage
from operators.clarity import Clarity
from operators.perceptual_hash import PerceptualHash
from operators.probe import Probe
from pipelines.curate_images import score
from pipelines.execution import run_phase
from pipelines.recipe import Recipe
from pipelines.sections import Cheap, Pool
from pipelines.source import Source
from pipelines.sources import index_phase, load_order, read_media

PER_TAR = 2_000
SIDE = 128
BATCH_ROWS = 64


def write_tars(folder: Path, pictures: int) -> None:
    """Small JPEGs cut out of photographs, each at another place; all tars hold the same ones.

    Their samples still differ: the tar's name is part of a sample's key.
    """
    rng = np.random.default_rng(0)
    photographs = [data.astronaut(), data.coffee(), data.rocket(), data.chelsea()]
    first = folder / "00000.tar"
    with tarfile.open(first, "w") as tar:
        for i in range(PER_TAR):
            photograph = photographs[i % len(photographs)]
            y, x = (int(rng.integers(0, n - SIDE)) for n in photograph.shape[:2])
            buffer = io.BytesIO()
            cut = photograph[y : y + SIDE, x : x + SIDE]
            Image.fromarray(cut).save(buffer, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{i:06d}.jpg")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
    for number in range(1, pictures // PER_TAR):
        shutil.copy(first, folder / f"{number:05d}.tar")


def plain(source: Source, samples: pa.Table, output: str) -> int:
    """One process of the plain loop."""
    cv2.setNumThreads(1)
    operators = (Probe(), PerceptualHash(), Clarity())
    done = []
    for start in range(0, len(samples), BATCH_ROWS):
        batch = read_media(source, samples.slice(start, BATCH_ROWS))
        for operator in operators:
            batch = operator(batch)
        done.append(batch.drop_columns(["bytes", "image"]))
    table = pa.concat_tables(done)
    pq.write_table(table, output, compression="zstd")
    return len(table)


def main(pictures: int = 1_100_000, workers: int = 2, unit_rows: int = 1_024) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tars = Path(folder) / "tars"
        tars.mkdir()
        write_tars(tars, pictures)
        source = Source(name="small", kind="webdataset", path=str(tars))
        pool = Pool(workers=workers, unit_rows=unit_rows, batch_rows=BATCH_ROWS)
        recipe = Recipe(
            dataset="small",
            workspace=f"{folder}/workspace",
            sources=(source,),
            cheap=Cheap(pool=pool),
            models=None,
        )
        with session(num_cpus=workers):
            samples = run_phase(recipe.storage, index_phase(source))
            start = time.perf_counter()
            list(score(recipe, source, samples))
            ray_s = time.perf_counter() - start
        driver_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        storage = Storage(recipe.workspace)
        rows = pa.concat_tables(
            storage.read_table(samples.path(part)) for part in range(len(samples.parts))
        )
        rows = load_order(rows)
        share = -(-len(rows) // workers)
        start = time.perf_counter()
        with ProcessPoolExecutor(workers) as processes:
            futures = [
                processes.submit(
                    plain, source, rows.slice(i * share, share), f"{folder}/{i}.parquet"
                )
                for i in range(workers)
            ]
            assert sum(future.result() for future in futures) == pictures
        plain_s = time.perf_counter() - start
    print(f"{pictures:,} pictures of {SIDE} x {SIDE}, {workers} processes")
    print(f"plain loop     {plain_s:7.1f} s  {pictures / plain_s:8.0f} images/s")
    print(f"phase on Ray   {ray_s:7.1f} s  {pictures / ray_s:8.0f} images/s")
    print(f"ratio          {ray_s / plain_s:7.3f}")
    print(f"driver memory  {driver_mib:7.0f} MiB at its peak")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
