"""Plan + tokens -> shards and their index, one Ray task per group of shards.

Documents reach their group by `pipelines.shuffle`. A shard's bytes are a function of the plan and
the tokens: neither groups nor workers nor a kill show in them. What is complete is not made again;
what only helped to make it is gone in the end.
"""

import io
import itertools
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.runs import TableRecord
from infra.storage import ROW_GROUP_ROWS, Storage
from packing.cost import Coefficients
from packing.members import Document, from_tokens
from packing.packs import INDEX
from packing.shards import PACK_INDEX, PACKS_PER_SHARD, shard_name, write_shard
from pipelines.progress import Progress
from pipelines.shard_groups import Ints, plan_groups
from pipelines.shuffle import read_documents, spill
from pipelines.tasks import each


@dataclass(frozen=True)
class ShardJob:
    """Which shards to write, and from what.

    ``folder`` takes shards and index; ``plan`` names Parquet files in the workspace with rows of
    `packing.plan.PLAN` of ``num_packs`` packs, 0 and following, none without a document.
    ``tables`` are, per component, its replicas: copy c of a document is read from replica c modulo
    their number. ``num_codes`` is the tokenizer's.
    """

    folder: str
    plan: tuple[str, ...]
    tables: tuple[tuple[TableRecord, ...], ...]
    num_packs: int
    coefficients: Coefficients
    num_codes: int


def write_shards(storage: Storage, job: ShardJob) -> None:
    """Write what is not there yet of the shards, then ``index.parquet``, which tells the end.

    Work goes to a Ray session if there is one. Raises ValueError where plan and tokens contradict
    each other.
    """
    units, shuffled = f"{job.folder}/_units", f"{job.folder}/_shuffle"
    if not storage.exists(f"{job.folder}/{INDEX}"):
        groups = plan_groups(storage, job.plan, job.num_packs, PACKS_PER_SHARD, job.num_codes)
        folder = f"{shuffled}/{groups.name}"
        num_runs = spill(storage, folder, job.plan, job.tables, groups, job.num_codes)
        all_groups = [
            _Group(job.folder, folder, number, start, stop, PACKS_PER_SHARD)
            for number, (start, stop) in enumerate(itertools.pairwise(groups.starts.tolist()))
        ]
        done = set(storage.names(units))
        words = (
            (storage, group, num_runs, job.coefficients, job.num_codes)
            for group in all_groups
            if group.unit.rpartition("/")[2] not in done
        )
        progress = Progress(job.folder.rpartition("/")[0], job.num_packs, "packs")
        for count in each(_write_group, words):
            progress.add(count)
        progress.close()
        _write_index(storage, f"{job.folder}/{INDEX}", [group.unit for group in all_groups])
    storage.remove(shuffled)
    storage.remove(units)
    storage.remove_unfinished(job.folder)


@dataclass(frozen=True)
class _Group:
    """Shards of the packs ``start`` to ``stop`` - 1 in ``folder``, their documents in another."""

    folder: str
    shuffled: str
    number: int
    start: int
    stop: int
    packs_per_shard: int

    @property
    def unit(self) -> str:
        """The file of its index rows, named after the packs: of other groups, others count."""
        return f"{self.folder}/_units/{self.start:09d}-{self.stop:09d}.parquet"


def _write_group(
    storage: Storage, group: _Group, num_runs: Ints, of: Coefficients, num_codes: int
) -> int:
    """Write the shards of a group, then their index rows: the group counts once these are there."""
    tables = read_documents(storage, group.shuffled, num_runs, group.number)
    index = []
    for start in range(group.start, group.stop, group.packs_per_shard):
        packs = _packs(tables, start, min(start + group.packs_per_shard, group.stop))
        name, buffer = shard_name(start // group.packs_per_shard), io.BytesIO()
        index.append(write_shard(buffer, name, packs, of, num_codes))
        storage.write(f"{group.folder}/{name}", buffer.getvalue())
    storage.write_part(group.unit, pa.concat_tables(index), PACK_INDEX, "pack")
    return group.stop - group.start


def _packs(
    tables: Sequence[pa.Table], start: int, stop: int
) -> Iterator[tuple[int, list[Document]]]:
    """The packs ``start`` to ``stop`` - 1 out of tables that are sorted by pack."""
    pieces = []
    for table in tables:
        here, end = np.searchsorted(table["pack"].to_numpy(), (start, stop)).tolist()
        pieces.append(table.slice(here, end - here))
    rows = pa.concat_tables(pieces).combine_chunks()
    order = np.lexsort((rows["position"].to_numpy(), rows["pack"].to_numpy()))
    pack, position = rows["pack"].to_numpy()[order], rows["position"].to_numpy()[order]
    bounds = np.searchsorted(pack, np.arange(start, stop + 1))
    place = np.arange(len(rows)) - bounds[pack - start]
    if (np.diff(bounds) == 0).any() or not np.array_equal(place, position):
        raise ValueError(f"the plan leaves out a pack of {start} to {stop - 1}, or a place in one")
    for number, (here, end) in enumerate(itertools.pairwise(bounds), start):
        # Taken, not sliced: a slice would have all segments of the shard behind it.
        of = rows.take(pa.array(order[here:end]))
        documents = zip(
            from_tokens(of, of["copy"].to_pylist()), of["first_segment"].to_pylist(), strict=True
        )  # the slice was cut out on the way: all segments that are here are of the document
        yield number, [replace(document, first_segment=first) for document, first in documents]


def _write_index(storage: Storage, path: str, units: Sequence[str]) -> None:
    """Join the units, a row group at a time, into the bytes that `Storage.write_part` writes."""
    # Beside its place, to be renamed; on the way to a bucket, where this machine keeps such files.
    target = storage.path(path)
    beside = os.path.dirname(target) if storage.is_local else tempfile.gettempdir()
    local = f"{beside}/{os.path.basename(target)}.tmp-{uuid.uuid4().hex}"
    try:
        schema = pa.schema([field.remove_metadata() for field in PACK_INDEX])
        with pq.ParquetWriter(local, schema, compression="zstd") as writer:
            for rows in _row_groups(storage, units, schema):
                writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        if storage.is_local:
            with open(local, "rb") as file:
                os.fsync(file.fileno())
            os.replace(local, target)
        else:
            storage.fs.put_file(local, target)
    finally:
        if os.path.exists(local):
            os.unlink(local)


def _row_groups(storage: Storage, units: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of all units in turn, in tables of `ROW_GROUP_ROWS`; the last one may be shorter."""
    held = schema.empty_table()
    for unit in units:
        held = pa.concat_tables([held, storage.read_table(unit)])
        while len(held) >= ROW_GROUP_ROWS:
            yield held.slice(0, ROW_GROUP_ROWS).combine_chunks()
            held = held.slice(ROW_GROUP_ROWS)
    if len(held):
        yield held.combine_chunks()
