"""Duplicates: what is found, how many comparisons it takes, how long the phase runs.

    python tests/benchmarks/duplicates.py recall FOLDER       # of pictures, all different
    python tests/benchmarks/duplicates.py search FOLDER       # comparisons per hash, 0.5-4 million
    python tests/benchmarks/duplicates.py phase [ROWS]        # 2 million rows with planted groups

`recall` makes a labelled set of every picture: variants that are duplicates of it, whatever the
hash thinks. `search` looks for pairs among uniform hashes and among hashes of cuts out of the
pictures in their eight orientations, whose bits are as uneven and dependent as those of pictures.
"""

import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from infra.pixels import Pixels, decode
from infra.runs import Part, TableRecord
from infra.schema import ERROR, ERROR_TYPE, SAMPLES, sample_id
from infra.storage import Storage
from operators.perceptual_hash import PerceptualHash, perceptual_hash
from operators.probe import Probe
from pipelines.duplicates import Duplicates, DuplicatesPhase, find_duplicates
from pipelines.inputs import dataset_parts
from pipelines.near_hashes import Hashes, choose_bands, find_pairs, keys_of, search_facts
from pipelines.scored import ScoredPart
from pipelines.source import Source

SHORT_SIDE = 768  # of the pictures that variants are made of
PART_ROWS = 100_000
ORIGINAL = "the same file"


def reencoded(picture: Image.Image, format_: str, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, format_, quality=quality)
    return Image.open(buffer).convert("RGB")


