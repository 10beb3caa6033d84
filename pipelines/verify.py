"""``nextscale verify PACKS``: is every document in the packs that should be, once, and unchanged?

Shards and tokens are read from end to end, each once: one Ray task per shard and per part of the
tokens leaves digests of its documents in the workspace, DuckDB joins them with the
plan both ways (`pipelines.verify_joins`). Costs are linear and this process holds none of it. What
is proven, and what is printed where it does not hold:

- every row of the plan is at its pack and position in the shards, and nothing else is anywhere;
- its text ids, codes, roles and losses are those of its slice of the tokens, of its replica;
- bytes, checksums, counts and costs of every pack are those of the index, within cap and budget;
- every document with tokens is packed as often as it should be, or rejected with a true reason.
"""

import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from infra import catalog
from infra.cluster import session
from infra.config import build
from infra.runs import TableRecord
from infra.storage import Storage
from packing.packs import FACTS, INDEX, Facts
from packing.plan import PLAN
from packing.shards import PACK_INDEX
from pipelines.document_digests import Place
from pipelines.mixture import OF_IMAGES
from pipelines.pack_phase import PackComponent
from pipelines.packed_set import PackedSet, find_packed
from pipelines.progress import Progress
from pipelines.replicas import SHARED
from pipelines.tasks import each
from pipelines.verify_joins import Totals, join, totals
from pipelines.verify_parts import (
    Damage,
    Damages,
    Packed,
    leave_none,
    read_shard,
    read_tokens,
)


@dataclass(frozen=True)
class Verified:
    """What was found; ``totals`` is None where plan or index are not there to be counted."""

    packs: PackedSet
    damages: Damages
    totals: Totals | None


def main(
    packs: str, workspace: str, ray_address: str | None = None, num_cpus: int | None = None
) -> int:
    """Verify, print what was found, and return the exit status: 0, or 1 where there is damage.

    Raises ConfigError where there are no such packs, or their tokens are not there any more.
    """
    found = find_packed(Storage(workspace), packs)
    with session(ray_address, num_cpus):
        verified = verify(found)
    for line in describe(verified):
        print(line)
    return 1 if verified.damages.count else 0


def verify(packs: PackedSet) -> Verified:
    """Prove it, in tasks where a Ray session runs; leaves nothing in the workspace."""
    storage = packs.storage
    damages = Damages()
    if not _readable(packs, damages):
        return Verified(packs, damages, None)
    facts = _facts(packs, damages)
    rows = f"verify-{packs.record.table.partition('/')[2]}-{uuid.uuid4().hex[:12]}"
    parts = sum(len(table.parts) for one in packs.phase.components for table in one.tables)
    try:
        leave_none(storage, rows)
        with catalog.connect(storage, views=False) as con:
            _views(con, packs)
            damages.add(_stray_shards(con, packs))
            [(shards,)] = con.execute("SELECT count(DISTINCT shard) FROM packs").fetchall()
            progress = Progress(f"verify {packs.record.table}", shards + parts, "files")
            of = Packed(storage, packs.folder, facts, packs.phase.coefficients, rows)
            for found in itertools.chain(
                each(read_shard, _shards(con, of)), each(read_tokens, _parts(packs, rows))
            ):
                damages.add(found.first, found.count)
                progress.add(1)
            _row_views(con, packs, rows)
            damages.add(_check_tokens(con, packs))
            found = join(con, facts, packs.phase, packs.record.facts)
            damages.add(found.first, found.count)
            return Verified(packs, damages, totals(con))
    finally:
        storage.remove(rows)


