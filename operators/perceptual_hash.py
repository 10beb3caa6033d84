"""A 64-bit hash that near-duplicates share: re-encoded, resized, slightly edited pictures.

The DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions"
(2010), as in the pHash library: 32 x 32 grey, two-dimensional DCT-II, the 8 x 8 lowest frequencies
without the constant row and column, each compared with their median.
"""

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.pixels import Pixels, pictures_of
from infra.schema import column

_SIDE = 32
_FREQUENCIES = np.arange(1, 9)
_BASIS = np.cos(np.pi / _SIDE * np.outer(_FREQUENCIES, np.arange(_SIDE) + 0.5))


@dataclass(frozen=True)
class PerceptualHash:
    """Write ``phash``, to be compared by Hamming distance (DuckDB: ``bit_count(xor(a, b))``).

    Re-encoding and resizing change a few bits of 64, different photographs about half. Cropping,
    turning and mirroring give another hash. A picture without any detail hashes to 0.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [column("phash", pa.uint64(), "bits", "DCT hash; near-duplicates differ in few bits")],
    )
    version: ClassVar[int] = 1

    def __call__(self, batch: pa.Table) -> pa.Table:
        hashes = [None if p is None else perceptual_hash(p) for p in pictures_of(batch)]
        return batch.append_column(self.writes.field("phash"), pa.array(hashes, pa.uint64()))


def perceptual_hash(rgb: Pixels) -> int:
    """The hash of one picture [h, w, 3] uint8: bit 63 is the lowest frequency pair, row-major."""
    coefficients = _BASIS @ _thumbnail(rgb) @ _BASIS.T
    # Rounding makes the coefficients of a flat picture exactly 0 instead of noise, and the bits
    # equal on processors whose sums round differently.
    coefficients = np.round(coefficients, 3)
    bits = coefficients > np.median(coefficients)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _thumbnail(rgb: Pixels) -> NDArray[np.float64]:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    # OpenCV halves thirty times as fast as it reduces by other factors; an odd last row is nothing
    # in 32 x 32.
    while min(grey.shape) >= 4 * _SIDE:
        h, w = grey.shape[0] // 2, grey.shape[1] // 2
        grey = cv2.resize(grey[: 2 * h, : 2 * w], (w, h), interpolation=cv2.INTER_AREA)
    return cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
