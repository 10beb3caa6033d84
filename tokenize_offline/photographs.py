"""Photographs for training and evaluating the tokenizer: read, hold out, cut, resize.

Training sees random crops at random zoom and ratio; evaluation sees each photograph whole, resized
and centre-cropped to its nearest schedule, as extraction does.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infra import pixels, schema
from infra.config import ConfigError
from infra.pixels import Pixels
from infra.schedules import Schedule, nearest

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"))


@dataclass(frozen=True, eq=False)
class Photograph:
    """One decoded picture: RGB, uint8, [H, W, 3]."""

    name: str
    rgb: Pixels


def read_photographs(
    sources: Sequence[str | Path],
    short_side: int,
    exclude: Sequence[str] = (),
) -> list[Photograph]:
    """Every picture of the folders and files, sorted by name, the same bytes only once.

    ``short_side``: larger pictures are reduced to it. ``exclude``: patterns of file names to leave
    out. Files that cannot be decoded are skipped. Raises ConfigError for a missing path or when
    nothing is left.
    """
    paths: list[Path] = []
    for source in map(Path, sources):
        if not source.exists():
            raise ConfigError(f"images: {source} does not exist: give folders or files of pictures")
        paths += [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    photographs, seen = [], set()
    for path in sorted(paths, key=lambda p: (p.name, str(p))):
        if path.suffix.lower() not in SUFFIXES or any(fnmatch(path.name, e) for e in exclude):
            continue
        data = path.read_bytes()
        identity = hashlib.sha256(data).digest()
        if identity in seen:
            continue
        seen.add(identity)
        try:
            rgb = pixels.decode(data, short_side).rgb
        except pixels.DecodeError:
            continue
        photographs.append(Photograph(path.name, rgb))
    if not photographs:
        raise ConfigError(f"images: no picture in {', '.join(map(str, sources))}")
    return photographs


def split(
    photographs: Sequence[Photograph],
    pattern: str,
    share: float,
    seed: int,
) -> tuple[list[Photograph], list[Photograph]]:
    """(training, held out): ``share`` of the files whose name fits ``pattern`` are held out.

    By a hash of the name, so a photograph stays on its side whatever else is in the folder.
    """
    held = [
        fnmatch(photo.name, pattern) and schema.uniform(photo.name, seed) < share
        for photo in photographs
    ]
    training = [photo for photo, out in zip(photographs, held, strict=True) if not out]
    return training, [photo for photo, out in zip(photographs, held, strict=True) if out]


def random_crop(photo: Photograph, size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """A crop of random place, zoom and mirroring, resized to ``size``: [height, width, 3].

    Nothing is enlarged unless the photograph is smaller than ``size``.
    """
    height, width = photo.rgb.shape[:2]
    largest = min(height / size[0], width / size[1])
    zoom = float(np.exp(rng.uniform(0, np.log(largest)))) if largest > 1 else largest
    h, w = max(1, int(size[0] * zoom)), max(1, int(size[1] * zoom))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    crop = photo.rgb[top : top + h, left : left + w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return pixels.resize_crop(np.ascontiguousarray(crop), *size)[0]


def whole(photo: Photograph, level: int) -> tuple[Schedule, Pixels]:
    """The photograph's schedule, and the photograph at ``level`` as extraction will see it."""
    schedule = nearest(*photo.rgb.shape[:2])
    return schedule, pixels.resize_crop(photo.rgb, *schedule.image_size(level))[0]


def to_unit(images: Sequence[Pixels]) -> Tensor:
    """Pictures [H, W, 3] of one size -> [B, 3, H, W] in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1  # channels last in memory, which convolutions prefer


def to_pixels(images: Tensor) -> Pixels:
    """[B, 3, H, W] in [-1, 1] -> [B, H, W, 3], clipped and rounded."""
    scaled = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()