def resized(picture: Image.Image, width: float, height: float) -> Image.Image:
    size = (max(1, round(picture.width * width)), max(1, round(picture.height * height)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def cropped(picture: Image.Image, share: float, x: float = 0.5, y: float = 0.5) -> Image.Image:
    """Without ``share`` of the width and of the height; x, y say how much of it left and above."""
    width, height = round(picture.width * (1 - share)), round(picture.height * (1 - share))
    left, top = round((picture.width - width) * x), round((picture.height - height) * y)
    return picture.crop((left, top, left + width, top + height))


def watermarked(picture: Image.Image, size: float, x: float, y: float) -> Image.Image:
    """White text, half transparent, of ``size`` times the height."""
    text, font = "© nextscale", ImageFont.load_default(size=max(8.0, picture.height * size))
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    place = ((picture.width - right + left) * x, (picture.height - bottom + top) * y)
    draw.text(place, text, font=font, fill=(255, 255, 255, 128))
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def bordered(picture: Image.Image, x: float, y: float, colour: str) -> Image.Image:
    border = (round(picture.width * x), round(picture.height * y))
    return ImageOps.expand(picture, border, colour)


def hue_turned(picture: Image.Image) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    turned = hue.point([(x + 20) % 256 for x in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


VARIANTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    ORIGINAL: lambda p: p,
    "JPEG q95": lambda p: reencoded(p, "JPEG", 95),
    "JPEG q75": lambda p: reencoded(p, "JPEG", 75),
    "JPEG q50": lambda p: reencoded(p, "JPEG", 50),
    "JPEG q30": lambda p: reencoded(p, "JPEG", 30),
    "WebP q80": lambda p: reencoded(p, "WEBP", 80),
    "WebP q30": lambda p: reencoded(p, "WEBP", 30),
    "size x 0.25": lambda p: resized(p, 0.25, 0.25),
    "size x 0.5": lambda p: resized(p, 0.5, 0.5),
    "size x 1.5": lambda p: resized(p, 1.5, 1.5),
    "size x 2": lambda p: resized(p, 2, 2),
    "size x 0.25, JPEG q50": lambda p: reencoded(resized(p, 0.25, 0.25), "JPEG", 50),
    "width x 0.8": lambda p: resized(p, 0.8, 1),
    "cropped 2%": lambda p: cropped(p, 0.02),
    "cropped 5%": lambda p: cropped(p, 0.05),
    "cropped 5%, one corner": lambda p: cropped(p, 0.05, 0, 0),
    "cropped 10%": lambda p: cropped(p, 0.1),
    "cropped 20%": lambda p: cropped(p, 0.2),
    "mirrored": ImageOps.mirror,
    "turned by 90 degrees": lambda p: p.transpose(Image.Transpose.ROTATE_90),
    "brightness x 1.2": lambda p: ImageEnhance.Brightness(p).enhance(1.2),
    "contrast x 1.3": lambda p: ImageEnhance.Contrast(p).enhance(1.3),
    "saturation x 1.6": lambda p: ImageEnhance.Color(p).enhance(1.6),
    "grey": lambda p: p.convert("L").convert("RGB"),
    "hue turned by 28 degrees": hue_turned,
    "small watermark in a corner": lambda p: watermarked(p, 0.05, 0.97, 0.97),
    "large watermark in the centre": lambda p: watermarked(p, 0.12, 0.5, 0.5),
    "white border of 2%": lambda p: bordered(p, 0.02, 0.02, "white"),
    "white border of 5%": lambda p: bordered(p, 0.05, 0.05, "white"),
    "black bars of 10%": lambda p: bordered(p, 0, 0.1, "black"),
}


@dataclass(frozen=True)
class Labelled:
    """Hashes [n] of pictures, all different, and of their variants: of the pixels, of the file."""

    variants: dict[str, Hashes]
    files: dict[str, list[str]]

    def distances(self, variant: str) -> NDArray[np.uint8]:
        return np.bitwise_count(self.variants[ORIGINAL] ^ self.variants[variant])

    def equal_files(self, variant: str) -> float:
        pairs = zip(self.files[ORIGINAL], self.files[variant], strict=True)
        return float(np.mean([a == b for a, b in pairs]))

    def false_pairs(self, radius: int) -> tuple[int, int]:
        """(pairs within the radius, all pairs) of different pictures, in any of their variants."""
        every = np.stack(list(self.variants.values()))
        near, total = 0, 0
        for i in range(every.shape[1]):
            others = every[:, i + 1 :].reshape(-1)
            near += int((np.bitwise_count(every[:, i, None] ^ others) <= radius).sum())
            total += every.shape[0] * len(others)
        return near, total


def labelled(pictures: list[Pixels]) -> Labelled:
    """The labelled set, probed and hashed by the operators of the pipeline."""
    hashes, files = {}, {}
    for name, make in VARIANTS.items():
        encoded = []
        for picture in pictures:
            buffer = io.BytesIO()
            make(Image.fromarray(picture)).save(buffer, "BMP")
            encoded.append(buffer.getvalue())
        batch = pa.table(
            {
                "bytes": pa.array(encoded, pa.large_binary()),
                "error": pa.nulls(len(encoded), ERROR_TYPE),
            }
        )
        batch = PerceptualHash()(Probe()(batch))
        hashes[name], files[name] = batch["phash"].to_numpy(), batch["sha256"].to_pylist()
    return Labelled(hashes, files)


def pictures_in(folder: str, short_side: int) -> list[Pixels]:
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    found: dict[int, Pixels] = {}
    for file in files:
        rgb = decode(file.read_bytes(), short_side).rgb
        # The same picture in two files would count as a false pair.
        if all((perceptual_hash(rgb) ^ known).bit_count() > 2 for known in found):
            found[perceptual_hash(rgb)] = rgb
    return list(found.values())


def recall(folder: str) -> None:
    found = labelled(pictures_in(folder, SHORT_SIDE))
    print(f"{len(found.files[ORIGINAL])} pictures, hash version {PerceptualHash.version}")
    print("| variant | exact | radius 4 | radius 8 | median distance |\n|---|---|---|---|---|")
    for name in VARIANTS:
        bits = found.distances(name)
        shares = " | ".join(f"{(bits <= radius).mean():.2f}" for radius in (4, 8))
        print(f"| {name} | {found.equal_files(name):.2f} | {shares} | {np.median(bits):.0f} |")
    for radius in (4, 8):
        near, total = found.false_pairs(radius)
        print(f"radius {radius}: {near} of {total:,} pairs of different pictures")


def cuts(pictures: list[Pixels], count: int) -> Hashes:
    """Hashes of cuts out of the pictures, each in its eight orientations."""
    rng = np.random.default_rng(0)
    thumbnails = np.empty((count // 8, 32, 32, 3), np.uint8)
    for thumbnail in thumbnails:
        picture = pictures[rng.integers(len(pictures))]
        share, aspect = rng.uniform(0.15, 0.9), rng.uniform(0.7, 1.4)
        h, w = picture.shape[:2]
        height, width = int(min(h, w * aspect) * share), int(min(w, h / aspect) * share)
        top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
        cut = picture[top : top + height, left : left + width]
        cv2.resize(cut, (32, 32), dst=thumbnail, interpolation=cv2.INTER_AREA)
    hashes = []
    for thumbnail in thumbnails:
        for turns in range(4):
            turned = np.rot90(thumbnail, turns)
            hashes.append(perceptual_hash(np.ascontiguousarray(turned)))
            hashes.append(perceptual_hash(np.ascontiguousarray(turned[:, ::-1])))
    return np.array(hashes, np.uint64)


def search(folder: str, most: int = 4_000_000) -> None:
    rng = np.random.default_rng(0)
    kinds = {
        "uniform": rng.integers(0, 2**64, most, dtype=np.uint64),
        "cuts of pictures": rng.permutation(cuts(pictures_in(folder, 256), most)),
    }
    print("| hashes | distinct | keys of bits | comparisons per hash | five bands | time |")
    print("|---|---|---|---|---|---|")
    for name, every in kinds.items():
        for count in (most // 8, most // 4, most // 2, most):
            hashes = np.unique(every[:count])
            con = duckdb.connect(config={"threads": 2, "memory_limit": "2GB"})
            con.register("hashes", pa.table({"key": hashes, "place": np.arange(len(hashes))}))
            con.execute("CREATE TABLE nodes AS FROM hashes")
            bands = choose_bands(hashes[:: max(1, len(hashes) >> 18)], len(hashes), 4)
            widths = [key.width for key in keys_of(bands, 4)]
            with tempfile.TemporaryDirectory() as workspace:
                storage = Storage(workspace)
                started = time.perf_counter()
                find_pairs(con, storage, "d/v-1/_units", 4, 2**31)
                search_s = time.perf_counter() - started
                facts = search_facts(storage, "d/v-1/_units")
            met = facts["comparisons"] / len(hashes)
            keys = f"{len(widths)} of {min(widths)}-{max(widths)}"
            print(
                f"| {name}, {count / 1e6:g} million | {len(hashes):,} | {keys} | {met:.1f} | "
                f"{five_bands(hashes):.0f} | {search_s:.1f} s |",
                flush=True,
            )


def five_bands(hashes: Hashes) -> float:
    """Comparisons per hash where each of five fixed bands is a key."""
    met = 0
    for key in keys_of(5, 4):
        _, counts = np.unique(key.image(hashes) >> np.uint64(64 - key.width), return_counts=True)
        met += int((counts * (counts - 1) // 2).sum())
    return met / len(hashes)


def phase(rows: int = 2_000_000) -> None:
    """The whole perceptual phase over score tables: a tenth of the rows are planted copies."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, rows, dtype=np.uint64)
    copies = np.arange(rows // 10) + rows - rows // 10
    originals = rng.integers(0, rows - rows // 10, len(copies))
    bits = rng.random((len(copies), 64)).argsort(axis=1)
    flips = np.uint64(1) << bits[:, :4].astype(np.uint64)
    flips[np.arange(4) >= rng.integers(0, 5, len(copies))[:, None]] = 0
    hashes[copies] = hashes[originals] ^ np.bitwise_or.reduce(flips, axis=1)
    ids = np.array([sample_id("some", str(row)) for row in range(rows)])
    widths = np.full(rows, 800)
    widths[copies] = 400  # the original is the larger one
    with tempfile.TemporaryDirectory() as workspace:
        storage = Storage(workspace)
        work = DuplicatesPhase(
            "d", "perceptual", tables(storage, ids, hashes, widths), Duplicates()
        )
        started = time.perf_counter()
        record = find_duplicates(storage, work)
        phase_s = time.perf_counter() - started
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        groups = dict[str, str]()
        for part in range(len(record.parts)):
            table = storage.read_table(record.path(part))
            groups |= dict(
                zip(*(table[c].to_pylist() for c in ("sample_id", "group")), strict=True)
            )
    found = np.mean([groups[ids[c]] == ids[o] for c, o in zip(copies, originals, strict=True)])
    print(f"{rows:,} rows in {len(record.parts)} parts, {len(copies):,} of them planted copies")
    print(f"phase          {phase_s:7.1f} s")
    print(f"peak memory    {peak_gib:7.2f} GiB, with the making of the rows")
    print(f"recall         {found:7.4f}")
    print(f"comparisons    {record.facts['comparisons'] / rows:7.1f} per row")
    print(f"copies         {record.facts['copies']:,}")


def tables(
    storage: Storage, ids: NDArray[np.str_], hashes: Hashes, widths: NDArray[np.int64]
) -> tuple[ScoredPart, ...]:
    """Samples and scores as the phases before leave them."""
    cheap = pa.schema(
        [
            ("sample_id", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("phash", pa.uint64()),
            ("sha256", pa.string()),
            ERROR,
        ]
    )
    records = []
    for table, schema in (("samples/some", SAMPLES), ("scores/some/cheap", cheap)):
        parts = []
        for number, start in enumerate(range(0, len(ids), PART_ROWS)):
            here = slice(start, start + PART_ROWS)
            columns = {
                "sample_id": pa.array(ids[here]),
                "width": pa.array(widths[here]),
                "height": pa.array(np.full(len(ids[here]), 600)),
                "phash": pa.array(hashes[here]),
                "sha256": pa.array(ids[here]),
                "error": pa.nulls(len(ids[here]), ERROR_TYPE),
            }
            empty = {f.name: pa.nulls(len(ids[here]), f.type) for f in schema}
            rows = pa.table({name: columns.get(name, empty[name]) for name in schema.names})
            file = f"v-1/part-{number:05d}.parquet"
            storage.write_part(f"{table}/{file}", rows, schema, "sample_id")
            parts.append(Part(file, len(rows)))
        records.append(TableRecord(table, table, table, "sample_id", tuple(parts)))
    samples, scores = records
    sources = (Source(name="some", kind="folder", path="."),)
    return tuple(ScoredPart(place, (scores,)) for place in dataset_parts(sources, (samples,)))


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "phase":
        phase(*map(int, rest))
    else:
        {"recall": recall, "search": search}[what](*rest)
