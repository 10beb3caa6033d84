"""Where documents go: shards in groups, and for each part of the tokens the rows that are wanted.

Both follow from the plan alone, which is read in files; nothing holds it whole.
"""

from collections import abc
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.runs import TableRecord
from infra.schema import digest
from infra.storage import Storage
from packing.members import SMALL_CODES
from pipelines.grouped_rows import read_group, write_groups
from pipelines.tasks import each

GROUP_BYTES = 1 << 30  # of the documents of a group, about; a shard alone may be more
MIN_GROUPS = 1024  # work for that many, where there are as many shards
PLAN_FILES_PER_ROUTE = 16  # some 4 million rows of 40 bytes
SLICE = ["pack", "position", "copy", "first_segment"]
"""What a document takes along from the plan."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Groups:
    """Runs of shards: group g is of the packs ``starts[g]`` to ``starts[g + 1]`` - 1.

    ``starts`` ends with the number of packs.
    """

    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def name(self) -> str:
        """Of the folder of what was cut by them: files of other groups are of no use."""
        return digest(*map(str, self.starts.tolist()))[:12]


def plan_groups(
    storage: Storage,
    plan: abc.Sequence[str],
    num_packs: int,
    packs_per_shard: int,
    num_codes: int,
) -> Groups:
    """Cut the packs at shards into groups of some `GROUP_BYTES`; nothing but the plan says where.

    The plan is read file by file, numbers alone; memory is 8 bytes a shard.
    """
    words = ((storage, file, packs_per_shard, num_codes) for file in plan)
    weight = np.zeros(-(-num_packs // packs_per_shard), np.int64)
    for found in each(_weigh, words):
        for shard, num_bytes in zip(*found, strict=True):
            weight[shard] += num_bytes
    limit = min(GROUP_BYTES, int(weight.sum()) // MIN_GROUPS)
    starts, held = [0], 0
    for shard, num_bytes in enumerate(weight.tolist()):
        if held and held + num_bytes > limit:
            starts.append(shard * packs_per_shard)
            held = 0
        held += num_bytes
    return Groups(np.array([*starts, num_packs] if num_packs else [0], np.int64))


def write_routes(
    storage: Storage,
    folder: str,
    plan: abc.Sequence[str],
    tables: abc.Sequence[abc.Sequence[TableRecord]],
) -> int:
    """Write the routes that are not below ``folder`` yet; returns how many files they are.

    The parts of all ``tables`` are numbered through, component by component, replica by replica;
    copy c is of replica c modulo their number.
    """
    flat = [table for replicas in tables for table in replicas]
    num_replicas = np.array([len(replicas) for replicas in tables], np.int64)
    num_parts = np.array([len(table.parts) for table in flat], np.int64)
    first_table = np.cumsum(num_replicas) - num_replicas
    first_part = np.cumsum(num_parts) - num_parts
    starts = range(0, len(plan), PLAN_FILES_PER_ROUTE)
    done = set(storage.names(f"{folder}/routes"))
    where = (num_replicas, first_table, first_part, int(num_parts.sum()))
    words = (
        (storage, _route_path(folder, i), plan[start : start + PLAN_FILES_PER_ROUTE], *where)
        for i, start in enumerate(starts)
        if f"{i:06d}" not in done
    )
    for _ in each(_write_route, words):
        pass
    return len(starts)


def read_routes(storage: Storage, folder: str, part: int, num_routes: int) -> pa.Table | None:
    """The rows wanted of a part: ``token_row``, ``num_segments`` and `SLICE`; None for none."""
    routes = [read_group(storage, _route_path(folder, i), part) for i in range(num_routes)]
    found = [table for table in routes if table is not None]
    return pa.concat_tables(found) if found else None


def cut_groups(rows: pa.Table, group: Ints) -> dict[int, pa.Table]:
    """Rows, which are sorted by ``group``, as a table for each group that has some."""
    groups, starts = np.unique(group, return_index=True)
    lengths = np.diff(starts, append=len(rows))
    found = zip(groups.tolist(), starts.tolist(), lengths.tolist(), strict=True)
    return {number: rows.slice(start, length) for number, start, length in found}


def _weigh(
    storage: Storage, file: str, packs_per_shard: int, num_codes: int
) -> tuple[list[int], list[int]]:
    """The shards in a file of the plan, and how many bytes their documents take, about."""
    rows = storage.read_table(file, ["pack", "num_tokens"])
    rows = rows.filter(pc.field("pack").is_valid())
    shards, which = np.unique(rows["pack"].to_numpy() // packs_per_shard, return_inverse=True)
    # An input and a target code at a position; ids, names and offsets of the document besides.
    per_token = 4 if num_codes <= SMALL_CODES else 8
    weights = np.bincount(which, per_token * rows["num_tokens"].to_numpy() + 256, len(shards))
    return shards.tolist(), weights.astype(np.int64).tolist()


def _route_path(folder: str, number: int) -> str:
    return f"{folder}/routes/{number:06d}"


def _write_route(
    storage: Storage,
    path: str,
    files: abc.Sequence[str],
    num_replicas: Ints,
    first_table: Ints,
    first_part: Ints,
    num_parts: int,
) -> None:
    """Write which rows of some files of the plan each part has the tokens of."""
    columns = ["component", "part", "token_row", "num_segments", *SLICE]
    rows = pa.concat_tables([storage.read_table(file, columns) for file in files])
    rows = rows.filter(pc.field("pack").is_valid())
    component = rows["component"].to_numpy()
    table = first_table[component] + rows["copy"].to_numpy() % num_replicas[component]
    part = first_part[table] + rows["part"].to_numpy()
    order = np.argsort(part, kind="stable")
    rows = rows.drop_columns(["component", "part"]).take(pa.array(order))
    write_groups(storage, path, cut_groups(rows, part[order]), num_parts)
