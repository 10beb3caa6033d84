"""Pictures of some sources, decoded when asked for; what is decoded last is kept for next time."""

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra import pixels
from infra.pixels import DecodeError, Pixels
from tokenize_offline.byte_cache import ByteCache
from tokenize_offline.picture_sources import DocumentImages, ImageFiles

_NAMED = 100  # of the pictures that cannot be decoded; the log counts the others


class Names(Sequence[str]):
    """Entries of an Arrow column of text, as strings that are made when they are asked for."""

    def __init__(self, column: pa.ChunkedArray, numbers: NDArray[np.int64]) -> None:
        self._column, self._numbers = column, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Names": ...

    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return Names(self._column, self._numbers[index])
        return self._column[int(self._numbers[index])].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 65_536):
            numbers = pa.array(self._numbers[start : start + 65_536])
            yield from self._column.take(numbers).to_pylist()


class DecodedPictures:
    """The n pictures of all sources, one source after the other; safe under threads."""

    def __init__(
        self,
        sources: Sequence[ImageFiles | DocumentImages],
        short_side: int,
        cache_bytes: int,
        log: Callable[[str], None],
    ) -> None:
        """``short_side``: larger pictures are reduced to it, in pixels.

        ``cache_bytes``: of decoded pictures, and as many of encoded row groups.
        """
        self.names = pa.chunked_array([source.names for source in sources], pa.large_string())
        self.failed: dict[int, tuple[str, str]] = {}  # type and message of the DecodeError
        self._sources, self._short_side, self._log = sources, short_side, log
        self._ends = np.cumsum([len(source.names) for source in sources])
        self._sizes = np.concatenate([_reduced(source.sizes, short_side) for source in sources])
        self.group_bytes = max(source.group_bytes for source in sources)
        self.groups = _groups(sources)  # [n]: what is read together, with all files in one
        self._cache = ByteCache(cache_bytes)
        # Apart, so that decoded pictures do not displace the row groups that are drawn from.
        self._encoded = ByteCache(cache_bytes)

    def rgb(self, number: int) -> Pixels:
        """The picture, [H, W, 3], read-only; raises DecodeError, and logs it the first time.

        A store of documents that cannot be read raises what its client raises.
        """
        if number in self.failed:
            raise DecodeError(*self.failed[number])
        kept: Pixels | None = self._cache.get(number)
        if kept is not None:
            return kept
        part = int(np.searchsorted(self._ends, number, side="right"))
        source = self._sources[part]
        inner = number - (int(self._ends[part - 1]) if part else 0)
        try:
            data = source.read(inner, self._encoded)
            rgb = pixels.decode(data, self._short_side).rgb
        except DecodeError as error:
            self._fail(number, source.place(inner), error)
            raise
        rgb.flags.writeable = False  # all who ask for it share it
        self._cache.put(number, rgb, rgb.nbytes)
        if not self._sizes[number].all():
            self._sizes[number] = rgb.shape[:2]
        return rgb

    def enlargement(self, number: int, size: tuple[int, int]) -> float:
        """How much the picture must grow to cover ``size`` (height, width); 1 or less: not at all.

        One of unknown size is decoded for it; raises DecodeError.
        """
        if not self._sizes[number].all():
            self.rgb(number)
        height, width = self._sizes[number].tolist()
        return max(size[0] / height, size[1] / width)

    def _fail(self, number: int, place: str, error: DecodeError) -> None:
        if number in self.failed:  # by another thread at the same time
            return
        self.failed[number] = error.type, str(error)
        count = len(self.failed)
        if count <= _NAMED:
            self._log(f"{place} is left out, {error.type}: {error}")
        elif count % _NAMED == 0:
            self._log(f"{count:,} pictures are left out by now, the last {place}")


def _groups(sources: Sequence[ImageFiles | DocumentImages]) -> NDArray[np.int32]:
    first, groups = 0, []
    for source in sources:
        groups.append(source.groups + np.int32(first))
        first += 1 + int(source.groups.max(initial=0))
    return np.concatenate(groups)


def _reduced(sizes: NDArray[np.int32], short_side: int) -> NDArray[np.int32]:
    """Heights and widths, [n, 2], after reduction to the short side, as decoding rounds; 0: 0."""
    short = np.maximum(sizes.min(axis=1, initial=short_side, keepdims=True), 1).astype(np.int64)
    return np.where(short > short_side, -(-sizes * short_side // short), sizes).astype(np.int32)
