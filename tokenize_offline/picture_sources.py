"""Where training pictures lie encoded: image files, and the image segments of documents tables.

A source knows names and sizes of its pictures in Arrow and NumPy columns, some 60 bytes (image
files: and the path) each, and reads any one of them. Files are not read when a source is opened,
but for those of the same size, which may be the same; of documents all but the pictures is.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra import runs
from infra.config import ConfigError
from infra.pixels import DecodeError
from infra.storage import Storage
from tokenize_offline.byte_cache import ByteCache

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"))
_SEGMENT = "segments.list.element."


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """n files."""

    names: pa.Array  # large_string [n]: file names
    paths: pa.Array  # large_binary [n]: a path need not be UTF-8
    group_bytes: int = 0  # there are no row groups

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Height and width of each, [n, 2]; 0: not known before it is decoded."""
        return np.zeros((len(self.names), 2), np.int32)

    @property
    def groups(self) -> NDArray[np.int32]:
        """[n]: each file is read alone, so there is but one group to draw from."""
        return np.zeros(len(self.names), np.int32)

    def read(self, number: int, cache: ByteCache) -> bytes:
        """The encoded picture; raises DecodeError for a file that cannot be read."""
        try:
            return Path(self.place(number)).read_bytes()
        except OSError as error:
            raise DecodeError("unreadable", str(error.strerror)) from error

    def place(self, number: int) -> str:
        """The path."""
        return os.fsdecode(self.paths[number].as_py())


