"""Photographs for training and evaluating the tokenizer: draw, decode, hold out, cut, resize.

Training sees random crops at random zoom and ratio; evaluation sees each photograph whole, resized
and centre-cropped to its nearest schedule, as extraction does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra import pixels, schema
from infra.config import ConfigError
from infra.pixels import DecodeError, Pixels
from infra.schedules import Schedule, nearest
from tokenize_offline.decoded_pictures import DecodedPictures, Names
from tokenize_offline.oversampling import Oversample, weigh
from tokenize_offline.picture_sources import SUFFIXES, open_documents, open_files
from tokenize_offline.weighted_draw import WeightedDraw

_MOST_SMALL = 16  # pictures drawn for one crop until one is no smaller than it
_MOST_FAILED = 1_000  # the same until one can be decoded


@dataclass(frozen=True, eq=False)
class Photograph:
    """One decoded picture: RGB, uint8, [H, W, 3]."""

    name: str
    rgb: Pixels


class Pictures(Sequence[Photograph]):
    """n pictures, decoded when they are asked for; safe under threads.

    As a sequence it gives `Photograph`s; a slice of it is a `Pictures`. A picture that cannot be
    decoded raises DecodeError there, and is passed over by `draw` and `decodable`.
    """

    def __init__(
        self,
        decoded: DecodedPictures,
        numbers: NDArray[np.int64],
        weights: NDArray[np.float64],
    ) -> None:
        """Those of ``decoded`` with these numbers, [n], and how often to draw each, [n]."""
        self._decoded, self._numbers, self.weights = decoded, numbers, weights
        self.names: Sequence[str] = Names(decoded.names, numbers)
        self._draw = WeightedDraw(weights, decoded.groups[numbers])

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Photograph: ...

    @overload
    def __getitem__(self, index: slice) -> "Pictures": ...

    def __getitem__(self, index: int | slice) -> "Photograph | Pictures":
        if isinstance(index, slice):
            return Pictures(self._decoded, self._numbers[index], self.weights[index])
        return Photograph(self.names[index], self.rgb(index))

    def __iter__(self) -> Iterator[Photograph]:
        return (self[index] for index in range(len(self)))

    @property
    def group_bytes(self) -> int:
        """Of the encoded pictures in a row group of documents, on average; 0: there is none."""
        return self._decoded.group_bytes

    @cached_property
    def identity(self) -> str:
        """Digest of names and weights, in order: what chance draws from."""
        digest = blake2b(self.weights.tobytes(), digest_size=16)
        for name in self.names:
            encoded = name.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()

    def rgb(self, index: int) -> Pixels:
        """The picture, [H, W, 3], read-only; raises DecodeError."""
        return self._decoded.rgb(int(self._numbers[index]))

    def where(self, kept: NDArray[np.bool_]) -> "Pictures":
        """Those that ``kept``, [n], is true for."""
        return Pictures(self._decoded, self._numbers[kept], self.weights[kept])

    def decodable(self) -> Iterator[Photograph]:
        """Those that can be decoded, one after the other; the log names the others."""
        for index in range(len(self)):
            try:
                photo = self[index]
            except DecodeError:
                continue
            yield photo

    def some(self, count: int, seed: int) -> "Pictures":
        """``count`` of them, or all, in their order; by hashes of their names."""
        places = np.array([schema.uniform(f"some {name}", seed) for name in self.names])
        chosen = np.zeros(len(self), bool)
        chosen[np.argsort(places, kind="stable")[:count]] = True
        return self.where(chosen)

    def draw(
        self,
        rng: np.random.Generator,
        size: tuple[int, int] | None = None,
        near: np.random.Generator | None = None,
    ) -> Photograph:
        """A picture, by the weights; a function of the generators' states alone.

        Of documents a picture costs the reading of its row group. So ``near`` draws the row group,
        by its weight, and ``rng`` the picture in it: calls with equal states of ``near`` share row
        groups, and the picture is still drawn by the weights. Files count as one group. Without
        ``near``, or documents, ``rng`` draws the picture among all.

        One that cannot be decoded is passed over for the next one drawn, so that the others keep
        their shares. So are, with ``size`` (height, width), pictures that would have to be enlarged
        to cover it; if 16 would, the first of them is taken. Raises ConfigError when 1,000 cannot
        be decoded.
        """
        small: list[int] = []
        for _ in range(_MOST_FAILED + _MOST_SMALL):
            index = self.draw_index(rng, near)
            try:
                if size is not None and self._enlargement(index, size) > 1:
                    small.append(index)
                    if len(small) < _MOST_SMALL:
                        continue
                    index = small[0]
                return self[index]
            except DecodeError:
                small = [other for other in small if other != index]
        raise ConfigError(
            f"{_MOST_FAILED:,} pictures drawn in a row cannot be decoded: see the log, and check "
            "the folders and tables they come from"
        )

    def draw_index(self, rng: np.random.Generator, near: np.random.Generator | None = None) -> int:
        """The index of a picture, as `draw` does; whether it can be decoded is not asked."""
        return self._draw.index(rng, near)

    def _enlargement(self, index: int, size: tuple[int, int]) -> float:
        return self._decoded.enlargement(int(self._numbers[index]), size)


def open_pictures(
    images: Sequence[str | Path] = (),
    documents: Sequence[str] = (),
    *,
    short_side: int,
    exclude: Sequence[str] = (),
    oversample: Sequence[Oversample] = (),
    log: Callable[[str], None] = print,
    cache_bytes: int = 2**30,
) -> Pictures:
    """The pictures of folders and files, then those of documents tables; none is decoded yet.

    ``images``: see `picture_sources.open_files`; ``documents``: `picture_sources.open_documents`.
    ``short_side``: larger pictures are reduced to it. ``exclude``: patterns of file names to leave
    out. ``log`` is told, from any thread, of each picture that turns out not to be decodable.
    ``cache_bytes``: how much of decoded pictures is kept, and as much of encoded row groups. Raises
    ConfigError for a missing path or table, a mistake in ``oversample``, or when nothing is left.
    """
    sources = (open_files(images, exclude), open_documents(documents))
    decoded = DecodedPictures(sources, short_side, cache_bytes, log)
    if not len(decoded.names):
        raise ConfigError(
            f"no picture in {', '.join(map(str, [*images, *documents]))}: name folders of "
            f"{', '.join(sorted(SUFFIXES))} files or tables of documents, and check exclude"
        )
    weights = weigh(decoded.names, oversample)
    return Pictures(decoded, np.arange(len(weights)), weights)


def split(pictures: Pictures, pattern: str, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """(training, held out): ``share`` of the pictures whose name fits ``pattern`` are held out.

    By a hash of the name, so a picture stays on its side whatever else there is.
    """
    held = np.array(
        [fnmatch(name, pattern) and schema.uniform(name, seed) < share for name in pictures.names],
        bool,
    )
    return pictures.where(~held), pictures.where(held)


def draw_crop(
    pictures: Pictures,
    rng: np.random.Generator,
    schedule: Schedule,
    level: int,
    near: np.random.Generator | None = None,
) -> Pixels:
    """A random crop of a picture drawn at random, as `random_crop` gives it, for ``level``.

    ``near``: see `Pictures.draw`.

    Extraction enlarges nothing. So above level 256 a picture too small for the crop is taken only
    if none of 16 drawn is large enough. At level 256 few are too small, and those by little.
    """
    size = schedule.image_size(level)
    return random_crop(pictures.draw(rng, size if level > 256 else None, near), size, rng)


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
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
