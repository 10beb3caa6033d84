"""What runs in a phase's worker processes: units through operators, and parts put together.

Everything here may be run again at any time: results appear whole, and under the same names.
"""

import json
import math
import os
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from infra import runs
from infra.runs import Part
from pipelines.job import Job
from pipelines.phase import is_transient


class Described(NamedTuple):
    """A finished part; of its rows that had failed before, how many were tried and now succeed."""

    part: Part
    num_tried: int = 0
    num_recovered: int = 0


class UnitWorker:
    """Holds a stage's operators, so that weights load once per process, and runs units."""

    def __init__(self, job: Job, index: int) -> None:
        self.job, self.stage = job, job.phase.stages[index]
        self.first, self.last = index == 0, index == len(job.phase.stages) - 1
        self.part_rows: tuple[int, pa.Table] | None = None
        self.name, self.batches = uuid.uuid4().hex[:8], 0
        _limit_threads(max(1, int(self.stage.num_cpus)))

    def __call__(self, block: pa.Table) -> pa.Table:
        part, start = block["part"][0].as_py(), block["start"][0].as_py()
        batches = self._load(part, start) if self.first else _slices(block, self.stage.batch_rows)
        done, times = [], []
        before = time.perf_counter()
        for batch in batches:
            loaded = time.perf_counter()
            done.append(self._apply(batch))
            applied = time.perf_counter()
            times.append([len(batch), loaded - before, applied - loaded])
            before = applied
        table = pa.concat_tables(done)
        phase = self.job.phase
        if self.last:
            path = self.job.unit_path(part, start)
            self.job.storage.write_part(path, table, phase.schema, phase.key)
        told = {
            "worker": self.name,
            "is_first": self.batches == 0,
            "batches": times,
            "write_s": time.perf_counter() - before,
        }
        self.batches += len(times)
        stages = [] if self.first else json.loads(block["stages"][0].as_py())
        summary = {"part": part, "start": start, "stages": json.dumps([*stages, told])}
        if not self.last:
            for name, value in summary.items():
                filled = pa.repeat(pa.scalar(value), len(table))
                if name in table.column_names:
                    table = table.drop_columns([name])
                table = table.append_column(name, filled)
            return table
        summary["num_failed"] = _num_failed(table)
        return pa.table({name: [value] for name, value in summary.items()})

    def _apply(self, batch: pa.Table) -> pa.Table:
        for operator in self.stage.operators:
            batch = operator(batch)
        return batch.drop_columns([c for c in batch.column_names if self.last and is_transient(c)])

    def _load(self, part: int, start: int) -> Iterator[pa.Table]:
        """Micro-batches of a unit with their media."""
        if self.part_rows is None or self.part_rows[0] != part:
            self.part_rows = part, self.job.split(part).rows
        phase, storage = self.job.phase, self.job.storage
        unit = self.part_rows[1].slice(start, phase.unit_rows)
        slices = _slices(unit, self.stage.batch_rows)
        if storage.is_local and not phase.input.is_remote:
            # A thread that reads ahead would cost more than local files take to read: a tenth of
            # the time went into passing the interpreter's lock to and fro.
            for rows in slices:
                yield phase.input.load(storage, rows)
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(phase.input.load, storage, rows) for rows in slices[:1]]
            for following in [*slices[1:], None]:
                loaded = ahead.pop().result()
                if following is not None:
                    ahead.append(pool.submit(phase.input.load, storage, following))
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


class SideWorker:
    """Counts, compacts and describes parts, beside the pools and hence without a CPU of its own.

    An actor, because tasks without a CPU start a process of their own each time, which costs more
    than most parts do. Each method may be run again at any time.
    """

    def count(self, job: Job, part: int) -> int | None:
        """Rows to compute; None where the part stays as it is."""
        split = job.split(part)
        return None if job.stays(part, split) else len(split.rows)

    def compact(self, job: Job, part: int, starts: list[int]) -> None:
        compact(job, part, starts)

    def describe(self, job: Job, part: int) -> Described:
        key, file = job.phase.key, job.part_file(part)
        columns = [key, "error"] if "error" in job.phase.schema.names else [key]
        table = job.storage.read_table(f"{job.folder}/{file}", columns)
        name = f"{job.folder.rpartition('/')[2]}/{file}"
        if "error" not in columns:
            return Described(Part(name, len(table)))
        failed = table.filter(pc.is_valid(table["error"]))
        made = Part(name, len(table), len(failed), runs.failures(key, failed))
        if job.previous is None or not job.previous.parts[part].num_failed:
            return Described(made)
        tried = job.split(part).tried
        assert tried is not None
        still = pc.sum(pc.is_in(tried, failed[key].combine_chunks())).as_py() or 0
        return Described(made, len(tried), len(tried) - still)


def compact(job: Job, part: int, starts: list[int]) -> None:
    """Make the canonical file of a part from its units and the rows taken over, then tidy up."""
    path = f"{job.folder}/{job.part_file(part)}"
    split = job.split(part)
    try:
        units = [job.storage.read_table(job.unit_path(part, start)) for start in starts]
    except FileNotFoundError:
        if job.storage.exists(path):  # done by a worker that died while it tidied up
            return
        raise
    schema = pa.schema([f.remove_metadata() for f in job.phase.schema])
    tables = [schema.empty_table(), *units]
    if job.previous is not None:
        tables.append(job.storage.read_table(job.previous.path(part)).filter(split.taken))
    table = pa.concat_tables([t.select(schema.names).cast(schema) for t in tables])
    job.storage.write_part(path, table, job.phase.schema, job.phase.key)
    for start in starts:
        job.storage.remove(job.unit_path(part, start))
