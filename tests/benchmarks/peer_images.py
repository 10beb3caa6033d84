"""The same filters and the same duplicates on the same pictures, beside data-juicer.

    python -m venv peer && peer/bin/pip install py-data-juicer==1.6.1 imagededup \
        opencv-python-headless aiohttp
    python tests/benchmarks/peer_images.py peer/bin/python PHOTOGRAPHS [count] [rounds]

Both decode every picture, judge its sides, its aspect and its file's size, and drop pictures of an
equal 64-bit perceptual hash, with two processes. Ours is the whole phase on Ray (index, scores,
duplicates, decisions: tables on disk) and, beside it, the operators in a plain loop; theirs is its
default executor. Rounds alternate; times leave out imports and the start of Ray.
"""

import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image

PROCESSES = 2
SHORT_SIDE = 480
RULES = [
    ("sides", "least(width, height) >= 200"),
    ("shape", "aspect BETWEEN 0.25 AND 4"),
    ("bytes", "file_bytes >= 1024"),
    ("duplicate", "NOT perceptual_duplicate"),
]

THEIRS = """
import json, sys, time
from pathlib import Path
from data_juicer.core.data import NestedDataset
from data_juicer.ops.deduplicator.image_deduplicator import ImageDeduplicator
from data_juicer.ops.filter.image_aspect_ratio_filter import ImageAspectRatioFilter
from data_juicer.ops.filter.image_shape_filter import ImageShapeFilter
from data_juicer.ops.filter.image_size_filter import ImageSizeFilter
folder, processes = sys.argv[1], int(sys.argv[2])
started = time.perf_counter()
rows = [{"text": "", "images": [str(path)]} for path in sorted(Path(folder).iterdir())]
kept = NestedDataset.from_list(rows).process([
    ImageShapeFilter(min_width=200, min_height=200, num_proc=processes),
    ImageAspectRatioFilter(min_ratio=0.25, max_ratio=4, num_proc=processes),
    ImageSizeFilter(min_size="1KiB", num_proc=processes),
    ImageDeduplicator(method="phash", num_proc=processes),
])
print(json.dumps({"seconds": time.perf_counter() - started, "kept": len(kept)}))
"""

OURS = """
import json, sys, time
from infra.cluster import session
from pipelines.curate_images import curate
from pipelines.decide import Decide, Decision
from pipelines.duplicates import Duplicates, Perceptual
from pipelines.recipe import Recipe
from pipelines.sections import Cheap, Pool
from pipelines.refresh import refresh
from pipelines.rules import Rule
from pipelines.source import Source
class Decided(Exception):
    pass
def until_decided(storage, phase):
    record = refresh(storage, phase)
    if isinstance(phase, Decision):
        raise Decided(record)
    return record
folder, processes, workspace, rules = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
recipe = Recipe(
    dataset="peer", workspace=workspace, models=None,
    sources=(Source(name="photos", kind="folder", path=folder),),
    cheap=Cheap(pool=Pool(workers=processes, unit_rows=128)),
    duplicates=Duplicates(exact=False, perceptual=Perceptual(radius=0)),
    decide=Decide(rules=tuple(Rule(name=n, keep=k) for n, k in json.loads(rules))),
)
with session(num_cpus=processes):
    started = time.perf_counter()
    try:
        curate(recipe, until_decided)
    except Decided as done:
        [record] = done.args
    seconds = time.perf_counter() - started
status = [s for p in range(len(record.parts))
          for s in recipe.storage.read_table(record.path(p), ["status"])["status"].to_pylist()]
print(json.dumps({"seconds": seconds, "kept": status.count("kept")}))
"""

