"""Run a phase on Ray Data: unfinished units -> operators -> unit files -> canonical parts.

A phase turns part k of its input into part k of its output. A part is cut into units; one
streaming Ray dataset runs over those not yet committed, each a block of its own:

    from_items(units) -> map_batches(load, first operators) -> ... -> map_batches(.., write)

Only summaries come back. A part whose units are all committed is compacted into its file, and the
completion record is written last. So a phase killed at any moment goes on where it was, and its
bytes do not depend on workers, blocks or unit size.
"""

import math
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from infra import runs
from infra.cluster import require
from infra.runs import Part, TableRecord
from infra.storage import Storage
from pipelines.phase import TRANSIENT, Phase, check_columns
from pipelines.progress import Progress, say

# A wave bounds what the driver holds: its units are listed, run and compacted before the next.
WAVE_PARTS = 64
# Tasks beside the pools reserve no CPU, so this alone bounds their processes and their memory.
SIDE_TASKS = 4
# Nodes come and go, but a worker that dies again and again is killed by its unit; Ray's default is
# to start it for ever. (Not by retries of the task: those are used up while a worker restarts.)
WORKER_RESTARTS = 8


@dataclass(frozen=True)
class _Job:
    """A phase as the workers see it: with its storage and, if any, the version it builds on."""

    storage: Storage
    phase: Phase
    folder: str
    previous: TableRecord | None

    def part_file(self, part: int) -> str:
        return f"part-{part:05d}.parquet"

    def unit_path(self, part: int, start: int) -> str:
        # The unit size is in the name: a run resumed with another size starts its parts afresh.
        name = f"p{part:05d}-{start:09d}-n{self.phase.unit_rows}.parquet"
        return f"{self.folder}/_units/{name}"

    def rows(self, part: int) -> tuple[pa.Table, pa.Table | None]:
        """(rows to compute, rows taken over from the previous version) of a part."""
        rows = self.phase.input.rows(self.storage, part)
        if self.previous is None:
            return rows, None
        key = self.phase.key
        old = self.storage.read_table(self.previous.path(part))
        reused = old.filter(pc.is_in(old[key], rows[key].combine_chunks()))
        fresh = rows.filter(pc.invert(pc.is_in(rows[key], reused[key].combine_chunks())))
        return fresh, reused


def run_phase(storage: Storage, phase: Phase) -> TableRecord:
    """Bring the phase's table up to date and return its record; skip what is done.

    Raises ConfigError before any work when an operator's columns are missing or a pool does not
    fit into the session.
    """
    check_columns(phase)
    old = runs.load_record(storage, phase.table)
    if old is not None and old.fingerprint == phase.fingerprint:
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
    folder = f"{phase.table}/{runs.version_of(phase.fingerprint)}"
    job = _Job(storage, phase, folder, old if reusable else None)
    parts = tuple(_finish_parts(job))
    record = TableRecord(
        phase.table, phase.fingerprint, phase.row_spec, phase.key, parts, phase.facts
    )
    storage.remove(f"{folder}/_units")
    spec = {"operators": phase.operators, **phase.spec}
    runs.finish(storage, record, spec, (*phase.value_inputs, *phase.row_inputs), started)
    return record


def _finish_parts(job: _Job) -> Iterator[Part]:
    """All parts of the output, in order, computing in waves those that are not there yet."""
    for first in range(0, job.phase.num_parts, WAVE_PARTS):
        wave = range(first, min(first + WAVE_PARTS, job.phase.num_parts))
        there = set(job.storage.names(job.folder))
        missing = [part for part in wave if job.part_file(part) not in there]
        if missing:
            _run_wave(job, missing)
        yield from _few_at_a_time(_describe_part, job, wave)


def _few_at_a_time(task: Any, job: _Job, parts: Sequence[int]) -> Iterator[Any]:
    """The results of a side task for each part, in order."""
    running: deque[Any] = deque()
    for part in parts:
        if len(running) == SIDE_TASKS:
            yield ray.get(running.popleft())
        running.append(task.remote(job, part))
    while running:
        yield ray.get(running.popleft())


def _run_wave(job: _Job, parts: Sequence[int]) -> None:
    counts = list(_few_at_a_time(_count_rows, job, parts))
    size = job.phase.unit_rows
    starts = {part: list(range(0, n, size)) for part, n in zip(parts, counts, strict=True)}
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

    def compact(part: int) -> None:
        # A task of its own beside the pools, hence without a CPU to wait for.
        if len(compactions) == SIDE_TASKS:
            ray.get(compactions.popleft())
        compactions.append(_compact.remote(job, part, starts[part]))

    for part in parts:
        if not open_units[part]:
            compact(part)
    if todo:
        total = sum(min(size, counts[parts.index(u["part"])] - u["start"]) for u in todo)
        progress = Progress(job.phase.table, total)
        failed = 0
        for summary in _summaries(job, todo):
            part = summary["part"]
            # What went in: a file of a source may become thousands of rows.
            progress.add(min(size, counts[parts.index(part)] - summary["start"]))
            failed += summary["num_failed"]
            open_units[part] -= 1
            if not open_units[part]:
                compact(part)
        progress.close(f"{failed:,} failed" if failed else "")
    ray.get(list(compactions))


