"""Tokens -> pack plan -> shards and index: ``nextscale pack RECIPE``.

The plan is numbers only (tens of bytes a document) and is made in one process; shards are written
by one Ray task each, from the documents that the plan gives it. Copies of a document take turns
among the replicas of its tokens (`pipelines.replicas`).
"""

import io
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from infra import catalog, runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.storage import Storage
from packing.cost import Coefficients, cost
from packing.members import Document, from_tokens
from packing.packs import FACTS, INDEX, Facts
from packing.plan import PLAN, Packing, Plan, plan
from packing.shards import PACK_INDEX, PACKS_PER_SHARD, shard_name, write_shard
from pipelines.progress import Progress, say
from pipelines.replicas import Ints, Lengths, read_lengths


@dataclass(frozen=True)
class PackPhase:
    """Packs of a dataset's tokens: what they are made from, and how.

    ``decisions`` say how often a document is packed (`read_copies`), which ``copies`` multiplies:
    more than 1 is several epochs in one set of packs, mixed. ``replicas`` are further tables of the
    same tokens with other noise: copy c is of ``tables[c % len(tables)]``.
    """

    name: str
    tokens: TableRecord
    packing: Packing
    coefficients: Coefficients
    decisions: tuple[TableRecord, ...] = ()  # the stages that judged the documents' samples
    replicas: tuple[TableRecord, ...] = ()
    copies: int = 1

    @property
    def table(self) -> str:
        return f"packs/{self.name}"

    @property
    def spec(self) -> dict[str, Any]:
        spec = {"packing": self.packing, "coefficients": self.coefficients}
        # Said only where it is asked for: packs made before there were copies stay up to date.
        return spec if self.copies == 1 else spec | {"copies": self.copies}

    @property
    def tables(self) -> tuple[TableRecord, ...]:
        """The tokens, with their replicas."""
        return (self.tokens, *self.replicas)

    @property
    def inputs(self) -> tuple[TableRecord, ...]:
        return (*self.tables, *self.decisions)

    @property
    def row_spec(self) -> str:
        # Which documents share a pack depends on all of them.
        return runs.fingerprint(runs.row_spec(self.spec, []), self.inputs)

    @property
    def fingerprint(self) -> str:
        return self.row_spec

    @property
    def folder(self) -> str:
        """Where the reader finds this version of the packs, in the workspace."""
        return f"{self.table}/{runs.version_of(self.fingerprint)}"


@dataclass(frozen=True)
class _Shard:
    """The documents of one shard in order: pack, part and row in the tokens, copy."""

    number: int
    pack: Ints
    part: Ints
    row: Ints
    copy: Ints


def write_packs(storage: Storage, phase: PackPhase) -> TableRecord:
    """Write ``packs/<name>``; skip if it is up to date. Needs a Ray session.

    Raises ConfigError where there is nothing to pack.
    """
    old = runs.load_record(storage, phase.table)
    if old is not None and old.fingerprint == phase.fingerprint:
        say(f"  {phase.table:<28} up to date ({old.num_rows:,} packs)")
        return old
    started = time.time()
    lengths = read_lengths(storage, phase.tables)
    if not lengths.doc_ids:
        raise ConfigError(f"{phase.tokens.table} holds no document to pack: see `nextscale stats`")
    costs = cost(lengths.num_tokens, lengths.num_loss, lengths.num_pairs, phase.coefficients)
    copies = read_copies(storage, phase, lengths.doc_ids)
    if not copies.any():
        raise ConfigError(
            f"{phase.table}: the decisions leave no document a copy: loosen `balance`"
        )
    if copies.max() < len(phase.tables):
        raise ConfigError(
            f"tokenize.replicas is {len(phase.tables)}, but no document is packed more than "
            f"{copies.max()} times, so that one would be unused: lower it, or raise pack.copies"
        )
    made = plan(lengths.doc_ids, lengths.num_tokens, costs, phase.packing, copies=copies)
    if not made.num_packs:
        raise ConfigError(
            f"no document fits into a pack ({made.rejected()}): raise pack.packing.tokens_per_pack"
        )
    storage.write_part(f"{phase.folder}/plan.parquet", made.to_table(lengths.doc_ids), PLAN, "row")
    index = _write_shards(storage, phase, lengths, made)
    storage.write_part(f"{phase.folder}/{INDEX}", index, PACK_INDEX, "pack")
    facts = _facts(phase, made)
    storage.write(f"{phase.folder}/{FACTS}", facts.to_json())
    storage.remove(f"{phase.folder}/_units")
    version = runs.version_of(phase.fingerprint)
    told = {
        "plan": f"{phase.folder}/plan.parquet",
        "rejected": made.rejected(),
        "lower_bound": made.lower_bound,
        "tokens_version": phase.tokens.version,
        "imbalance": made.imbalance,
        "token_fill": made.token_fill,
    }
    part = Part(f"{version}/{INDEX}", made.num_packs)
    record = TableRecord(
        phase.table, phase.fingerprint, phase.row_spec, "pack", (part,), told | vars(facts)
    )
    runs.finish(storage, record, phase.spec, phase.inputs, started)
    return record


