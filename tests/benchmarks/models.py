"""Scoring with the carried models on one core: where the time goes, and what the batches cost.

    python tests/benchmarks/models.py FOLDER [rounds]

A model operator is held to its bare network: the same batches of random pixels, prepared before the
clock. What is missing to 1 is preparing pictures (resize, normalise) and Arrow. CPU time.
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time

import cv2
import pyarrow as pa
import torch
from torch import nn

from infra import pixels
from infra.schema import ERROR_TYPE
from operators import mobilenets
from operators.aesthetics import Aesthetics
from operators.borders import Borders
from operators.clarity import Clarity
from operators.colour import Colour
from operators.image_embedding import ImageEmbedding
from operators.perceptual_hash import PerceptualHash
from operators.probe import Probe
from operators.topics import Topics

BATCH_ROWS = 32
SIDE = 224


def seconds(work: Callable[[], object]) -> float:
    start = process_time()
    work()
    return process_time() - start


def main(folder: str, rounds: int = 5) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    batches = read(Path(folder))
    num_pictures = sum(map(len, batches))
    print(f"{num_pictures} pictures, one core, median of {rounds} rounds")
    probed = [Probe()(batch) for batch in batches]
    files = [data for batch in batches for data in batch["bytes"].to_pylist()]
    parts: dict[str, Callable[[], object]] = {
        "decode and resize": lambda: [pixels.decode(data, 512) for data in files],
        "probe, all of it": lambda: [Probe()(batch) for batch in batches],
    }
    operators = [PerceptualHash(), Clarity(), Borders(), Colour()]
    models = [Aesthetics(), Topics(), ImageEmbedding()]
    for operator in [*operators, *models]:
        parts[type(operator).__name__] = lambda of=operator: [of(batch) for batch in probed]  # type: ignore[misc]
        operator(probed[0])
    times = {
        name: statistics.median(seconds(part) for _ in range(rounds))
        for name, part in parts.items()
    }
    total = sum(spent for name, spent in times.items() if name != "decode and resize")
    for name, spent in times.items():
        print(f"  {name:18} {spent / num_pictures * 1e3:7.2f} ms a picture  {spent / total:5.1%}")
    print("images/s of the operator, of its bare network, and their ratio")
    nima = mobilenets.load(mobilenets.MobileNetNima(), "nima_mobilenet_fp16.safetensors")
    lite = mobilenets.load(mobilenets.EfficientNetLite0(), "efficientnet_lite0_fp16.safetensors")
    for operator, network in ((models[0], nima), (models[1], lite), (models[2], lite)):
        ratios = []
        for _ in range(rounds):
            own = seconds(lambda of=operator: [of(batch) for batch in probed])  # type: ignore[misc]
            bare = seconds(lambda of=network: forward(of, num_pictures))  # type: ignore[misc]
            ratios.append(bare / own)
        rate = num_pictures / own
        print(
            f"  {type(operator).__name__:18} {rate:6.1f}  {rate / ratios[-1]:6.1f}  "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        )


def read(folder: Path) -> list[pa.Table]:
    """Whole batches of the folder's pictures that can be decoded, over and over if they are few."""
    files = []
    for path in sorted(folder.iterdir()):
        try:
            pixels.decode(path.read_bytes())
        except pixels.DecodeError:
            continue
        files.append(path.read_bytes())
    files = (files * BATCH_ROWS)[: max(len(files) // BATCH_ROWS, 2) * BATCH_ROWS]
    return [
        pa.table(
            {
                "bytes": pa.array(files[start : start + BATCH_ROWS], pa.large_binary()),
                "error": pa.nulls(BATCH_ROWS, ERROR_TYPE),
            }
        )
        for start in range(0, len(files), BATCH_ROWS)
    ]


def forward(network: nn.Module, rows: int) -> None:
    pictures = torch.rand(16, 3, SIDE, SIDE)
    with torch.inference_mode():
        for _ in range(rows // 16):
            network(pictures)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
