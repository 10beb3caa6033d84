"""The demo's photographs as a folder source: pictures with sidecar captions, good and bad ones.

The photographs lie in the wheels of scikit-image and scikit-learn, so nothing is downloaded. To
have a few hundred samples, crops of the large ones enter as samples of their own; and since real
sources are never clean, so do damaged, blurred, tiny, oddly encoded and repeated files.
"""

import importlib.metadata
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from infra.config import ConfigError
from infra.schema import digest
from pipelines.demo_photographs import (
    PACKAGES,
    PHOTOGRAPHS,
    Box,
    Photograph,
    crop_boxes,
    describe,
    read_photographs,
)

VERSION = 1
MARKER = ".complete.json"


@dataclass(frozen=True)
class Sample:
    """One file to be, with its sidecar: ``kind`` says how it was made of which box."""

    name: str
    data: bytes
    kind: str
    of: Photograph | None = None
    caption: str = ""
    box: Box | None = None

    def sidecar(self) -> bytes | None:
        """The sidecar's JSON; None for files that have none."""
        if self.of is None:
            return None
        facts = {
            "caption": self.caption or self.of.caption,
            "attribution": self.of.attribution,
            "licence": self.of.licence,
            "package": self.of.package,
            "original": self.of.file,
            "kind": self.kind,
            "box": self.box,
        }
        return json.dumps(facts, ensure_ascii=False, indent=1).encode() + b"\n"


def write_demo_source(folder: str | Path) -> None:
    """Write the pictures and their sidecars into ``folder``; nothing to do where they are complete.

    The folder appears whole or not at all, and its bytes are a function of this file, of
    photographs.yaml and of the installed packages. Raises ConfigError where a package is missing
    or ``folder`` holds files of somebody else's.
    """
    write_folder(Path(folder), fingerprint(VERSION, (*PACKAGES, "pillow")), _files())


def _files() -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file of the source."""
    for sample in make_samples(read_photographs()):
        yield sample.name, sample.data
        sidecar = sample.sidecar()
        if sidecar is not None:
            yield str(Path(sample.name).with_suffix(".json")), sidecar
    # A description that a broken download cut short: its sample fails, the others do not.
    yield "motorcycle_broken_sidecar.json", b'{"caption": "A red Yam'


def write_folder(folder: Path, stamp: str, files: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, content) of all ``files`` into ``folder``, whole or not at all.

    Where it is complete and was written under this stamp (see `fingerprint`), no file is asked for.
    Raises ConfigError where ``folder`` holds files of somebody else's.
    """
    found = sorted(os.listdir(folder)) if folder.exists() else []
    if found:
        written_as, names = _read_marker(folder)
        strange = sorted(set(found) - set(names))
        if strange:
            raise ConfigError(f"{folder} holds {strange[0]}, not of the demo: name another folder")
        if written_as == stamp and found == names:
            return
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():  # of an interrupted run
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    for name, content in files:
        (partial / name).write_bytes(content)
    marker = {"fingerprint": stamp, "files": sorted([*os.listdir(partial), MARKER])}
    (partial / MARKER).write_text(json.dumps(marker), encoding="utf-8")
    if found:
        shutil.rmtree(folder)
    partial.replace(folder)


def make_samples(photographs: Iterable[Photograph]) -> Iterator[Sample]:
    """Every file of the source: the originals as they are, their crops, and the bad company."""
    by_stem = {}
    for photograph in photographs:
        data = photograph.read()
        by_stem[photograph.stem] = (photograph, data)
        yield Sample(photograph.file, data, "original", photograph)
        picture = Image.open(io.BytesIO(data))
        boxes = [box for size in photograph.crops for box in crop_boxes(picture.size, size)]
        for number, box in enumerate(boxes):
            name = f"{photograph.stem}_crop_{number:02d}.jpg"
            crop = _jpeg(picture.crop(box))
            yield Sample(name, crop, "crop", photograph, describe(photograph, box), box)
    yield from _copies(by_stem)
    yield from _damaged(by_stem)


