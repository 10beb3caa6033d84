"""Phases in one Ray session: same bytes however they are cut, and only what is new is computed."""

import hashlib
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import ray

from infra import runs
from infra.config import ConfigError
from infra.runs import TableRecord
from infra.schema import ERROR, column
from infra.storage import Storage
from pipelines.execution import run_phase
from pipelines.phase import Phase, Stage

pytestmark = pytest.mark.usefixtures("ray_session")

ID = column("id", pa.string(), "", "")
SCHEMA = pa.schema([ID, column("square", pa.int64(), "", ""), ERROR])

# Workers cannot import a test module: its classes travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Numbers:
    """Numbers 0…n-1 of each part, in an order that is not that of the ids."""

    per_part: tuple[int, ...]
    at_least: int = 0
    columns: ClassVar[tuple[str, ...]] = ("id", "number", "error")
    is_remote: ClassVar[bool] = False

    def rows(self, storage: Storage, part: int) -> pa.Table:
        numbers = [n for n in range(self.per_part[part]) if n >= self.at_least]
        ids = [hashlib.md5(f"{part}/{n}".encode()).hexdigest() for n in numbers]
        return pa.table({"id": pa.array(ids, pa.string()), "number": pa.array(numbers, pa.int64())})

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        return rows.append_column(ERROR, pa.nulls(len(rows), ERROR.type))


@dataclass(frozen=True)
class Square:
    """Squares numbers, notes what it computes in a log, fails rows divisible by 7."""

    reads: ClassVar[tuple[str, ...]] = ("number",)
    writes: ClassVar[pa.Schema] = pa.schema([SCHEMA.field("square")])
    not_in_output: ClassVar[tuple[str, ...]] = ("log", "bug_at", "die_at")
    log: str
    plus: int = 0
    bug_at: int = -1
    die_at: int = -1
    loads: list[int] = field(default_factory=list, compare=False)

    def __call__(self, batch: pa.Table) -> pa.Table:
        if not self.loads:
            self.loads.append(os.getpid())
            self.note(f"load {os.getpid()} {type(self).__name__}\n")
        numbers = batch["number"].to_pylist()
        self.note("".join(f"row {id_}\n" for id_ in batch["id"].to_pylist()))
        if self.bug_at in numbers:
            raise ZeroDivisionError("a bug of ours")
        if self.die_at in numbers:
            os._exit(1)
        bad = [n % 7 == 0 for n in numbers]
        squares = [None if b else n * n + self.plus for n, b in zip(numbers, bad, strict=True)]
        errors = [{"stage": "square", "type": "seven", "message": "m"} if b else None for b in bad]
        place = batch.column_names.index("error")
        batch = batch.set_column(place, "error", pa.array(errors, ERROR.type))
        return batch.append_column("square", pa.array(squares, pa.int64()))

    def note(self, text: str) -> None:
        with open(self.log, "a") as file:
            file.write(text)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"loads": []}


@dataclass(frozen=True)
class Negate:
    reads: ClassVar[tuple[str, ...]] = ("square",)
    writes: ClassVar[pa.Schema] = pa.schema([column("negative", pa.int64(), "", "")])

    def __call__(self, batch: pa.Table) -> pa.Table:
        values = [None if v is None else -v for v in batch["square"].to_pylist()]
        return batch.append_column("negative", pa.array(values, pa.int64()))


def make_phase(operator: Square, **changes: Any) -> Phase:
    workers, batch_rows = changes.pop("workers", 1), changes.pop("batch_rows", 4)
    values: dict[str, Any] = {
        "table": "scores/numbers/square",
        "key": "id",
        "schema": SCHEMA,
        "input": Numbers((23, 0, 9)),
        "num_parts": 3,
        "stages": (Stage((operator,), workers, batch_rows=batch_rows),),
        "spec": {},
        "value_inputs": (),
        "unit_rows": 4,
    }
    return Phase(**(values | changes))


def computed(log: Path) -> Counter[str]:
    if not log.exists():
        return Counter()
    return Counter(line[4:] for line in log.read_text().splitlines() if line.startswith("row "))


