"""The plan of a set of packs, on disk: manifest -> ordered streams -> blended -> windows -> parts.

    <packs>/plan/part-000000.parquet …   rows of `packing.plan.PLAN`: packed ones in the order of
                                         packs, then those that fit none
    <packs>/_plan/                       the manifest, and the sums; removed when all is done

This process holds a window of documents and what DuckDB is given, whatever there is to pack. The
same tokens and settings give the same bytes, also after a kill.
"""

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from infra import catalog
from infra.config import ConfigError
from infra.storage import Storage
from packing.blend import Component, blend, quotas
from packing.plan import PLAN, Summary, plan_windows
from pipelines.manifest import (
    Held,
    Manifest,
    hold,
    ordered,
    rejected,
    take,
    write_manifest,
)
from pipelines.manifest_rows import Limits
from pipelines.pack_phase import PackPhase
from pipelines.progress import Progress
from pipelines.replicas import check_tables
from pipelines.selection import Totals, budget_of, select

MEMORY = "1GiB"  # of DuckDB; what does not fit goes to the machine's temporary folder (TMPDIR)
MAX_THREADS = 4  # of DuckDB, each of which needs some of that memory
PLAN_PART_ROWS = 1 << 18  # of a part of the plan, at least: parts end between packs


def plan_packs(storage: Storage, phase: PackPhase) -> dict[str, Any]:
    """Make the plan unless it is there, and return the facts of it that the record tells.

    Raises ConfigError where there is nothing to pack, or where tables or shares do not fit.
    """
    done = f"{_work(phase)}/planned.json"
    if storage.exists(done):
        found: dict[str, Any] = storage.read_json(done)
        return found
    for component in phase.components:
        check_tables(component.tables)
    with tempfile.TemporaryDirectory(prefix="nextscale-plan-") as spill:
        threads = min(os.cpu_count() or 1, MAX_THREADS)
        con = catalog.connect(storage, MEMORY, threads, False, f"{spill}/plan.duckdb")
        with con:
            planned = _plan(con, storage, phase)
    storage.write_json(done, planned)
    return planned


def remove_manifest(storage: Storage, phase: PackPhase) -> None:
    """Remove what only a run that goes on would need."""
    storage.remove(_work(phase))


def _work(phase: PackPhase) -> str:
    return f"{phase.folder}/_plan"


def _plan(con: duckdb.DuckDBPyConnection, storage: Storage, phase: PackPhase) -> dict[str, Any]:
    manifest, held, epochs = _manifest(con, storage, phase)
    there = [
        sum(hold(con, storage, manifest, number, epoch).num_tokens for epoch in range(needed))
        for number, needed in enumerate(epochs)
    ]
    wanted = _wanted(phase, there)
    streams = [
        take(ordered(con, storage, manifest, number, needed), wanted[number])
        for number, needed in enumerate(epochs)
    ]
    shares = [tokens / sum(wanted) for tokens in wanted]
    packing, budget = phase.packing, manifest.limits.budget
    made = _Made(storage, f"{phase.folder}/plan", Summary(packing, budget, shares), [0] * len(held))
    num_rows = sum(
        round(one.num_rows * tokens / one.num_tokens)
        for one, tokens in zip(held, wanted, strict=True)
    )
    progress = Progress(f"plan of {phase.table}", num_rows, "documents")
    for table in plan_windows(blend(streams, shares), packing, budget):
        made.add(table)
        progress.add(len(table))
    for table in rejected(con, storage, manifest, epochs):
        table = table.append_column("pack", pa.nulls(len(table), pa.int64()))
        made.add(table.append_column("position", pa.nulls(len(table), pa.int32())))
    made.close()
    progress.close()
    return _facts(phase, made, budget, held, shares)


def _manifest(
    con: duckdb.DuckDBPyConnection, storage: Storage, phase: PackPhase
) -> tuple[Manifest, list[Held], list[int]]:
    """The manifest, written; what the first epoch of each component holds, and how many it needs.

    Raises ConfigError for all that makes packs impossible.
    """
    totals = select(con, storage, phase.components, phase.packing, phase.coefficients)
    _check_replicas(phase, totals, [component.max_epochs for component in phase.components])
    budget = budget_of(phase.components, totals, phase.packing, phase.coefficients)
    limits = Limits(phase.slicing, phase.packing, phase.coefficients, budget)
    manifest = Manifest(_work(phase), phase.components, limits)
    write_manifest(con, storage, manifest, [1] * len(totals))
    held = [hold(con, storage, manifest, number, 0) for number in range(len(totals))]
    epochs = _epochs(phase, held)
    _check_replicas(phase, totals, epochs)
    write_manifest(con, storage, manifest, epochs)
    return manifest, held, epochs


def finite(budget: float) -> float | None:
    """None for no budget: JSON knows no infinity."""
    return None if math.isinf(budget) else budget


