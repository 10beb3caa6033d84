"""Documents on their way from the tokens to the shards: each table is read once, in its order.

Tokens are sorted by id and packs are in random order, so that a shard's documents come from all
parts. Shards are taken in groups that a worker can hold (`pipelines.shard_groups`), then

    plan -> routes   per block of the plan a file of rows, by the part that has their tokens
    part -> runs     a part, read once, becomes files of some `RUN_BYTES`, ordered by group
    runs -> group    two short reads of every run give the documents of a group (`read_documents`)

All of these are `pipelines.grouped_rows`. A billion documents of 2,000 positions (8 TB of codes in
10,000 parts) make 20,000 runs and 8,000 groups, so 160 million ranges of some 50 KB. A worker holds
three times a run, or a group and a few shards. What is spilled takes as much room as the shards,
until these are done. A file counts once it is there under its name; all are the same bytes whenever
they are written.
"""

from collections import abc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.runs import TableRecord
from infra.schema import TOKEN_SEGMENT
from infra.storage import Storage
from packing.members import SMALL_CODES
from pipelines.grouped_rows import read_group, write_groups
from pipelines.shard_groups import SLICE, Groups, Ints, cut_groups, read_routes, write_routes
from pipelines.tasks import each

RUN_BYTES = 1 << 29  # of documents in memory, before they go to disk
BATCH_ROWS = 256  # of tokens in memory at a time: 3 MB at level 256, 30 MB at level 1024
READS = 16  # at a time, of a worker: a range is short, and a store takes its time to answer

_DOCUMENT = ["doc_id", "task", "source"]
_CODES = ("input_codes", "target_codes")
_SEGMENT = ("kind", "role", "loss", "text_ids", "schedule", "num_scales", *_CODES)
_COLUMNS = [*_DOCUMENT, *(f"segments.list.element.{name}" for name in _SEGMENT)]


def spill(
    storage: Storage,
    folder: str,
    plan: abc.Sequence[str],
    tables: abc.Sequence[abc.Sequence[TableRecord]],
    groups: Groups,
    num_codes: int,
) -> Ints:
    """Write the routes and runs that are not below ``folder`` yet; returns the runs of each part.

    ``tables`` are, per component, its replicas: copy c is of replica c modulo their number.
    Raises ValueError for a code that a tokenizer of ``num_codes`` does not have.
    """
    flat = [table for replicas in tables for table in replicas]
    paths = [table.path(part) for table in flat for part in range(len(table.parts))]
    num_routes = write_routes(storage, folder, plan, tables)
    ended = (name.split("-") for name in storage.names(f"{folder}/ended"))
    num_runs = {int(part): int(count) for part, count in ended}
    missing = [part for part in range(len(paths)) if part not in num_runs]
    words = (
        (storage, folder, part, paths[part], num_routes, groups.starts, num_codes)
        for part in missing
    )
    num_runs |= dict(zip(missing, each(_spill, words), strict=True))
    return np.array([num_runs[part] for part in range(len(paths))], np.int64)


def read_documents(storage: Storage, folder: str, num_runs: Ints, group: int) -> list[pa.Table]:
    """The documents of a group, a table per run that has some, each sorted by pack and position.

    Rows are of tokens, with the segments of the slice alone, and say ``pack``, ``position``,
    ``copy`` and ``first_segment``. ``num_runs`` as `spill` returns it.
    """

    def read(path: str) -> pa.Table | None:
        return read_group(storage, path, group)

    parts = enumerate(num_runs.tolist())
    paths = [_run_path(folder, part, run) for part, count in parts for run in range(count)]
    with ThreadPoolExecutor(READS) as pool:
        return [table for table in pool.map(read, paths) if table is not None]


def _run_path(folder: str, part: int, run: int) -> str:
    return f"{folder}/runs/{part:06d}-{run:04d}"


