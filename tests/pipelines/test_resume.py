"""Killed with -9 anywhere and started again: the same bytes, and nothing done is done again.

Drivers are processes of their own: this file run as a script, with a job as JSON.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from infra.schema import ERROR, column
from infra.storage import Storage
from pipelines.phase import Phase, Stage

PER_PART = (13, 0, 9)
SCHEMA = pa.schema([column("id", pa.string(), "", ""), column("h", pa.string(), "", ""), ERROR])


@dataclass(frozen=True)
class Ids:
    columns: ClassVar[tuple[str, ...]] = ("id", "error")
    is_remote: ClassVar[bool] = False

    def rows(self, storage: Storage, part: int) -> pa.Table:
        ids = [hashlib.md5(f"{part}/{n}".encode()).hexdigest() for n in range(PER_PART[part])]
        return pa.table({"id": pa.array(ids, pa.string())})

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        return rows.append_column(ERROR, pa.nulls(len(rows), ERROR.type))


@dataclass(frozen=True)
class Hash:
    """Slow on purpose; notes the rows it computes and in which process."""

    reads: ClassVar[tuple[str, ...]] = ("id",)
    writes: ClassVar[pa.Schema] = pa.schema([SCHEMA.field("h")])
    not_in_output: ClassVar[tuple[str, ...]] = ("log", "pause_s", "poison")
    log: str
    pause_s: float
    poison: bool = False

    def __call__(self, batch: pa.Table) -> pa.Table:
        ids = batch["id"].to_pylist()
        time.sleep(self.pause_s)
        if self.poison and hashlib.md5(b"0/5").hexdigest() in ids:
            os._exit(1)
        with open(self.log, "a") as file:
            file.write("".join(f"{os.getpid()} {id_}\n" for id_ in ids))
        values = [hashlib.sha256(id_.encode()).hexdigest() for id_ in ids]
        return batch.append_column("h", pa.array(values, pa.string()))


def make_phase(job: dict[str, Any]) -> Phase:
    operator = Hash(job["log"], job.get("pause_s", 0.0), job.get("poison", False))
    return Phase(
        table="scores/numbers/hash",
        key="id",
        schema=SCHEMA,
        input=Ids(),
        num_parts=3,
        stages=(Stage((operator,), workers=job.get("workers", 1), batch_rows=1),),
        spec={},
        value_inputs=(),
        unit_rows=job.get("unit_rows", 2),
    )


def run_hashes(job: dict[str, Any]) -> None:
    from infra.cluster import session
    from pipelines.execution import run_phase

    with session(num_cpus=4):
        run_phase(Storage(job["workspace"]), make_phase(job))


def run_curate(job: dict[str, Any]) -> None:
    from infra.cluster import session
    from pipelines.curate_images import check, curate
    from pipelines.decide import Decide
    from pipelines.recipe import Recipe
    from pipelines.rules import Rule
    from pipelines.sections import Cheap, Documents, Pool
    from pipelines.source import Source

    pool = Pool(workers=job.get("workers", 1), unit_rows=job.get("unit_rows", 2))
    rules = (Rule(name="small", keep="width >= 300"), Rule(name="best", top=0.9, by="clarity"))
    recipe = Recipe(
        dataset="photos",
        workspace=job["workspace"],
        sources=(Source(name="p", kind="folder", path=job["photos"], part_rows=4),),
        cheap=Cheap(pool=pool),
        models=None,
        decide=Decide(rules=rules),
        documents=Documents(pool=pool),
    )
    check(recipe)
    with session(num_cpus=4):
        curate(recipe)


def run_hashes_on_two_nodes(job: dict[str, Any]) -> None:
    """The phase on a cluster that loses a node as soon as that node has done some rows."""
    import threading

    import ray
    from ray.cluster_utils import Cluster

    from infra.cluster import session
    from pipelines.execution import run_phase

    # Between them the nodes have just the CPUs that the pool needs.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    victim = cluster.add_node(num_cpus=1)
    killed = threading.Event()

    def kill() -> None:
        while len({line.split()[0] for line in Path(job["log"]).read_text().splitlines()}) < 2:
            time.sleep(0.05)
        cluster.remove_node(victim, allow_graceful=False)
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    with session(address=cluster.address):
        run_phase(Storage(job["workspace"]), make_phase(job))
        assert killed.is_set(), "the phase ended before the node was killed"
        ray.shutdown()
    cluster.shutdown()


@dataclass
class Driver:
    """A run in a process of its own."""

    job: dict[str, Any]
    log: Path

    def start(self) -> None:
        with open(self.log, "a") as log:
            command = [sys.executable, __file__, json.dumps(self.job)]
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=Path(__file__).parents[2]
            )

    def wait_until(self, seen: Callable[[], bool]) -> None:
        """Wait for something to be seen; the run must not have ended."""
        deadline = time.monotonic() + 180
        while not seen():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self, timeout_s: float = 240) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the run hangs:\n{self.log.read_text()}")


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def start(**job: Any) -> Driver:
        driver = Driver(job, tmp_path / "driver.log")
        drivers.append(driver)
        driver.start()
        return driver

    yield start
    for driver in drivers:
        driver.kill()


def content(workspace: Path) -> dict[str, str]:
    """Hash of every file of every table; run records tell times and are left out."""
    return {
        str(file.relative_to(workspace)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(workspace.rglob("*"))
        if file.is_file() and file.relative_to(workspace).parts[0] not in ("runs", "samples")
    } | {
        str(file.relative_to(workspace)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(workspace.glob("samples/*/[_v]*"))
        if file.is_file()
    }


def computed(log: Path) -> Counter[str]:
    return Counter(line.split()[1] for line in log.read_text().splitlines())


def expected_hashes(workspace: Path, log: Path) -> None:
    """What an uninterrupted run leaves, in this process: the session of all tests serves."""
    from pipelines.execution import run_phase

    run_phase(Storage(str(workspace)), make_phase({"log": str(log), "unit_rows": 5}))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_killed_driver(tmp_path: Path, drive: Callable[..., Driver]) -> None:
    log, workspace = tmp_path / "log", tmp_path / "ws"
    job = {"run": "hashes", "workspace": str(workspace), "log": str(log)}
    driver = drive(**job, pause_s=0.3)
    units = "scores/numbers/hash/*/_units/*.parquet"
    driver.wait_until(lambda: len(list(workspace.glob(units))) >= 3)
    driver.kill()
    time.sleep(1)  # its workers learn of it
    kept = len([f for f in workspace.glob(units) if ".tmp-" not in f.name])
    before = computed(log)
    assert not (workspace / "scores/numbers/hash/_table.json").exists()
    assert drive(**job).finish() == 0
    rows = [id_ for id_, count in (computed(log) - before).items() for _ in range(count)]
    # Part 0 has seven units of 2, 2, 2, 2, 2, 2 and 1 rows: committed ones are not computed again.
    assert kept >= 3
    assert 0 < len(rows) <= 22 - 2 * kept + 1
    expected_hashes(tmp_path / "fresh", log)
    assert content(workspace) == content(tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker(tmp_path: Path, drive: Callable[..., Driver]) -> None:
    log, workspace = tmp_path / "log", tmp_path / "ws"
    log.touch()
    job = {"run": "hashes", "workspace": str(workspace), "log": str(log), "workers": 2}
    driver = drive(**job, pause_s=0.3)
    driver.wait_until(lambda: computed(log).total() >= 5)
    victim = int(log.read_text().split()[0])
    os.kill(victim, signal.SIGKILL)
    assert driver.finish() == 0
    # Only the unit in the worker's hands is lost; the others are computed once.
    assert computed(log).total() <= 22 + 2
    assert len({line.split()[0] for line in log.read_text().splitlines()}) >= 2
    expected_hashes(tmp_path / "fresh", log)
    assert content(workspace) == content(tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_killed_node_with_the_workspace_on_s3(
    tmp_path: Path, s3: str, drive: Callable[..., Driver]
) -> None:
    log, remote = tmp_path / "log", Storage(s3 + "/ws")
    log.touch()
    job = {"workspace": remote.root, "log": str(log), "workers": 2, "pause_s": 1.0}
    driver = drive(run="two nodes", **job)
    assert driver.finish(timeout_s=400) == 0, driver.log.read_text()
    expected_hashes(tmp_path / "fresh", log)
    found = {
        path: hashlib.sha256(remote.read(path)).hexdigest() for path, *_ in remote.find("scores")
    }
    assert found == content(tmp_path / "fresh")


@pytest.mark.slow
def test_a_row_that_kills_every_worker_ends_the_run(
    tmp_path: Path, drive: Callable[..., Driver]
) -> None:
    """Native code that crashes on one row must not be started again for ever."""
    job = {"workspace": str(tmp_path / "ws"), "log": str(tmp_path / "log"), "poison": True}
    driver = drive(run="hashes", **job)
    assert driver.finish(timeout_s=240) != 0
    last = driver.log.read_text().strip().splitlines()[-1]
    assert last.startswith("RuntimeError: phase scores/numbers/hash: a worker died 9 times:")


@pytest.mark.slow
def test_curate_killed_in_every_phase(
    tmp_path: Path, photos: Path, drive: Callable[..., Driver]
) -> None:
    job = {"run": "curate", "photos": str(photos)}
    assert drive(**job, workspace=str(tmp_path / "whole"), unit_rows=3).finish() == 0
    workspace = tmp_path / "killed"
    for seen in (
        "samples/p/v-*/*",
        "samples/p/_table.json",
        "scores/p/cheap/*/_units/*",
        "scores/p/cheap/_table.json",
        "decisions/photos/v-*/*",
        "captions/photos/v-*/*",
        "documents/photos/*/_units/*",
        "documents/photos/v-*/part-00000.parquet",
    ):
        driver = drive(**job, workspace=str(workspace), workers=2)
        driver.wait_until(lambda seen=seen: any(workspace.glob(seen)))
        driver.kill()
    assert drive(**job, workspace=str(workspace)).finish() == 0
    assert content(workspace) == content(tmp_path / "whole")


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    {
        "hashes": run_hashes,
        "two nodes": run_hashes_on_two_nodes,
        "curate": run_curate,
    }[told["run"]](told)