def _epochs(phase: PackPhase, held: Sequence[Held]) -> list[int]:
    """How often to go through each component. Raises ConfigError where that is not enough."""
    if not any(one.num_tokens for one in held):
        lost = sum(one.num_rejected for one in held)
        raise ConfigError(
            f"no document fits into a pack ({lost:,} are above its limits): raise "
            "packing.tokens_per_pack"
        )
    for component, one in zip(phase.components, held, strict=True):
        if not one.num_tokens:
            raise ConfigError(
                f"component {component.name} has no document that fits into a pack: raise "
                "packing.tokens_per_pack, or leave it out"
            )
    try:
        components = [Component(one.name, one.share, one.max_epochs) for one in phase.components]
        wanted = quotas(components, [one.num_tokens for one in held], phase.num_tokens)
    except ValueError as error:
        raise ConfigError(f"{phase.table}: {error}") from None
    return [max(1, -(-tokens // one.num_tokens)) for tokens, one in zip(wanted, held, strict=True)]


def _wanted(phase: PackPhase, num_tokens: Sequence[int]) -> list[int]:
    """The tokens to take of each component, whose epochs hold so many in all.

    Later epochs drop other prompts than the first, so that they may hold a little less than it did:
    then it is so much less of all components. Raises ConfigError for a component without any.
    """
    components = [Component(one.name, one.share) for one in phase.components]
    most = quotas(components, num_tokens, None)
    if phase.num_tokens is not None and sum(most) > phase.num_tokens:
        most = quotas(components, num_tokens, phase.num_tokens)
    for component, tokens in zip(phase.components, most, strict=True):
        if not tokens:
            raise ConfigError(
                f"component {component.name} would have no token: raise num_tokens or its share, "
                "or leave it out"
            )
    return most


def _check_replicas(phase: PackPhase, totals: Sequence[Totals], epochs: Sequence[int]) -> None:
    for component, one, needed in zip(phase.components, totals, epochs, strict=True):
        most = one.most_copies * needed
        if most < len(component.tables):
            raise ConfigError(
                f"{component.tokens.table}: replicas is {len(component.tables)}, but no document "
                f"is packed more than {most} times, so that one would be unused: lower it, or "
                "raise copies (max_epochs of a mixture)"
            )


@dataclass
class _Made:
    """Takes the tables of a plan in their order, writes its parts and adds up what they hold."""

    storage: Storage
    folder: str
    summary: Summary
    documents: list[int]  # in packs, of each component: every copy and piece on its own
    files: list[str] = field(default_factory=list)
    waiting: list[pa.Table] = field(default_factory=list)
    num_rows: int = 0
    dropped_captions: int = 0
    cut: int = 0  # documents in several pieces, each copy on its own

    def add(self, table: pa.Table) -> None:
        rows = pa.array(np.arange(self.num_rows, self.num_rows + len(table)))
        self.waiting.append(table.append_column("row", rows).select(PLAN.names))
        self.num_rows += len(table)
        self.summary.add(table)
        piece, first = table["piece"].to_numpy(), table["first_segment"].to_numpy()
        packed = table["pack"].is_valid().to_numpy()
        of = np.bincount(table["component"].to_numpy()[packed], minlength=len(self.documents))
        self.documents = [n + int(more) for n, more in zip(self.documents, of, strict=True)]
        self.dropped_captions += int((packed & (piece == 0) & (first > 0)).sum())
        self.cut += int((packed & (piece == 1)).sum())
        if sum(map(len, self.waiting)) >= PLAN_PART_ROWS:
            self._write()

    def close(self) -> None:
        if self.waiting:
            self._write()

    def _write(self) -> None:
        path = f"{self.folder}/part-{len(self.files):06d}.parquet"
        self.storage.write_part(path, pa.concat_tables(self.waiting), PLAN, "row")
        self.files.append(path)
        self.waiting = []


def _facts(
    phase: PackPhase, made: _Made, budget: float, held: Sequence[Held], shares: Sequence[float]
) -> dict[str, Any]:
    """What the packs' record says of the plan, as plain JSON."""
    of = made.summary
    realised, deviation = of.mixture.tolist(), of.deviation.tolist()
    components = [
        {
            "name": component.name,
            "tables": [record.table for record in component.tables],
            "versions": [record.version for record in component.tables],
            "tasks": list(component.tasks),
            "quota": shares[number],  # of the tokens of all packs
            "share": realised[number],
            "deviation": deviation[number],  # the largest, over a stretch of packs
            "num_tokens": int(of.tokens[number]),
            "epochs": int(of.tokens[number]) / held[number].num_tokens,
            "left_out_tokens": max(held[number].num_tokens - int(of.tokens[number]), 0),
            "left_out_documents": max(held[number].num_rows - made.documents[number], 0),
        }
        for number, component in enumerate(phase.components)
    ]
    return {
        "plan": made.files,
        "num_packs": of.num_packs,
        "rejected": of.rejected,
        "lower_bound": of.lower_bound,
        "imbalance": of.imbalance,
        "token_fill": of.token_fill,
        "budget": finite(budget),
        "dropped_captions": made.dropped_captions,
        "cut": made.cut,
        "components": components,
    }