def describe(verified: Verified) -> Iterator[str]:
    """The damages as lines, or a short table."""
    damages, packs = verified.damages, verified.packs
    if damages.count or verified.totals is None:
        yield f"{packs.record.table}: {damages.count:,} damage{'s' if damages.count != 1 else ''}"
        yield from (f"  {damage.line}" for damage in damages.first)
        if damages.count > len(damages.first):
            yield f"  … the first {len(damages.first)} of {damages.count:,}"
        return
    of, facts = verified.totals, packs.record.facts
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in of.rejected) or "none"
    bound, budget, cap = facts["lower_bound"], facts["budget"], facts["token_cap"]
    of_budget = f", mean {of.mean_cost / budget:.1%} of the budget" if budget else ""
    size = f"{of.num_bytes / 1e6:,.1f} MB"
    yield f"{packs.record.table}: as it should be"
    yield f"  documents    {of.documents:,} packed, {of.distinct:,} different ones"
    yield f"  rejected     {rejected}"
    beyond = ", or beyond the quota: which ones is the plan's word" if packs.is_limited else ""
    yield f"  left out     {of.left_out:,} (no copy{beyond})"
    yield f"  packs        {of.num_packs:,} in {of.num_shards:,} shards, {size}"
    yield f"  lower bound  {bound:,} packs, {of.num_packs / bound - 1:+.2%}"
    yield f"  tokens       {of.num_tokens:,}, {of.num_tokens / of.num_packs / cap:.1%} of the caps"
    yield f"  cost         max/mean {of.most_cost / of.mean_cost:.4f}{of_budget}"


def _facts(packs: PackedSet, damages: Damages) -> Facts:
    """The facts that the packs were made with; ``packs.json`` and the tokens must say the same."""
    told = packs.record.facts
    facts = build(Facts, {name: told[name] for name in Facts.__dataclass_fields__})
    if packs.storage.read(f"{packs.folder}/{FACTS}") != facts.to_json():
        what = f"{packs.folder}/{FACTS} is not what the packs' record says"
        damages.add([Damage("", -1, "", what)])
    return facts


def _check_tokens(con: duckdb.DuckDBPyConnection, packs: PackedSet) -> Iterator[Damage]:
    """Tables of tokens with images are of the packs' tokenizer, and all of their vocabulary."""
    told = packs.record.facts
    for number, component in enumerate(packs.phase.components):
        [(images,)] = con.execute(
            "SELECT count(*) FROM tokens WHERE component = ? "
            "AND len(list_filter(forms, lambda form: contains(form, ' image, '))) > 0",
            [number],
        ).fetchall()
        for table in component.tables:
            for name in SHARED:
                if table.facts[name] != told[name] and (images or name not in OF_IMAGES):
                    what = f"{name} is {told[name]}, that of {table.table} is {table.facts[name]}"
                    yield Damage("", -1, "", what)


def _readable(packs: PackedSet, damages: Damages) -> bool:
    """Whether plan and index can be joined: are there, are Parquet and have their columns."""
    files = {f"{packs.folder}/{INDEX}": PACK_INDEX} | dict.fromkeys(packs.plan, PLAN)
    found = Damages()
    for path, schema in files.items():
        try:
            with packs.storage.open(path) as file:
                # Whole, batch by batch: what cannot be read is told here, by name.
                parquet = pq.ParquetFile(file)
                names = parquet.schema_arrow.names
                for _ in parquet.iter_batches():
                    pass
        except FileNotFoundError:
            found.add([Damage("", -1, "", f"{path} is missing")])
            continue
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            found.add([Damage("", -1, "", f"{path} cannot be read: {reason}")])
            continue
        missing = [name for name in schema.names if name not in names]
        if missing:
            found.add([Damage("", -1, "", f"{path} lacks the columns {', '.join(missing)}")])
    damages.add(found.first, found.count)
    return not found.count


def _views(con: duckdb.DuckDBPyConnection, packs: PackedSet) -> None:
    """``plan``, ``packs`` and ``sources`` of `pipelines.verify_joins`."""
    storage = packs.storage
    con.execute(f"CREATE TEMP VIEW plan AS FROM {catalog.scan_files(storage, packs.plan)}")
    con.execute(f"CREATE TEMP VIEW packs AS FROM {catalog.scan(storage, packs.record)}")
    con.execute(
        'CREATE TEMP TABLE sources (component INTEGER, replica INTEGER, replicas INTEGER, "of" '
        "VARCHAR)"
    )
    for component, one in enumerate(packs.phase.components):
        for replica, table in enumerate(one.tables):
            row = [component, replica, len(one.tables), table.table]
            con.execute("INSERT INTO sources VALUES (?, ?, ?, ?)", row)


