"""Scoring without models on one core, against the bare JPEG decoder at the same reduced size.

    python tests/benchmarks/scoring.py FOLDER [rounds]

The limit of scoring is decoding: libjpeg-turbo through simplejpeg, at the scale our decoder picks.
Both go over the same files in turn, so that a noisy machine slows both; the ratio is per round.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from infra import pixels
from infra.schema import ERROR_TYPE
from operators.borders import Borders
from operators.clarity import Clarity
from operators.colour import Colour
from operators.perceptual_hash import PerceptualHash
from operators.probe import Probe

SHORT_SIDE = 512
BATCH_ROWS = 16


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def reduced(width: int, height: int) -> tuple[int, int]:
    """The size at which a JPEG's scaled DCT gives the smallest picture not below SHORT_SIDE."""
    scale = max((s for s in (1, 2, 4, 8) if min(width, height) // s >= SHORT_SIDE), default=1)
    return -(-height // scale), -(-width // scale)


def bare(files: list[bytes]) -> None:
    for data in files:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        least_height, least_width = reduced(width, height)
        simplejpeg.decode_jpeg(
            data, "RGB", min_height=least_height, min_width=least_width, min_factor=1
        )


def score(files: list[bytes]) -> None:
    operators = (Probe(SHORT_SIDE), PerceptualHash(), Clarity(), Borders(), Colour())
    for start in range(0, len(files), BATCH_ROWS):
        batch = as_batch(files[start : start + BATCH_ROWS])
        for operator in operators:
            batch = operator(batch)


def as_batch(files: list[bytes]) -> pa.Table:
    columns = {"bytes": pa.array(files, pa.large_binary())}
    return pa.table(columns | {"error": pa.nulls(len(files), ERROR_TYPE)})


def shares(files: list[bytes]) -> dict[str, float]:
    """CPU seconds of each part of scoring, measured apart."""
    batches = [as_batch(files[i : i + BATCH_ROWS]) for i in range(0, len(files), BATCH_ROWS)]
    probed = [Probe(SHORT_SIDE)(batch) for batch in batches]
    probe_s = seconds(lambda: [Probe(SHORT_SIDE)(batch) for batch in batches])
    return {
        "probe": probe_s,
        "of it decode and resize": seconds(lambda: [pixels.decode(f, SHORT_SIDE) for f in files]),
        "perceptual hash": seconds(lambda: [PerceptualHash()(batch) for batch in probed]),
        "clarity": seconds(lambda: [Clarity()(batch) for batch in probed]),
        "borders": seconds(lambda: [Borders()(batch) for batch in probed]),
        "colour": seconds(lambda: [Colour()(batch) for batch in probed]),
    }


def main(folder: str, rounds: int = 7) -> None:
    cv2.setNumThreads(1)
    paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
    files = []
    for path in paths:
        data = path.read_bytes()
        try:
            pixels.decode(data)
            simplejpeg.decode_jpeg(data, "RGB")
        except (pixels.DecodeError, ValueError):
            continue  # CMYK and damaged files: the bare decoder takes none of them
        files.append(data)
    megapixels = np.mean(
        [np.prod(simplejpeg.decode_jpeg_header(data)[:2], dtype=float) for data in files]
    )
    print(f"{len(files)} JPEGs, {megapixels / 1e6:.2f} megapixels on average, one core")
    bare(files)
    score(files)
    limits, ours = [], []
    for _ in range(rounds):
        limits.append(seconds(lambda: bare(files)))
        ours.append(seconds(lambda: score(files)))
    ratios = [limit / own for limit, own in zip(limits, ours, strict=True)]
    print(f"bare decoder   {len(files) / statistics.median(limits):8.1f} images/s")
    print(f"scoring        {len(files) / statistics.median(ours):8.1f} images/s")
    print(f"ratio          {statistics.median(ratios):8.2f}  ({min(ratios):.2f}-{max(ratios):.2f})")
    for name, spent in shares(files).items():
        print(f"  {name:<24} {spent / len(files) * 1e3:6.2f} ms per image")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