def _summaries(job: _Job, units: list[dict[str, int]]) -> Iterator[dict[str, int]]:
    try:
        yield from _dataset(job, units).iter_rows()
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(
            f"phase {job.phase.table}: a worker died {WORKER_RESTARTS + 1} times: native code "
            "crashes on one of its rows, or memory runs out (try a smaller `batch_rows`)"
        ) from error


def _dataset(job: _Job, units: list[dict[str, int]]) -> ray.data.Dataset:
    dataset: ray.data.Dataset = ray.data.from_items(units, override_num_blocks=len(units))
    with warnings.catch_warnings():
        # Ray 2.60 means to replace this way of saying it and has no other yet.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        for index, stage in enumerate(job.phase.stages):
            dataset = dataset.map_batches(
                _Worker,
                fn_constructor_args=(job, index),
                batch_size=None,
                batch_format="pyarrow",
                concurrency=min(stage.workers, len(units)),
                num_cpus=stage.num_cpus,
                num_gpus=stage.num_gpus or None,
                max_restarts=WORKER_RESTARTS,
            )
    return dataset


class _Worker:
    """Holds a stage's operators, so that weights load once per process, and runs units."""

    def __init__(self, job: _Job, index: int) -> None:
        self.job, self.stage = job, job.phase.stages[index]
        self.first, self.last = index == 0, index == len(job.phase.stages) - 1
        self.part_rows: tuple[int, pa.Table] | None = None
        _limit_threads(max(1, int(self.stage.num_cpus)))

    def __call__(self, block: pa.Table) -> pa.Table:
        part, start = block["part"][0].as_py(), block["start"][0].as_py()
        batches = self._load(part, start) if self.first else _slices(block, self.stage.batch_rows)
        done = [self._apply(batch) for batch in batches]
        table = pa.concat_tables(done)
        if not self.last:
            rows = len(table)
            table = table.append_column("part", pa.repeat(part, rows))
            return table.append_column("start", pa.repeat(start, rows))
        phase = self.job.phase
        self.job.storage.write_part(self.job.unit_path(part, start), table, phase.schema, phase.key)
        return pa.table(
            {
                "part": [part],
                "start": [start],
                "num_failed": [_num_failed(table)],
            }
        )

    def _apply(self, batch: pa.Table) -> pa.Table:
        for operator in self.stage.operators:
            batch = operator(batch)
        return batch.drop_columns([c for c in TRANSIENT if c in batch.column_names and self.last])

    def _load(self, part: int, start: int) -> Iterator[pa.Table]:
        """Micro-batches of a unit with their media, the next one loading while one is worked on."""
        if self.part_rows is None or self.part_rows[0] != part:
            self.part_rows = part, self.job.rows(part)[0]
        unit = self.part_rows[1].slice(start, self.job.phase.unit_rows)
        slices = _slices(unit, self.stage.batch_rows)
        load = self.job.phase.input.load
        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(load, self.job.storage, s) for s in slices[:1]]
            for following in [*slices[1:], None]:
                loaded = ahead.pop().result()
                if following is not None:
                    ahead.append(pool.submit(load, self.job.storage, following))
                yield loaded


def _slices(table: pa.Table, rows: int) -> list[pa.Table]:
    count = math.ceil(len(table) / rows) or 1
    return [table.slice(i * rows, rows) for i in range(count)]


def _num_failed(table: pa.Table) -> int:
    if "error" not in table.column_names:
        return 0
    return int(len(table) - table["error"].null_count)


def _limit_threads(threads: int) -> None:
    """Keep a worker inside its CPU share: libraries take every core of the machine otherwise."""
    pa.set_cpu_count(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for torch, if an operator loads it later
    # What an operator imports is there by now; importing torch for those without takes seconds.
    for name, function in (("cv2", "setNumThreads"), ("torch", "set_num_threads")):
        if name in sys.modules:
            getattr(sys.modules[name], function)(threads)


@ray.remote(num_cpus=0)
def _count_rows(job: _Job, part: int) -> int:
    return len(job.rows(part)[0])


@ray.remote(num_cpus=0)
def _compact(job: _Job, part: int, starts: list[int]) -> None:
    """Make the canonical file of a part from its units and the rows taken over, then tidy up."""
    path = f"{job.folder}/{job.part_file(part)}"
    _, reused = job.rows(part)
    try:
        units = [job.storage.read_table(job.unit_path(part, start)) for start in starts]
    except FileNotFoundError:
        if job.storage.exists(path):  # done by a worker that died while it tidied up
            return
        raise
    schema = pa.schema([f.remove_metadata() for f in job.phase.schema])
    tables = [schema.empty_table(), *units]
    if reused is not None:
        tables.append(reused)
    table = pa.concat_tables([t.select(schema.names).cast(schema) for t in tables])
    job.storage.write_part(path, table, job.phase.schema, job.phase.key)
    for start in starts:
        job.storage.remove(job.unit_path(part, start))


@ray.remote(num_cpus=0)
def _describe_part(job: _Job, part: int) -> Part:
    table_schema_columns = ["error"] if "error" in job.phase.schema.names else [job.phase.key]
    table = job.storage.read_table(f"{job.folder}/{job.part_file(part)}", table_schema_columns)
    return Part(
        f"{runs.version_of(job.phase.fingerprint)}/{job.part_file(part)}",
        len(table),
        _num_failed(table),
    )