Sources = dict[str, tuple[Photograph, bytes]]


def _copies(sources: Sources) -> Iterator[Sample]:
    """Readable files that a curator must find: repeated, blurred, tiny or oddly encoded."""
    for stem in ("astronaut", "china", "flower", "rocket"):
        of, data = sources[stem]
        blurred = Image.open(io.BytesIO(data)).convert("RGB").filter(ImageFilter.GaussianBlur(6))
        caption = f"A badly blurred copy: {of.caption}"
        yield Sample(f"{stem}_blurred.jpg", _jpeg(blurred), "blurred", of, caption)
    for stem, side in (("chelsea", 64), ("rocket", 96), ("flower", 48)):
        of, data = sources[stem]
        tiny = Image.open(io.BytesIO(data))
        tiny.thumbnail((side, side))
        yield Sample(f"{stem}_tiny.jpg", _jpeg(tiny), "tiny", of)

    of, data = sources["coffee"]
    yield Sample("coffee copy [1] – café 50%.png", data, "duplicate", of)
    yield Sample("IMG_0001.png", sources["astronaut"][1], "duplicate")  # without any caption
    coffee = Image.open(io.BytesIO(data))
    yield Sample("coffee_cmyk.jpg", _jpeg(coffee.convert("CMYK")), "cmyk", of)

    of, data = sources["china"]
    china = Image.open(io.BytesIO(data))
    yield Sample("china_recompressed.jpg", _jpeg(china, quality=40), "recompressed", of)

    of, data = sources["chelsea"]
    lying = Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6  # orientation: to be turned by 90 degrees clockwise before it is looked at
    yield Sample("chelsea_lying.jpg", _jpeg(lying, exif=exif.tobytes()), "rotated", of)

    of, data = sources["moon"]
    deep = np.asarray(Image.open(io.BytesIO(data))).astype(np.uint16) * 257
    yield Sample("moon_16bit.png", _png(Image.fromarray(deep)), "16 bit", of)


def _damaged(sources: Sources) -> Iterator[Sample]:
    """Files that cannot be used at all; each must end as one failed row."""
    of, data = sources["coffee"]
    whole = _jpeg(Image.open(io.BytesIO(data)))
    yield Sample("coffee_truncated.jpg", whole[: len(whole) // 3], "truncated", of)
    yield Sample("empty.jpg", b"", "empty")
    yield Sample("notes.jpg", b"Remember to ask for the pictures.\n" * 20, "text")
    page = b"<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1></body></html>\n"
    yield Sample("download_error.jpg", page, "text")
    # Promises 60,000 x 60,000 pixels in a hundred bytes: must be refused from the header alone.
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(60_000), 9)), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in parts
    )
    yield Sample("too_many_pixels.png", bomb, "bomb")
    motorcycle = Image.open(io.BytesIO(sources["motorcycle_left"][1]))
    yield Sample("motorcycle_broken_sidecar.jpg", _jpeg(motorcycle), "broken sidecar")


def _jpeg(picture: Image.Image, quality: int = 92, exif: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0, exif=exif)
    return buffer.getvalue()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def fingerprint(version: int, packages: Iterable[str]) -> str:
    """What a demo's files depend on: their maker's version, photographs.yaml and the packages.

    Raises ConfigError where one of these is missing.
    """
    versions = []
    for package in packages:
        try:
            versions.append(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            message = f"the demo's files need {package}: pip install 'nextscale[demo]'"
            raise ConfigError(message) from None
    return digest(str(version), PHOTOGRAPHS.read_text(encoding="utf-8"), *versions)


def _read_marker(folder: Path) -> tuple[str, list[str]]:
    """Fingerprint and files of the demo source in ``folder``; empty where it is none."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return marker["fingerprint"], marker["files"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return "", []