def _facts(phase: PackPhase, made: Plan) -> Facts:
    said = phase.tokens.facts
    return Facts(
        tokenizer_id=said["tokenizer_id"],
        vocabulary_id=said["vocabulary_id"],
        num_codes=said["num_codes"],
        text_vocab_size=said["text_vocab_size"],
        level=said["level"],
        strategy=phase.packing.strategy,
        token_cap=phase.packing.token_cap,
        seed=phase.packing.seed,
        budget=made.budget if np.isfinite(made.budget) else None,
        cost_unit=phase.coefficients.unit,
    )


def read_copies(storage: Storage, phase: PackPhase, doc_ids: list[str]) -> Ints:
    """How often each document is packed: the least of its samples' copies, times the phase's.

    A sample's copies are the product over the stages that judged it; 1 where none did.
    """
    if not phase.decisions:
        return np.full(len(doc_ids), phase.copies, np.int64)
    stages = [f"{catalog.scan(storage, r)} AS d{i}" for i, r in enumerate(phase.decisions)]
    judged = " FULL JOIN ".join(
        [stages[0], *(f"{stage} USING (sample_id)" for stage in stages[1:])]
    )
    product = " * ".join(f"coalesce(d{i}.copies, 1)" for i in range(len(stages)))
    tokens = catalog.scan(storage, phase.tokens)
    with catalog.connect(storage, views=False) as con:
        # Only what differs from 1 comes into this process.
        found = con.sql(
            "SELECT doc_id, min(coalesce(copies, 1))::BIGINT AS copies "
            f"FROM (SELECT doc_id, unnest(sample_ids) AS sample_id FROM {tokens}) "
            f"LEFT JOIN (SELECT sample_id, {product} AS copies FROM {judged}) USING (sample_id) "
            "GROUP BY doc_id HAVING min(coalesce(copies, 1)) <> 1"
        ).to_arrow_table()
    row = pc.index_in(pa.array(doc_ids, pa.string()), found["doc_id"].combine_chunks())
    copies = pc.fill_null(found["copies"].combine_chunks().take(row), 1)
    return copies.to_numpy(zero_copy_only=False).astype(np.int64) * phase.copies


def _write_shards(storage: Storage, phase: PackPhase, lengths: Lengths, made: Plan) -> pa.Table:
    """Write all shards that are not there yet; returns the whole index."""
    packed = made.pack >= 0
    pack, document, copy = made.pack[packed], made.document[packed], made.copy[packed]
    bounds = np.searchsorted(pack, np.arange(0, made.num_packs + PACKS_PER_SHARD, PACKS_PER_SHARD))
    units = f"{phase.folder}/_units"
    done = set(storage.names(units))
    progress = Progress(phase.table, made.num_packs, "packs")
    pending = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if start == stop or f"{number:06d}.parquet" in done:
            continue
        rows = document[start:stop]
        shard = _Shard(
            number,
            pack[start:stop],
            lengths.part[rows],
            lengths.row[rows],
            copy[start:stop].astype(np.int64),
        )
        pending.append(_write_shard.remote(storage, phase, shard))
    while pending:
        ready, pending = ray.wait(pending)
        for count in ray.get(ready):
            progress.add(count)
    progress.close()
    names = [name for name in storage.names(units) if name.endswith(".parquet")]
    return pa.concat_tables([storage.read_table(f"{units}/{name}") for name in names])


@ray.remote
def _write_shard(storage: Storage, phase: PackPhase, shard: _Shard) -> int:
    """Write one shard, then its index rows: a shard counts once these are there."""
    documents = _read_documents(storage, phase.tables, shard)
    # Documents come in the order of their packs: [7, 7, 8] -> (7, two documents), (8, one).
    starts = [*np.flatnonzero(np.diff(shard.pack, prepend=-1)).tolist(), len(documents)]
    packs = [
        (int(shard.pack[start]), documents[start:stop])
        for start, stop in itertools.pairwise(starts)
    ]
    buffer = io.BytesIO()
    name = shard_name(shard.number)
    index = write_shard(buffer, name, packs, phase.coefficients, phase.tokens.facts["num_codes"])
    storage.write(f"{phase.folder}/{name}", buffer.getvalue())
    unit = f"{phase.folder}/_units/{shard.number:06d}.parquet"
    storage.write_part(unit, index, PACK_INDEX, "pack")
    return len(packs)


def _read_documents(
    storage: Storage, tables: Sequence[TableRecord], shard: _Shard
) -> Sequence[Document]:
    """The shard's documents in its order, each from its copy's replica; a part is opened once."""
    found: list[Document | None] = [None] * len(shard.pack)
    replica = shard.copy % len(tables)
    for number, part in np.unique(np.stack([replica, shard.part]), axis=1).T.tolist():
        places = np.flatnonzero((replica == number) & (shard.part == part))
        table = storage.read_rows(tables[number].path(part), shard.row[places].tolist())
        documents = from_tokens(table, shard.copy[places].tolist())
        for place, document in zip(places, documents, strict=True):
            found[place] = document
    return [document for document in found if document is not None]
