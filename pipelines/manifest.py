"""The manifest: one row of numbers per slice of a document to pack, on disk, in the order to pack.

    tokens tables -> parts of `packing.plan.MANIFEST` (one Ray task per some 260,000 documents)
                  -> streams of one component each, sorted by DuckDB on disk (`ordered`)

A part counts once it is there under its name, so that a killed run goes on. Nothing here holds more
than a part, or than DuckDB is given.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra import catalog
from infra.config import ConfigError
from infra.storage import Storage
from packing.plan import MANIFEST
from pipelines.manifest_rows import Limits, manifest_rows
from pipelines.pack_phase import PackComponent, token_ranges
from pipelines.progress import Progress
from pipelines.selection import copies_of
from pipelines.tasks import each

PART_ROWS = 1 << 18  # documents of the tokens behind one part: it takes some 30 MB in memory
BATCH_ROWS = 1 << 16  # of a stream

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Manifest:
    """How the rows of a manifest come about, and where its parts are (in ``folder``)."""

    folder: str
    components: tuple[PackComponent, ...]
    limits: Limits

    def parts(self, component: int, epoch: int) -> list[str]:
        """The files of an epoch of a component."""
        folder = f"{self.folder}/component-{component:02d}-epoch-{epoch:02d}"
        ranges = token_ranges(self.components[component].tokens, PART_ROWS)
        return [f"{folder}/part-{number:05d}.parquet" for number in range(len(ranges))]


@dataclass(frozen=True)
class Held:
    """What an epoch of a component holds: rows that fit a pack, and those that do not."""

    num_rows: int
    num_tokens: int
    num_rejected: int


def write_manifest(
    con: duckdb.DuckDBPyConnection, storage: Storage, manifest: Manifest, epochs: Sequence[int]
) -> None:
    """Write the parts that are not there yet of so many ``epochs`` of each component.

    ``con`` is what `selection.select` has filled. Raises ConfigError where replicas are not of the
    same documents.
    """
    missing = []
    for component, needed in enumerate(epochs):
        ranges = token_ranges(manifest.components[component].tokens, PART_ROWS)
        for epoch in range(needed):
            paths = manifest.parts(component, epoch)
            missing += [(component, epoch, paths[n], ranges[n]) for n in _missing(storage, paths)]
    if not missing:
        return

    def arguments() -> Iterator[tuple[object, ...]]:
        for component, epoch, path, parts in missing:
            of = manifest.components[component]
            copies = copies_of(con, of, component, parts)
            yield storage, path, manifest.limits, of, component, epoch, parts, copies

    progress = Progress("manifest", len(missing), "parts")
    for problem in each(_write_part, arguments()):
        if problem:
            raise ConfigError(problem)
        progress.add(1)
    progress.close()


def hold(
    con: duckdb.DuckDBPyConnection, storage: Storage, manifest: Manifest, component: int, epoch: int
) -> Held:
    """What an epoch of a component holds."""
    scan = catalog.scan_files(storage, manifest.parts(component, epoch))
    [row] = con.execute(
        "SELECT count(*) FILTER (reason IS NULL), "
        "coalesce(sum(num_tokens) FILTER (reason IS NULL), 0)::BIGINT, count(reason) "
        f"FROM {scan}"
    ).fetchall()
    return Held(*row)


def ordered(
    con: duckdb.DuckDBPyConnection,
    storage: Storage,
    manifest: Manifest,
    component: int,
    epochs: int,
) -> Iterator[pa.Table]:
    """The rows of a component that fit a pack, sorted by epoch, key, doc_id, copy and piece.

    An epoch is sorted when its first row is asked for. ``con`` may serve several streams at a time,
    which share its memory.
    """
    for epoch in range(epochs):
        scan = catalog.scan_files(storage, manifest.parts(component, epoch))
        with con.cursor() as cursor:
            rows = cursor.sql(
                f"SELECT * FROM {scan} WHERE reason IS NULL ORDER BY key, doc_id, copy, piece"
            )
            for batch in rows.to_arrow_reader(BATCH_ROWS):
                yield pa.Table.from_batches([batch]).cast(MANIFEST)


def take(stream: Iterator[pa.Table], num_tokens: int) -> Iterator[pa.Table]:
    """The first rows of a stream that hold ``num_tokens``; the last copy with all its pieces."""
    left = num_tokens
    for table in stream:
        after = np.cumsum(table["num_tokens"].to_numpy())
        rows = min(int(np.searchsorted(after, left)) + 1, len(table)) if left > 0 else 0
        # Pieces of a copy stand together, and its first one is 0.
        starts = np.flatnonzero(table["piece"].to_numpy()[rows:] == 0)
        end = rows + int(starts[0]) if len(starts) else len(table)
        if end:
            yield table.slice(0, end)
            left -= int(after[end - 1])
        if left <= 0 and end < len(table):
            return


def rejected(
    con: duckdb.DuckDBPyConnection,
    storage: Storage,
    manifest: Manifest,
    epochs: Sequence[int],
) -> Iterator[pa.Table]:
    """The rows that fit no pack, of so many epochs of each component, sorted as `ordered` sorts."""
    for component, needed in enumerate(epochs):
        for epoch in range(needed):
            scan = catalog.scan_files(storage, manifest.parts(component, epoch))
            rows = con.sql(
                f"SELECT * FROM {scan} WHERE reason IS NOT NULL ORDER BY key, doc_id, copy, piece"
            )
            for batch in rows.to_arrow_reader(BATCH_ROWS):
                yield pa.Table.from_batches([batch]).cast(MANIFEST)


def _write_part(
    storage: Storage,
    path: str,
    limits: Limits,
    of: PackComponent,
    component: int,
    epoch: int,
    parts: range,
    copies: list[Ints] | None,
) -> str | None:
    """Write one part; returns what is wrong with the replicas, in one line, if something is."""
    tables = []
    for place, part in enumerate(parts):
        times = None if copies is None else copies[place]
        try:
            rows = manifest_rows(storage, of, component, part, times, epoch, limits)
        except ConfigError as error:  # told by the driver: Ray would wrap it in its traceback
            return str(error)
        tables.append(rows)
    _write(storage, path, pa.concat_tables(tables))
    return None


def _write(storage: Storage, path: str, rows: pa.Table) -> None:
    """Write a part in one piece: it is there as a whole or not at all."""
    buffer = io.BytesIO()
    bare = pa.schema([field.remove_metadata() for field in MANIFEST])
    pq.write_table(rows.cast(bare).combine_chunks(), buffer, compression="zstd")
    storage.write(path, buffer.getvalue())


def _missing(storage: Storage, parts: Sequence[str]) -> list[int]:
    """Numbers of the parts, all of one folder, that are not there yet."""
    there = set(storage.names(parts[0].rpartition("/")[0])) if parts else set()
    return [number for number, path in enumerate(parts) if path.rpartition("/")[2] not in there]
