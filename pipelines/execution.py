"""Run a phase on Ray Data: unfinished units -> operators -> unit files -> canonical parts.

A phase turns part k of its input into part k of its output. A part is cut into units; one
streaming Ray dataset runs over those not yet committed, each a block of its own:

    from_items(units) -> map_batches(load, first operators) -> ... -> map_batches(.., write)

Only summaries come back. A part whose units are all committed is compacted into its file, and the
completion record is written last. So a phase killed at any moment goes on where it was, and its
bytes do not depend on workers, blocks or unit size.
"""

import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import ray

from infra import runs
from infra.cluster import require
from infra.runs import Part, TableRecord
from infra.schema import digest
from infra.storage import Storage
from pipelines.job import Job, Retry
from pipelines.phase import Phase, check_columns
from pipelines.progress import Progress, say
from pipelines.work import Work
from pipelines.workers import SideWorker, UnitWorker

# A wave bounds what the driver holds: its units are listed, run and compacted before the next.
WAVE_PARTS = 64
# Parts that a side worker reads or compacts at a time: this bounds its memory.
SIDE_TASKS = 4
CPUS_PER_SIDE_WORKER = 32
# Nodes come and go, but a worker that dies again and again is killed by its unit; Ray's default is
# to start it for ever. (Not by retries of the task: those are used up while a worker restarts.)
WORKER_RESTARTS = 8


def run_phase(
    storage: Storage, phase: Phase, retry: Retry | None = None, work: Work | None = None
) -> TableRecord:
    """Bring the phase's table up to date and return its record; skip what is done.

    With ``retry``, the failed rows that it names are computed again in a table that is up to date,
    and what does not change stays where it lies. ``work`` adds up what the run costs. Raises
    ConfigError before any work when an operator's columns are missing or a pool does not fit into
    the session.
    """
    check_columns(phase)
    old = runs.load_record(storage, phase.table)
    again = old is not None and old.fingerprint == phase.fingerprint
    if old is not None and again and (retry is None or not old.num_failed):
        say(f"  {phase.table:<28} up to date ({old.num_rows:,} rows)")
        return old
    require(
        sum(stage.workers * stage.num_cpus for stage in phase.stages),
        sum(stage.workers * stage.num_gpus for stage in phase.stages),
        f"phase {phase.table}",
        (
            max(stage.num_cpus for stage in phase.stages),
            max(stage.num_gpus for stage in phase.stages),
        ),
    )
    started = time.time()
    reusable = (
        old is not None
        and old.row_spec == phase.row_spec
        and old.key == phase.key
        and len(old.parts) == phase.num_parts
    )
    folder = runs.version_of(phase.fingerprint)
    if old is not None and again:
        # A killed retry goes on only with the same rows: they depend on what is tried.
        folder = runs.version_of(digest(old.version, str(retry)))
    if phase.prepare is not None:
        phase.prepare(storage)
        phase = replace(phase, prepare=None)  # workers need not know
    job = Job(
        storage, phase, f"{phase.table}/{folder}", old if reusable else None, retry, bool(again)
    )
    work = work or Work()
    parts = tuple(_finish_parts(job, work))
    record = TableRecord(
        phase.table, phase.fingerprint, phase.row_spec, phase.key, parts, phase.facts
    )
    storage.remove(f"{job.folder}/_units")
    if old is not None and again and record.version == old.version:
        # Nothing has changed, so nothing that depends on it has to be looked at.
        storage.remove(job.folder)
        record = old
    spec = {"operators": phase.operators, **phase.spec}
    inputs = (*phase.value_inputs, *phase.row_inputs)
    runs.finish(storage, record, spec, inputs, started, work.told(retry))
    return record


def _finish_parts(job: Job, work: Work) -> Iterator[Part]:
    """All parts of the output, in order, computing in waves those that are not there yet."""
    for first in range(0, job.phase.num_parts, WAVE_PARTS):
        wave = range(first, min(first + WAVE_PARTS, job.phase.num_parts))
        there = set(job.storage.names(job.folder))
        missing = [part for part in wave if job.part_file(part) not in there]
        stay = _run_wave(job, missing, work) if missing else set()
        made = _few_at_a_time("describe", job, [part for part in wave if part not in stay])
        for number in wave:
            if number in stay:
                assert job.previous is not None
                yield job.previous.parts[number]
                continue
            part, num_tried, num_recovered = next(made)
            work.counts["rows_retried"] += num_tried
            work.counts["rows_recovered"] += num_recovered
            yield part