def open_files(sources: Sequence[str | Path], exclude: Sequence[str]) -> ImageFiles:
    """All pictures in folders and files, by suffix, sorted by name, the same bytes only once.

    ``exclude``: patterns of file names to leave out. Raises ConfigError for a missing path.
    """
    paths: list[Path] = []
    for source in map(Path, sources):
        if not source.exists():
            raise ConfigError(f"images: {source} does not exist: give folders or files of pictures")
        paths += [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    paths = [
        path
        for path in sorted(paths, key=lambda p: (p.name, str(p)))
        if path.suffix.lower() in SUFFIXES and not any(fnmatch(path.name, e) for e in exclude)
    ]
    paths = _once(paths)
    names = [os.fsencode(path.name).decode(errors="backslashreplace") for path in paths]
    encoded = [os.fsencode(path) for path in paths]
    return ImageFiles(pa.array(names, pa.large_string()), pa.array(encoded, pa.large_binary()))


def _once(paths: Sequence[Path]) -> list[Path]:
    """The first file of each content; only files of equal size are read for it."""
    sizes = [path.stat().st_size for path in paths]
    counts, seen, first = Counter(sizes), set[bytes](), []
    for path, size in zip(paths, sizes, strict=True):
        if counts[size] > 1:
            try:
                with path.open("rb") as file:
                    identity = hashlib.file_digest(file, "sha256").digest()
            except OSError as error:
                raise ConfigError(f"images: {path} cannot be read: {error.strerror}") from None
            if identity in seen:
                continue
            seen.add(identity)
        first.append(path)
    return first


@dataclass(frozen=True, eq=False)
class DocumentImages:
    """n image segments of documents tables; row groups are numbered through all their files."""

    names: pa.Array  # large_string [n]: sample_ids
    sizes: NDArray[np.int32]  # [n, 2]: height and width
    groups: NDArray[np.int32]  # [n]: the row group that holds it ...
    positions: NDArray[np.int32]  # ... [n]: and its place among that row group's segments
    files: tuple[tuple[Storage, str], ...]
    first_groups: NDArray[np.int64]  # of each file, [files]
    group_bytes: int  # of the encoded pictures in a row group, on average

    def read(self, number: int, cache: ByteCache) -> bytes:
        """The encoded picture.

        Its row group of 64 documents is read and kept in ``cache``: in table order each is read
        once; at random each picture costs one, so draw several from each (`Pictures.draw`).
        """
        group = int(self.groups[number])
        images = cache.fetch(("row group", group), lambda: self._read_group(group, cache))
        return images[int(self.positions[number])].as_py()

    def place(self, number: int) -> str:
        """File and sample."""
        storage, path = self.files[self._file(int(self.groups[number]))]
        return f"{storage.path(path)}: sample {self.names[number]}"

    def _file(self, group: int) -> int:
        return int(np.searchsorted(self.first_groups, group, side="right")) - 1

    def _read_group(self, group: int, cache: ByteCache) -> tuple[pa.Array, int]:
        file = self._file(group)
        storage, path = self.files[file]
        with storage.open(path) as stream:
            footer = cache.get(("footer", file))
            parquet = pq.ParquetFile(stream, metadata=footer)
            if footer is None:
                # Parsed it takes several times its size in the file.
                size = 4 * parquet.metadata.serialized_size
                cache.put(("footer", file), parquet.metadata, size)
            row_group = group - int(self.first_groups[file])
            column = parquet.read_row_group(row_group, columns=[_SEGMENT + "image"])["segments"]
        images = pc.struct_field(pc.list_flatten(column), "image").combine_chunks()
        return images, images.nbytes


def open_documents(tables: Sequence[str]) -> DocumentImages:
    """The images of all documents in ``tables``, ``WORKSPACE/documents/NAME``, in table order.

    A sample counts once, with the images of the first document that shows it, however many tasks
    make documents of it. Failed documents have no images. Raises ConfigError for a table that is
    missing or no documents table.
    """
    files = [file for table in tables for file in _files(table)]
    with ThreadPoolExecutor(8) as pool:  # waiting for a store, mostly
        scans = list(pool.map(_scan, files))
    found, first_groups, num_rows, num_groups = [_EMPTY], [], 0, 0
    for scan in scans:
        rows, groups = scan.pictures["row"], scan.pictures["group"]
        scanned = scan.pictures.set_column(3, "row", pc.add(rows, num_rows))
        found.append(scanned.set_column(4, "group", pc.add(groups, num_groups)))
        first_groups.append(num_groups)
        num_rows += scan.num_rows
        num_groups += scan.num_groups
    pictures = pa.concat_tables(found)
    documents = pictures["row"].to_numpy()
    samples = pictures["sample_id"].combine_chunks()
    of_sample = samples.dictionary_encode().indices.to_numpy()
    first = np.full(of_sample.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, of_sample, documents)
    kept = np.flatnonzero(first[of_sample] == documents)
    sizes = np.stack([pictures[side].to_numpy() for side in ("height", "width")], axis=1)
    return DocumentImages(
        samples.take(pa.array(kept)),
        sizes[kept],
        pictures["group"].to_numpy()[kept].astype(np.int32),
        pictures["position"].to_numpy()[kept].astype(np.int32),
        tuple(files),
        np.array(first_groups, np.int64),
        sum(scan.image_bytes for scan in scans) // max(1, num_groups),
    )


def _files(table: str) -> list[tuple[Storage, str]]:
    root, _, name = table.rstrip("/").rpartition("/")
    storage = Storage(root or ".")
    storage.check()
    record = runs.load_record(storage, name)
    if record is None or not record.table.startswith("documents/"):
        raise ConfigError(
            f"documents: {table} is no finished table of documents: give WORKSPACE/documents/NAME"
        )
    return [(storage, f"{name}/{part.file}") for part in record.parts]


@dataclass(frozen=True, eq=False)
class _Scan:
    """What one file says of its image segments."""

    pictures: pa.Table
    num_rows: int
    num_groups: int
    image_bytes: int


_EMPTY = pa.schema(
    [
        ("sample_id", pa.large_string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("row", pa.int64()),
        ("group", pa.int64()),
        ("position", pa.int64()),
    ]
).empty_table()


def _scan(file: tuple[Storage, str]) -> _Scan:
    storage, path = file
    leaves = [_SEGMENT + name for name in ("kind", "sample_id", "height", "width")]
    with storage.open(path) as stream:
        parquet = pq.ParquetFile(stream, pre_buffer=True)
        metadata = parquet.metadata
        lists = parquet.read(columns=leaves)["segments"].combine_chunks()
    ends = np.cumsum([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)])
    segments, rows = lists.flatten(), pc.list_parent_indices(lists).to_numpy()
    groups = np.searchsorted(ends, rows, side="right")
    positions = np.arange(len(rows)) - np.searchsorted(groups, groups)
    pictures = pa.table(
        {
            "sample_id": segments.field("sample_id").cast(pa.large_string()),
            "height": segments.field("height"),
            "width": segments.field("width"),
            "row": rows.astype(np.int64),
            "group": groups.astype(np.int64),
            "position": positions.astype(np.int64),
        }
    )
    shown = pc.equal(segments.field("kind"), "image")
    groups_of_file = map(metadata.row_group, range(metadata.num_row_groups))
    columns = (
        group.column(place) for group in groups_of_file for place in range(group.num_columns)
    )
    images = (column for column in columns if column.path_in_schema == _SEGMENT + "image")
    image_bytes = sum(column.total_uncompressed_size for column in images)
    return _Scan(pictures.filter(shown), metadata.num_rows, metadata.num_row_groups, image_bytes)
