"""A sample of a recipe's sources through all of its phases, in a workspace of its own."""

import dataclasses
import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from infra import runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.schema import SAMPLES, digest
from infra.storage import Storage
from pipelines.curate import curate
from pipelines.drawn import Drawn
from pipelines.phase import Phase, Stage
from pipelines.progress import say
from pipelines.recipe import Recipe
from pipelines.refresh import Made, refresh
from pipelines.stage_costs import stage_costs
from pipelines.tokenize_documents import tokenize_phases
from pipelines.whole_job import pack_phase
from pipelines.work import Work

MIN_BATCH_ROWS = 16


@dataclass(frozen=True)
class Measured:
    """A phase as it ran over the sample; ``stages`` are its pools there."""

    made: Made
    record: TableRecord
    stages: tuple[Stage, ...]
    units: tuple[dict[str, Any], ...]
    wall_s: float
    cpu_s: float  # of this process

    @property
    def longest_s(self) -> float:
        """Seconds in which the busiest worker was busy."""
        costs = stage_costs(self.stages, self.units)
        return max((cost.longest_s for cost in costs), default=0.0)

    @property
    def idle_s(self) -> float:
        """Seconds in which no unit ran: Ray's start, the work of this process, vLLM's answers."""
        return self.wall_s - self.longest_s


@dataclass
class Sample:
    """The drawn rows of all sources, the workspace that they run in, and what ran there."""

    recipe: Recipe
    drawn: list[Drawn]
    ran: list[Measured] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(len(one.rows) for one in self.drawn)


@contextmanager
def workspace_below(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe in a workspace of its own below that of the recipe."""
    name = f"estimate-{uuid.uuid4().hex[:8]}"
    try:
        yield dataclasses.replace(recipe, workspace=recipe.storage.path(name))
    finally:
        recipe.storage.remove(name)


def scaled(recipe: Recipe, share: float) -> Recipe:
    """The recipe with its bounds that count rows cut down to the sample's share of them."""
    balance = recipe.decide.balance
    if balance is None or share >= 1:
        return recipe
    counts = {
        name: max(1, round(value * share))
        for name in ("cap", "total")
        if (value := getattr(balance, name, None)) is not None
    }
    scaled = dataclasses.replace(balance, **counts)
    return dataclasses.replace(recipe, decide=dataclasses.replace(recipe.decide, balance=scaled))


def run_sample(sample: Sample) -> None:
    """The sample through all phases, noting how each ran. Needs a Ray session."""
    recipe, storage = sample.recipe, sample.recipe.storage
    indexed = {f"samples/{one.source.name}": _write_samples(storage, one) for one in sample.drawn}

    def run(storage: Storage, made: Made) -> TableRecord:
        if made.table in indexed:
            return indexed[made.table]
        units: list[dict[str, Any]] = []
        sized = _sized(made, sample.num_rows) if isinstance(made, Phase) else made
        started, cpu_s = time.perf_counter(), time.process_time()
        record = refresh(storage, sized, work=Work(units.append))
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
        stages = sized.stages if isinstance(sized, Phase) else ()
        sample.ran.append(Measured(made, record, stages, tuple(units), wall_s, cpu_s))
        return record

    documents = curate(recipe, run=run)
    if recipe.tokenize is not None:
        tokens = [run(storage, phase) for phase in tokenize_phases(recipe, documents)]
        if recipe.pack is not None:
            try:
                run(storage, pack_phase(recipe, *tokens))
            except ConfigError as error:
                say(f"  the sample cannot be packed: {error}")


def _write_samples(storage: Storage, drawn: Drawn) -> TableRecord:
    table = f"samples/{drawn.source.name}"
    fingerprint = digest(table, *drawn.rows["sample_id"].to_pylist())
    file = f"{runs.version_of(fingerprint)}/part-00000.parquet"
    storage.write_part(f"{table}/{file}", drawn.rows, SAMPLES, "sample_id")
    failed = len(drawn.rows) - drawn.rows["error"].null_count
    parts = (Part(file, len(drawn.rows), failed),)
    record = TableRecord(table, fingerprint, fingerprint, "sample_id", parts)
    runs.save_record(storage, record)
    return record


def _sized(phase: Phase, rows: int) -> Phase:
    """The phase with pools that suit a few rows and this session.

    Each worker gets several batches, so that its start can be told from its work.
    """
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    stages = []
    for stage in phase.stages:
        batch = min(stage.batch_rows, max(MIN_BATCH_ROWS, rows // 8))
        most = max(1, rows // (3 * batch))
        for kind, each in (("CPU", stage.num_cpus), ("GPU", stage.num_gpus)):
            if each:
                share = there.get(kind, 0.0) / len(phase.stages)
                most = min(most, max(1, int(share / each)))
        stages.append(
            dataclasses.replace(stage, workers=min(stage.workers, most), batch_rows=batch)
        )
    batch, workers = stages[0].batch_rows, max(stage.workers for stage in stages)
    unit = max(1, math.ceil(rows / workers / 4 / batch)) * batch
    return dataclasses.replace(
        phase, stages=tuple(stages), unit_rows=max(1, min(phase.unit_rows, unit))
    )