def _row_views(con: duckdb.DuckDBPyConnection, packs: PackedSet, rows: str) -> None:
    """``packed``, ``unread``, ``tokens`` and ``due``, of the files that the tasks have left."""
    for name in ("packed", "unread", "tokens"):
        files = catalog.literal(packs.storage.path(f"{rows}/{name}/*.parquet"))
        con.execute(f"CREATE TEMP VIEW {name} AS FROM read_parquet({files})")
    of = [_due(packs, n, one) for n, one in enumerate(packs.phase.components)]
    # Of a quota the last epoch is cut short somewhere; else every epoch is there in full.
    rest, epochs = (
        "epochs",
        ", ".join(f"({n}, {one.max_epochs})" for n, one in enumerate(packs.phase.components)),
    )
    counted = f"(FROM (VALUES {epochs}) AS e(component, epochs))"
    if packs.is_limited:
        rest = "epochs - 1"
        counted = "(SELECT component, max(epoch) + 1 AS epochs FROM plan GROUP BY component)"
    con.execute(
        "CREATE TEMP VIEW due AS SELECT component, doc_id, "
        f"copies * ({rest}) AS least, copies * epochs AS most FROM ("
        + " UNION ALL ".join(of)
        + f") JOIN {counted} USING (component)"
    )


def _due(packs: PackedSet, number: int, component: PackComponent) -> str:
    """SQL of (component, doc_id, copies): how often an epoch holds each document.

    The least of its samples' copies, times the component's; a sample has the product over the
    stages that judged it. Written apart from `pipelines.selection`, which is what is checked.
    """
    storage = packs.storage
    tokens = f"{catalog.scan(storage, component.tokens)} WHERE {component.chosen}"
    often = f"{component.copies}::BIGINT AS copies"
    if not component.decisions:
        return f"SELECT {number} AS component, doc_id, {often} FROM {tokens}"
    stages = " UNION ALL ".join(
        f"SELECT sample_id, copies FROM {catalog.scan(storage, stage)}"
        for stage in component.decisions
    )
    samples = "unnest(if(len(sample_ids) > 0, sample_ids, [NULL])) AS sample_id"
    return (
        f"SELECT {number} AS component, doc_id, "
        f"min(coalesce(copies, 1)) * {often} FROM (SELECT doc_id, {samples} FROM {tokens})"
        f" LEFT JOIN (SELECT sample_id, product(copies)::BIGINT AS copies FROM ({stages}) "
        "GROUP BY sample_id) USING (sample_id) GROUP BY doc_id"
    )


def _shards(
    con: duckdb.DuckDBPyConnection, of: Packed
) -> Iterator[tuple[Packed, str, list[dict[str, Any]]]]:
    """What `read_shard` takes, of every shard that the index names."""
    index = con.sql('FROM packs ORDER BY shard, "offset", pack').to_arrow_reader(10_000)
    rows = (row for batch in index for row in batch.to_pylist())
    for shard, group in itertools.groupby(rows, key=lambda row: row["shard"]):
        yield of, shard, list(group)


def _parts(packs: PackedSet, rows: str) -> Iterator[tuple[Storage, TableRecord, Place, str]]:
    """What `read_tokens` takes, of every part of every table."""
    for component, one in enumerate(packs.phase.components):
        for replica, table in enumerate(one.tables):
            for part in range(len(table.parts)):
                yield packs.storage, table, Place(component, replica, part), rows


def _stray_shards(con: duckdb.DuckDBPyConnection, packs: PackedSet) -> list[Damage]:
    """Shards beside the index that it does not know."""
    known = {name for (name,) in con.execute("SELECT DISTINCT shard FROM packs").fetchall()}
    there = packs.storage.names(packs.folder)
    return [
        Damage(name, -1, "", "the index does not know this shard")
        for name in there
        if name.endswith(".tar") and name not in known
    ]