LOOP = """
import json, sys, time
from multiprocessing import Pool
from pathlib import Path
import pyarrow as pa
from infra.schema import ERROR_TYPE
from operators.perceptual_hash import PerceptualHash
from operators.probe import Probe
def score(paths):
    files = [path.read_bytes() for path in paths]
    columns = {"bytes": pa.array(files, pa.large_binary())}
    batch = pa.table(columns | {"error": pa.nulls(len(files), ERROR_TYPE)})
    batch = PerceptualHash()(Probe()(batch))
    return batch.select(["width", "height", "aspect", "file_bytes", "phash"])
if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).iterdir())
    with Pool(int(sys.argv[2])) as pool:
        started = time.perf_counter()
        batches = [paths[i : i + 32] for i in range(0, len(paths), 32)]
        table = pa.concat_tables(pool.map(score, batches)).to_pandas()
        fine = table[(table[["width", "height"]].min(axis=1) >= 200)
                     & table["aspect"].between(0.25, 4) & (table["file_bytes"] >= 1024)]
        kept = fine["phash"].nunique()
        print(json.dumps({"seconds": time.perf_counter() - started, "kept": kept}))
"""


def write_pictures(photographs: Path, folder: Path, count: int) -> None:
    """Crops of the photographs at 480 pixels, every tenth a copy of the one before it."""
    draw = random.Random(0)
    originals = []
    for path in sorted(photographs.iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            picture = Image.open(path).convert("RGB")
            if min(picture.size) >= SHORT_SIDE:
                scale = 1.3 * SHORT_SIDE / min(picture.size)
                originals.append(picture.reduce(max(1, int(1 / scale))))
    data = b""
    for number in range(count):
        if number % 10 or not data:
            picture = draw.choice(originals)
            width, height = (round(side * draw.uniform(0.6, 1)) for side in picture.size)
            left, top = (
                draw.randrange(picture.width - width + 1),
                draw.randrange(picture.height - height + 1),
            )
            crop = picture.crop((left, top, left + width, top + height))
            crop.thumbnail((SHORT_SIDE * 4 // 3, SHORT_SIDE))
            buffer = io.BytesIO()
            crop.save(buffer, "JPEG", quality=draw.randint(75, 95))
            data = buffer.getvalue()
        (folder / f"{number:06d}.jpg").write_bytes(data)


def timed(command: list[str], root: Path) -> tuple[dict[str, float], float]:
    """What the command printed last, and the most memory (MiB) of it and its children."""
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    peak = 0.0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.2):
            peak = max(peak, tree_mib(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, told = process.communicate()
    ended.set()
    watcher.join()
    assert process.returncode == 0, told[-2000:]
    return json.loads(out.splitlines()[-1]), peak


def tree_mib(root: int) -> float:
    """Proportional memory of a process and all below it (pages that are shared count once)."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rsplit(")")[-1].split()[1]
                )
            except (OSError, IndexError):
                continue
    total = 0
    for pid in parents:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root:
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += int(rollup.split("Pss:")[1].split()[0])
    return total / 1024


def main(peer: str, photographs: str, count: int = 3_000, rounds: int = 3) -> None:
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "pictures")
        folder.mkdir()
        write_pictures(Path(photographs), folder, count)
        size = sum(path.stat().st_size for path in folder.iterdir()) / count / 1024
        print(f"{count:,} JPEGs, {SHORT_SIDE} pixels and {size:.0f} KiB, {PROCESSES} processes")
        runs: dict[str, list[tuple[dict[str, float], float]]] = {}
        for number in range(rounds):
            workspace = str(Path(temporary, f"workspace-{number}"))
            told = json.dumps(RULES)
            at = [str(folder), str(PROCESSES)]
            commands = {
                "data-juicer": [peer, "-c", THEIRS, *at],
                "nextscale, phases on Ray": [sys.executable, "-c", OURS, *at, workspace, told],
                "nextscale, operators in a loop": [sys.executable, "-c", LOOP, *at],
            }
            for name, command in commands.items():
                runs.setdefault(name, []).append(timed(command, root))
        for name, of in runs.items():
            rate = statistics.median(count / told["seconds"] for told, _ in of)
            memory = max(peak for _, peak in of)
            kept = {int(told["kept"]) for told, _ in of}
            print(f"{name:32} {rate:8,.0f} images/s  {memory:6,.0f} MiB  kept {kept}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(word) for word in sys.argv[3:]))
