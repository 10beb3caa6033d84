"""What runs in a phase's worker processes: units through operators, and parts put together.

Everything here may be run again at any time: results appear whole, and under the same names.
"""

import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from infra import runs
from infra.runs import Part, TableRecord
from infra.storage import Storage
from pipelines.phase import TRANSIENT, Phase


@dataclass(frozen=True)
class Job:
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


class UnitWorker:
    """Holds a stage's operators, so that weights load once per process, and runs units."""

    def __init__(self, job: Job, index: int) -> None:
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
        """Micro-batches of a unit with their media."""
        if self.part_rows is None or self.part_rows[0] != part:
            self.part_rows = part, self.job.rows(part)[0]
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

    def count(self, job: Job, part: int) -> int:
        return len(job.rows(part)[0])

    def compact(self, job: Job, part: int, starts: list[int]) -> None:
        compact(job, part, starts)

    def describe(self, job: Job, part: int) -> Part:
        column = "error" if "error" in job.phase.schema.names else job.phase.key
        file = job.part_file(part)
        table = job.storage.read_table(f"{job.folder}/{file}", [column])
        version = runs.version_of(job.phase.fingerprint)
        return Part(f"{version}/{file}", len(table), _num_failed(table))


def compact(job: Job, part: int, starts: list[int]) -> None:
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