def _spill(
    storage: Storage,
    folder: str,
    part: int,
    path: str,
    num_routes: int,
    starts: Ints,
    num_codes: int,
) -> int:
    """Read a part once and write its runs; returns how many there are."""
    rows = read_routes(storage, folder, part, num_routes)
    held: list[pa.Table] = []
    num_bytes = num_runs = 0
    slices = _read_slices(storage, path, rows, num_codes) if rows is not None else ()
    for documents in slices:
        held.append(documents)
        num_bytes += documents.nbytes
        if num_bytes >= RUN_BYTES:
            _write_run(storage, _run_path(folder, part, num_runs), held, starts)
            num_bytes, num_runs = 0, num_runs + 1
    if held:
        _write_run(storage, _run_path(folder, part, num_runs), held, starts)
        num_runs += 1
    storage.write(f"{folder}/ended/{part:06d}-{num_runs}", b"")
    return num_runs


def _read_slices(
    storage: Storage, path: str, rows: pa.Table, num_codes: int
) -> abc.Iterator[pa.Table]:
    """The slices of a part that ``rows`` name, at most `BATCH_ROWS` at a time, read in one go."""
    rows = rows.sort_by([(name, "ascending") for name in ("token_row", "pack", "position")])
    wanted = rows["token_row"].to_numpy()
    with storage.open(path) as file:
        parquet = pq.ParquetFile(file)
        first = 0
        for group in range(parquet.num_row_groups):
            stop = first + parquet.metadata.row_group(group).num_rows
            if np.searchsorted(wanted, first) < np.searchsorted(wanted, stop):
                for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=_COLUMNS):
                    here, end = np.searchsorted(wanted, (first, first + len(batch))).tolist()
                    for at in range(here, end, BATCH_ROWS):
                        few = rows.slice(at, min(BATCH_ROWS, end - at))
                        yield _cut_segments(batch, first, few, num_codes)
                    first += len(batch)
            first = stop


def _cut_segments(batch: pa.RecordBatch, first: int, rows: pa.Table, num_codes: int) -> pa.Table:
    """The documents that ``rows`` name, out of a batch that starts at row ``first`` of its part."""
    row, segment, length = (
        rows[name].to_numpy().astype(np.int64)
        for name in ("token_row", "first_segment", "num_segments")
    )
    segments = batch.column("segments")
    offsets = segments.offsets.to_numpy().astype(np.int64)
    start = offsets[row - first] + segment
    beyond = row[start + length > offsets[row - first + 1]]
    if len(beyond):
        raise ValueError(f"row {beyond[0]} of a part lacks segments that the plan names")
    new = np.cumsum([0, *length])
    index = np.repeat(start - new[:-1], length) + np.arange(new[-1])
    values = segments.values.take(pa.array(index)).cast(_segment_type(num_codes))
    table = pa.Table.from_batches([batch.select(_DOCUMENT).take(pa.array(row - first))])
    lists = pa.ListArray.from_arrays(pa.array(new, pa.int32()), values)
    table = table.append_column("segments", lists)
    for name in SLICE:
        table = table.append_column(name, rows[name])
    return table.combine_chunks()


def _segment_type(num_codes: int) -> pa.DataType:
    """Segments as they travel: codes in as few bytes as the shards give them."""
    code = pa.uint16() if num_codes <= SMALL_CODES else pa.uint32()
    return pa.struct(
        [
            (name, pa.list_(code) if name in _CODES else TOKEN_SEGMENT.field(name).type)
            for name in _SEGMENT
        ]
    )


def _write_run(storage: Storage, path: str, held: list[pa.Table], starts: Ints) -> None:
    """Write the tables of ``held``, which is emptied, by group, pack and position."""
    rows = pa.concat_tables(held).combine_chunks()
    held.clear()
    pack = rows["pack"].to_numpy()
    order = np.lexsort((rows["position"].to_numpy(), pack))
    rows = rows.take(pa.array(order))
    group = np.searchsorted(starts, pack[order], side="right") - 1
    write_groups(storage, path, cut_groups(rows, group), len(starts) - 1)