def content(folder: Path) -> dict[str, str]:
    """Hash of every file of a table, with the name it has there."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_rows_are_all_there_in_order_of_id(tmp_path: Path, log: Path) -> None:
    storage = Storage(str(tmp_path / "ws"))
    record = run_phase(storage, make_phase(Square(str(log))))
    assert [(part.num_rows, part.num_failed) for part in record.parts] == [(23, 4), (0, 0), (9, 2)]
    table = storage.read_table(record.path(0))
    assert table.column_names == SCHEMA.names
    ids = table["id"].to_pylist()
    assert ids == sorted(hashlib.md5(f"0/{n}".encode()).hexdigest() for n in range(23))
    squares = dict(zip(ids, table["square"].to_pylist(), strict=True))
    assert squares[hashlib.md5(b"0/5").hexdigest()] == 25
    assert squares[hashlib.md5(b"0/14").hexdigest()] is None
    assert set(computed(log).values()) == {1}
    # Nothing is left of the units, and one record of the run is there.
    assert {Path(name).name for name in content(tmp_path / "ws/scores")} == {
        "_table.json",
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    }
    [run] = storage.names("runs")
    told = storage.read_json(f"runs/{run}")
    assert (told["rows_out"], told["rows_failed"]) == (32, 6)
    assert (told["units"], told["rows_computed"], told["retry"]) == (6 + 3, 32, None)
    seconds = told["load_s"] + told["operators_s"] + told["write_s"]
    assert told["cpu_s"] == pytest.approx(seconds)
    assert 0 < seconds < told["duration_s"]
    assert told["gpu_s"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 2},
        {"unit_rows": 16},
        {"unit_rows": 1, "workers": 3},
        {"batch_rows": 1},
        {"batch_rows": 100, "unit_rows": 100},
    ],
    ids=str,
)
def test_bytes_do_not_depend_on_how_the_work_is_cut(
    tmp_path: Path, log: Path, changes: dict[str, int]
) -> None:
    run_phase(Storage(str(tmp_path / "a")), make_phase(Square(str(log))))
    run_phase(Storage(str(tmp_path / "b")), make_phase(Square(str(log)), **changes))
    assert content(tmp_path / "a/scores") == content(tmp_path / "b/scores")


def test_two_pools_give_the_bytes_of_one(tmp_path: Path, log: Path) -> None:
    schema = pa.schema([*SCHEMA, column("negative", pa.int64(), "", "")])
    one = (Stage((Square(str(log)), Negate()), batch_rows=3),)
    two = (
        Stage((Square(str(log)),), batch_rows=3, num_cpus=0.5),
        Stage((Negate(),), batch_rows=5, workers=2),
    )
    for name, stages in (("a", one), ("b", two)):
        phase = make_phase(Square(""), schema=schema, stages=stages)
        record = run_phase(Storage(str(tmp_path / name)), phase)
        assert record.num_rows == 32
    assert content(tmp_path / "a/scores") == content(tmp_path / "b/scores")


def test_a_second_run_computes_nothing(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(tmp_path / "ws"))
    first = run_phase(storage, make_phase(Square(str(log))))
    before, done = content(tmp_path / "ws"), computed(log)
    assert run_phase(storage, make_phase(Square(str(log)), unit_rows=16, workers=2)) == first
    assert computed(log) == done
    assert content(tmp_path / "ws") == before
    assert "up to date" in capsys.readouterr().err


def test_a_bug_stops_the_run_with_its_traceback_and_what_is_done_stays(
    tmp_path: Path, log: Path
) -> None:
    storage = Storage(str(tmp_path / "ws"))
    phase = make_phase(Square(str(log), bug_at=22))
    with pytest.raises(Exception, match="a bug of ours") as raised:
        run_phase(storage, phase)
    assert "ZeroDivisionError" in str(raised.value)
    assert "in __call__" in str(raised.value)
    assert runs.load_record(storage, phase.table) is None
    folder = f"{phase.table}/{runs.version_of(phase.fingerprint)}"
    there = set(storage.names(f"{folder}/_units"))
    done = at_rest(storage, folder, there)
    before = computed(log)
    run_phase(storage, make_phase(Square(str(log))))
    again = computed(log) - before
    # The worker may have begun what was queued behind the bug, and end it after we looked.
    assert len(again) <= 32 - done
    units = {int(m[1]) for name in there if (m := re.match(r"p00000-(\d+)", name))}
    assert units == {0, 4, 8, 12, 16}
    assert {hashlib.md5(f"0/{n}".encode()).hexdigest() for n in (20, 21, 22)} <= set(again)
    fresh = Storage(str(tmp_path / "fresh"))
    run_phase(fresh, make_phase(Square(str(log))))
    assert content(tmp_path / "ws/scores") == content(tmp_path / "fresh/scores")


def computed_rows(unit: str) -> int:
    part, start = int(unit[1:6]), int(unit[7:16])
    return min(4, (23, 0, 9)[part] - start)


def at_rest(storage: Storage, folder: str, units: set[str]) -> int:
    """Rows in parts, and in units of parts that are not there yet."""
    parts = {name for name in storage.names(folder) if name.startswith("part-")}
    left = [name for name in units if f"part-{name[1:6]}.parquet" not in parts]
    rows = [storage.read_table(f"{folder}/{name}").num_rows for name in parts]
    return sum(rows) + sum(map(computed_rows, left))


def test_a_gate_that_admits_more_computes_only_those(tmp_path: Path, log: Path) -> None:
    storage, operator = Storage(str(tmp_path / "ws")), Square(str(log))
    narrow = make_phase(operator, input=Numbers((23, 0, 9), at_least=8), row_filter="n >= 8")
    run_phase(storage, narrow)
    assert computed(log).total() == 15 + 1
    wide = make_phase(operator, input=Numbers((23, 0, 9), at_least=3), row_filter="n >= 3")
    run_phase(storage, wide)
    # 14 and 21 had failed: they are tried again.
    assert computed(log).total() == 20 + 6 + 2
    twice = {id_ for id_, count in computed(log).items() if count == 2}
    assert twice == {hashlib.md5(f"0/{n}".encode()).hexdigest() for n in (14, 21)}
    # Narrower again: nothing else to compute, and rows that are out are gone.
    assert run_phase(storage, narrow).num_rows == 16
    assert computed(log).total() == 28 + 2
    fresh = Storage(str(tmp_path / "fresh"))
    run_phase(fresh, narrow)
    assert content(tmp_path / "ws/scores") == content(tmp_path / "fresh/scores")


def test_a_changed_parameter_computes_all_again(tmp_path: Path, log: Path) -> None:
    storage = Storage(str(tmp_path / "ws"))
    run_phase(storage, make_phase(Square(str(log))))
    record = run_phase(storage, make_phase(Square(str(log), plus=1)))
    assert set(computed(log).values()) == {2}
    assert storage.read_table(record.path(2))["square"].drop_null().to_pylist().count(26) == 1
    # The version that it replaces is gone.
    assert len(list((tmp_path / "ws/scores/numbers/square").iterdir())) == 2


def test_a_model_loads_once_per_worker(tmp_path: Path, log: Path) -> None:
    phase = make_phase(Square(str(log)), workers=2, unit_rows=1)
    run_phase(Storage(str(tmp_path / "ws")), phase)
    loads = [line for line in log.read_text().splitlines() if line.startswith("load")]
    assert len(loads) == len(set(loads)) <= 2


def test_too_few_cpus_fail_at_once(tmp_path: Path, log: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs 9 CPUs, the session has 4: lower `workers`"):
        run_phase(Storage(str(tmp_path)), make_phase(Square(str(log)), workers=9))
    assert not log.exists()
    stage = Stage((Square(str(log)),), num_gpus=64.0)
    with pytest.raises(ConfigError, match="64 GPUs"):
        run_phase(Storage(str(tmp_path)), make_phase(Square(""), stages=(stage,)))


def test_a_missing_column_fails_at_once(tmp_path: Path) -> None:
    phase = make_phase(Square(""), stages=(Stage((Negate(),)),))
    with pytest.raises(ConfigError, match="Negate reads `square`, which no earlier step writes"):
        run_phase(Storage(str(tmp_path)), phase)


def test_repeated_ids_stop_the_run(tmp_path: Path, log: Path) -> None:
    twice = Twice((5,))
    with pytest.raises(Exception, match="id repeats"):
        run_phase(Storage(str(tmp_path)), make_phase(Square(str(log)), input=twice, num_parts=1))


@dataclass(frozen=True)
class Twice(Numbers):
    def rows(self, storage: Storage, part: int) -> pa.Table:
        rows = super().rows(storage, part)
        return pa.concat_tables([rows, rows.slice(2, 1)])


def test_compaction_can_be_run_again(tmp_path: Path, log: Path) -> None:
    """A worker may die between writing a part and removing its units; Ray runs the task again."""
    from pipelines import workers

    storage = Storage(str(tmp_path / "ws"))
    phase = make_phase(Square(str(log)))
    record: TableRecord = run_phase(storage, phase)
    folder = f"{phase.table}/{runs.version_of(record.fingerprint)}"
    job = workers.Job(storage, phase, folder, None)
    before = content(tmp_path / "ws")
    workers.compact(job, 0, list(range(0, 23, 4)))
    assert content(tmp_path / "ws") == before


def test_many_parts_do_not_start_many_processes(tmp_path: Path, log: Path) -> None:
    """Side tasks reserve no CPU, so only we bound how many run at once."""
    phase = make_phase(Square(str(log)), input=Numbers((2,) * 40), num_parts=40, unit_rows=2)
    record = run_phase(Storage(str(tmp_path)), phase)
    assert record.num_rows == 80
    workers = [
        process
        for process in Path("/proc").iterdir()
        if process.name.isdigit()
        and b"ray::" in (process / "cmdline").read_bytes().partition(b"\0")[0]
    ]
    assert len(workers) < 30
