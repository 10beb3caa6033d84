"""Semantic duplicates: which copies the carried embedding finds, and what the search misses.

    python tests/benchmarks/semantic_pairs.py FOLDER [crops per photograph] [rows of the large run]

Copies: each photograph of FOLDER altered in every way below; a pair of copies of one photograph is
right, any other is wrong. Search: those, and random crops of the photographs (real vectors at every
cosine), against brute force. Large run: mixtures of these vectors with planted copies.
"""

import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from infra.pixels import Pixels, decode, to_struct
from infra.schema import ERROR_TYPE, digest
from infra.storage import Storage
from operators.image_embedding import ImageEmbedding
from pipelines.near_embeddings import Semantic, find_pairs
from pipelines.near_vectors import reach_of, train, unit, visits

SAME = {"exif_portrait_8": "exif_portrait_1"}  # one photograph with two numbers on it
PART_ROWS = 16_384

Alter = Callable[[Image.Image], Image.Image]
Vectors = NDArray[np.float32]


def saved(picture: Image.Image, format_: str, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, format_, quality=quality)
    return Image.open(buffer).convert("RGB")


def smaller(picture: Image.Image, by: int) -> Image.Image:
    return picture.resize((max(1, picture.width // by), max(1, picture.height // by)))


def cut(picture: Image.Image, share: float, x: float, y: float) -> Image.Image:
    """Without ``share`` of its area; x and y in 0..1 say where the rest lies."""
    side = (1 - share) ** 0.5
    width, height = round(picture.width * side), round(picture.height * side)
    left, top = round((picture.width - width) * x), round((picture.height - height) * y)
    return picture.crop((left, top, left + width, top + height))


def turned_hue(picture: Image.Image, degrees: int) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    moved = hue.point([(level + degrees * 256 // 360) % 256 for level in range(256)])
    return Image.merge("HSV", (moved, saturation, value)).convert("RGB")


def marked(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    font = ImageFont.load_default(max(12, picture.width // 10))
    centre = (picture.width // 2, picture.height // 2)
    draw = ImageDraw.Draw(picture, "RGBA")
    draw.text(centre, "SAMPLE PHOTO", (255, 255, 255, 150), font, anchor="mm")
    return picture


ALTERED: dict[str, Alter] = {
    "JPEG at quality 30": lambda p: saved(p, "JPEG", 30),
    "WebP at quality 40": lambda p: saved(p, "WEBP", 40),
    "half the size": lambda p: smaller(p, 2),
    "a quarter of the size": lambda p: smaller(p, 4),
    "5% cropped": lambda p: cut(p, 0.05, 0, 0),
    "10% cropped": lambda p: cut(p, 0.10, 1, 1),
    "20% cropped": lambda p: cut(p, 0.20, 0.5, 0.5),
    "30% cropped": lambda p: cut(p, 0.30, 0, 0),
    "mirrored": ImageOps.mirror,
    "brighter by 30%": lambda p: ImageEnhance.Brightness(p).enhance(1.3),
    "saturation 40%": lambda p: ImageEnhance.Color(p).enhance(0.4),
    "hue turned by 20°": lambda p: turned_hue(p, 20),
    "grey": lambda p: ImageOps.grayscale(p).convert("RGB"),
    "watermark across": marked,
}


def embed(pictures: list[Pixels]) -> Vectors:
    operator = ImageEmbedding()
    rows = []
    for start in range(0, len(pictures), 64):
        some = [as_decoded(picture) for picture in pictures[start : start + 64]]
        errors = pa.nulls(len(some), ERROR_TYPE)
        batch = operator(pa.table({"image": to_struct(some), "error": errors}))
        rows.append(np.array(batch["embedding"].to_pylist(), np.float16))
    return unit(np.concatenate(rows))


def as_decoded(picture: Pixels) -> Pixels:
    """As the pipeline would see the picture: through a file, reduced to the working size."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return decode(buffer.getvalue(), 512).rgb


def copies_table(names: list[str], originals: Vectors, copies: dict[str, Vectors]) -> None:
    threshold = Semantic().threshold
    print(f"| copy | found at {threshold} | median cosine | lowest |\n|---|---|---|---|")
    for kind, vectors in copies.items():
        cosines = (vectors * originals).sum(1)
        found = (cosines >= threshold).mean()
        print(f"| {kind} | {found:.0%} | {np.median(cosines):.2f} | {cosines.min():.2f} |")
    every = np.concatenate([originals, *copies.values()])
    of = np.tile([SAME.get(name, name) for name in names], 1 + len(copies))
    cosines, same = every @ every.T, of[:, None] == of
    upper = np.triu(np.ones_like(same), 1)
    right, wrong = cosines[upper & same], cosines[upper & ~same]
    recall = (right >= threshold).mean()
    precision = (right >= threshold).sum() / max(1, (cosines[upper] >= threshold).sum())
    print(f"\nall pairs of {len(every)} pictures: recall {recall:.3f}, precision {precision:.3f}")
    print(
        f"different photographs: {np.median(wrong):.2f} in the median, {wrong.max():.2f} at most "
        f"({len(wrong):,} pairs)\n"
    )


def write(storage: Storage, vectors: Vectors) -> list[str]:
    paths = []
    for start in range(0, len(vectors), PART_ROWS):
        part = vectors[start : start + PART_ROWS].astype(np.float16)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), part.shape[1])
        ids = [digest(str(start + row)) for row in range(len(part))]
        columns = {"sample_id": ids, "embedding": lists.cast(pa.list_(pa.float16()))}
        table = pa.table(columns).append_column("error", pa.nulls(len(part), ERROR_TYPE))
        path = f"embeddings/part-{len(paths):05d}.parquet"
        storage.write_part(path, table, table.schema, "sample_id")
        paths.append(path)
    return paths


def read(storage: Storage, paths: list[str]) -> set[tuple[str, str]]:
    pairs = pa.concat_tables([storage.read_table(path) for path in paths])
    return set(zip(pairs["a"].to_pylist(), pairs["b"].to_pylist(), strict=True))


def search_table(vectors: Vectors) -> None:
    """Recall of the clustered search, where so few rows would be compared all with all."""
    clusters = round((Semantic().probes * len(vectors)) ** 0.5)
    print(f"{len(vectors):,} real vectors, {clusters} clusters")
    print("| threshold | probes | pairs | found | visits a row |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        paths = write(storage, vectors)
        centroids = train(vectors, clusters, 0)
        for threshold in (0.8, 0.85, 0.9):
            truth = np.triu(vectors @ vectors.T >= threshold, 1).sum()
            for probes in (2, 4, 8, 16):
                semantic = Semantic(threshold=threshold, clusters=clusters, probes=probes)
                found = len(read(storage, find_pairs(storage, paths, semantic, "pairs")))
                visited = visits(vectors, centroids, reach_of(threshold), probes)[:, 1:] >= 0
                print(
                    f"| {threshold} | {probes} | {truth:,} | {found / truth:.4f} "
                    f"| {visited.sum(1).mean():.1f} |"
                )


def large_run(vectors: Vectors, rows: int) -> None:
    """Time, and how many planted copies are found."""
    rng = np.random.default_rng(0)
    planted = rows // 10
    made = np.empty((rows, vectors.shape[1]), np.float32)
    for start in range(0, rows - planted, 4_096):
        count = min(4_096, rows - planted - start)
        first, second = rng.integers(0, len(vectors), (2, count))
        share = rng.uniform(0.3, 0.7, (count, 1)).astype(np.float32)
        mixed = share * vectors[first] + (1 - share) * vectors[second]
        noise = np.abs(rng.normal(size=mixed.shape).astype(np.float32)) * 0.02
        made[start : start + count] = unit(mixed + noise)
    made[rows - planted :] = made[:planted]
    noise = np.abs(rng.normal(size=(planted, vectors.shape[1])).astype(np.float32))
    noise *= rng.uniform(0.001, 0.011, (planted, 1)).astype(np.float32)
    made[rows - planted :] = unit(made[rows - planted :] + noise)
    cosines = (made[:planted] * made[rows - planted :]).sum(1)
    place = [digest(str(row)) for row in range(rows)]
    semantic = Semantic(threshold=0.95)
    sought = {
        tuple(sorted((place[row], place[rows - planted + row])))
        for row in np.flatnonzero(cosines >= 0.951)
    }
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        paths = write(storage, made)
        start_s = time.process_time()
        pairs = read(storage, find_pairs(storage, paths, semantic, "pairs"))
        spent_s = time.process_time() - start_s
    share = len(pairs & sought) / len(sought)
    print(
        f"\n{rows:,} rows of {vectors.shape[1]} numbers, {semantic.num_clusters(rows):,} clusters, "
        f"one core: {spent_s:.0f} s; {share:.4f} of {len(sought):,} planted copies found "
        f"(cosine 0.95 to {cosines.max():.2f}), {len(pairs):,} pairs"
    )


def main(folder: str, crops: int = 50, rows: int = 0) -> None:
    files = sorted(Path(folder).iterdir())
    pictures = [Image.fromarray(decode(path.read_bytes(), 512).rgb) for path in files]
    originals = embed([np.asarray(picture) for picture in pictures])
    copies = {
        kind: embed([np.asarray(alter(picture)) for picture in pictures])
        for kind, alter in ALTERED.items()
    }
    copies_table([path.stem for path in files], originals, copies)
    rng = np.random.default_rng(0)
    cropped = [
        np.asarray(cut(picture, *rng.uniform((0.05, 0, 0), (0.9, 1, 1))))
        for picture in pictures
        for _ in range(crops)
    ]
    vectors = np.concatenate([originals, *copies.values(), embed(cropped)])
    search_table(vectors)
    if rows:
        large_run(vectors, rows)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