def _few_at_a_time(task: str, job: Job, parts: Sequence[int]) -> Iterator[Any]:
    """The results of a side worker's method for each part, in order."""
    running: deque[Any] = deque()
    most = SIDE_TASKS * len(_side_workers())
    for part in parts:
        if len(running) == most:
            yield ray.get(running.popleft())
        running.append(_on_the_side(task, job, part))
    while running:
        yield ray.get(running.popleft())


def _run_wave(job: Job, parts: Sequence[int], work: Work) -> set[int]:
    """Compute and compact these parts; returns those that stay as they are."""
    counted = dict(zip(parts, _few_at_a_time("count", job, parts), strict=True))
    counts = {part: count for part, count in counted.items() if count is not None}
    parts = list(counts)
    size = job.phase.unit_rows
    starts = {part: list(range(0, n, size)) for part, n in counts.items()}
    done = set(job.storage.names(f"{job.folder}/_units"))
    todo = [
        {"part": part, "start": start}
        for part in parts
        for start in starts[part]
        if job.unit_path(part, start).rsplit("/", 1)[-1] not in done
    ]
    open_units = dict.fromkeys(parts, 0)
    for unit in todo:
        open_units[unit["part"]] += 1
    compactions: deque[Any] = deque()

    def compact_soon(part: int) -> None:
        if len(compactions) == SIDE_TASKS * len(_side_workers()):
            ray.get(compactions.popleft())
        compactions.append(_on_the_side("compact", job, part, starts[part]))

    for part in parts:
        if not open_units[part]:
            compact_soon(part)
    if todo:
        total = sum(min(size, counts[u["part"]] - u["start"]) for u in todo)
        progress = Progress(job.phase.table, total)
        failed = 0
        for summary in _summaries(job, todo):
            work.add(job.phase, summary)
            part = summary["part"]
            # What went in: a file of a source may become thousands of rows.
            progress.add(min(size, counts[part] - summary["start"]))
            failed += summary["num_failed"]
            open_units[part] -= 1
            if not open_units[part]:
                compact_soon(part)
        progress.close(f"{failed:,} failed" if failed else "")
    ray.get(list(compactions))
    return counted.keys() - counts.keys()


def _summaries(job: Job, units: list[dict[str, int]]) -> Iterator[dict[str, Any]]:
    try:
        yield from _dataset(job, units).iter_rows()
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(
            f"phase {job.phase.table}: a worker died {WORKER_RESTARTS + 1} times: native code "
            "crashes on one of its rows, or memory runs out (try a smaller `batch_rows`)"
        ) from error


def _dataset(job: Job, units: list[dict[str, int]]) -> ray.data.Dataset:
    dataset: ray.data.Dataset = ray.data.from_items(units, override_num_blocks=len(units))
    with warnings.catch_warnings():
        # Ray 2.60 means to replace this way of saying it and has no other yet.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        for index, stage in enumerate(job.phase.stages):
            dataset = dataset.map_batches(
                UnitWorker,
                fn_constructor_args=(job, index),
                batch_size=None,
                batch_format="pyarrow",
                concurrency=min(stage.workers, len(units)),
                num_cpus=stage.num_cpus,
                num_gpus=stage.num_gpus or None,
                max_restarts=WORKER_RESTARTS,
            )
    return dataset


def _on_the_side(method: str, job: Job, part: int, *more: Any) -> Any:
    workers = _side_workers()
    return getattr(workers[part % len(workers)], method).remote(job, part, *more)


def _side_workers() -> list[Any]:
    """The side workers of this Ray session."""
    here = ray.get_runtime_context()
    return _start_side_workers(here.get_node_id(), here.get_job_id())


@lru_cache(maxsize=1)
def _start_side_workers(node_id: str, job_id: str) -> list[Any]:
    # Sessions of one process count their jobs from 1 again: the node tells them apart.
    cpus = ray.cluster_resources().get("CPU", 1.0)  # type: ignore[no-untyped-call]
    actor = ray.remote(SideWorker).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=SIDE_TASKS
    )
    return [actor.remote() for _ in range(1 + int(cpus) // CPUS_PER_SIDE_WORKER)]
