"""Shards from a plan and tokens: against direct reading, whatever groups, workers and kills.

The process that is killed is this file run as a script, with a folder.
"""

import dataclasses
import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.runs import Part, TableRecord
from infra.schedules import SCHEDULES
from infra.schema import TOKENS
from infra.storage import Storage
from packing.cost import Coefficients
from packing.members import Document, from_tokens
from packing.packs import INDEX
from packing.plan import PLAN
from packing.shards import PACK_INDEX, shard_name, write_shard
from pipelines import shard_groups, shuffle, write_shards
from pipelines.write_shards import ShardJob

PACKS_PER_SHARD, NUM_CODES = 4, 64
COST = Coefficients(per_token=2.0, per_pair=0.5, per_loss=10.0, per_pack=7.0)
BARE = pa.schema([field.remove_metadata() for field in TOKENS])


def make_row(name: str, rng: np.random.Generator) -> dict[str, object]:
    """A document of one to four texts and images, as a row of tokens; one in ten has failed."""
    segments: list[dict[str, object]] = []
    for _ in range(int(rng.integers(1, 5))):
        if rng.random() < 0.5:
            ids = rng.integers(0, 100, int(rng.integers(1, 30))).tolist()
            segments.append({"kind": "text", "loss": True, "text_ids": ids, "schedule": -1})
            continue
        schedule = int(rng.integers(len(SCHEDULES)))
        codes = rng.integers(0, NUM_CODES, (2, SCHEDULES[schedule].num_codes(3))).tolist()
        image = {"kind": "image", "role": "target", "loss": True, "schedule": schedule}
        image |= {"num_scales": 3, "input_codes": codes[0], "target_codes": codes[1]}
        segments.append(image | {"sampled": [1, 2, 3], "flipped": [0, 0, 0]})
    failed = {"stage": "tokenize", "type": "broken", "message": ""} if rng.random() < 0.1 else None
    row = {"doc_id": hashlib.md5(name.encode()).hexdigest(), "task": "t2i", "source": name[:1]}
    return row | {"segments": None if failed else segments, "error": failed}


def write_table(
    storage: Storage, name: str, seed: int, sizes: tuple[int, ...]
) -> tuple[TableRecord, list[pa.Table]]:
    rng, parts, tables = np.random.default_rng(seed), [], []
    for number, size in enumerate(sizes):
        rows = [make_row(f"{name}{number}{i}", rng) for i in range(size)]
        table = pa.Table.from_pylist(rows, schema=BARE)
        file = f"v/part-{number:05d}.parquet"
        storage.write_part(f"tokens/{name}/{file}", table, TOKENS, "doc_id")
        parts.append(Part(file, size))
        tables.append(storage.read_table(f"tokens/{name}/{file}"))
    record = TableRecord(f"tokens/{name}", name, name, "doc_id", tuple(parts), {})
    return record, tables


def make_job(storage: Storage) -> tuple[ShardJob, dict[str, bytes]]:
    """Two components, the second of two replicas; and the shards and index as they must be."""
    rng = np.random.default_rng(7)
    alone = write_table(storage, "alone", 1, (60, 3, 30))
    pair = [write_table(storage, "pair", 2, (50, 20)) for _ in range(2)]
    # The replica has other codes in the same places.
    mirrored = []
    for number, table in enumerate(pair[0][1]):
        rows = table.to_pylist()
        for segment in (s for row in rows for s in row["segments"] or () if s["input_codes"]):
            segment["input_codes"] = [NUM_CODES - 1 - code for code in segment["input_codes"]]
        mirrored.append(pa.Table.from_pylist(rows, schema=BARE))
        file = f"tokens/pair-r1/v/part-{number:05d}.parquet"
        storage.write_part(file, mirrored[-1], TOKENS, "doc_id")
    replica = dataclasses.replace(pair[0][0], table="tokens/pair-r1")
    tables = ((alone[0],), (pair[0][0], replica))
    content = ((alone[1],), (pair[0][1], mirrored))

    slices: list[dict[str, object]] = []
    for component, (first, *_) in enumerate(content):
        for part, table in enumerate(first):
            for row, segments in enumerate(table["segments"].to_pylist()):
                for copy in range(int(rng.integers(0, 4)) if segments else 0):
                    start = int(rng.integers(len(segments)))
                    where = {"component": component, "part": part, "token_row": row, "copy": copy}
                    length = int(rng.integers(1, len(segments) - start + 1))
                    sliced = where | {"first_segment": start, "num_segments": length}
                    id_ = table["doc_id"][row].as_py()
                    slices.append(sliced | {"doc_id": id_, "num_tokens": 50 * length})
    order = rng.permutation(len(slices))
    rejected = [slices[i] | {"reason": "over_budget"} for i in order[:5]]
    packs: list[list[dict[str, object]]] = []
    at = 5
    while at < len(order):
        size = int(rng.integers(1, 9))
        packs.append([slices[i] for i in order[at : at + size]])
        at += size
    rows = [
        document | {"pack": pack, "position": position}
        for pack, documents in enumerate(packs)
        for position, document in enumerate(documents)
    ] + rejected
    rows = [row | {"row": i} for i, row in enumerate(rows)]
    files = []
    for number, start in enumerate(range(0, len(rows), 90)):
        table = pa.Table.from_pylist(rows[start : start + 90], schema=PLAN)
        files.append(f"packs/v/plan/part-{number:06d}.parquet")
        storage.write_part(files[-1], table, PLAN, "row")
    job = ShardJob("packs/v", tuple(files), tables, len(packs), COST, NUM_CODES)
    return job, expected(content, packs)


def expected(
    content: tuple[tuple[list[pa.Table], ...], ...], packs: list[list[dict[str, object]]]
) -> dict[str, bytes]:
    """Every document read by itself out of its table and cut afterwards."""

    def read(of: dict[str, int]) -> Document:
        replicas = content[of["component"]]
        table = replicas[of["copy"] % len(replicas)][of["part"]].slice(of["token_row"], 1)
        [document] = from_tokens(table.take([0]), [of["copy"]])
        start = of["first_segment"]
        kept = document.segments[start : start + of["num_segments"]]
        return dataclasses.replace(document, segments=kept, first_segment=start)

    files, index = {}, []
    for start in range(0, len(packs), PACKS_PER_SHARD):
        name, buffer = shard_name(start // PACKS_PER_SHARD), io.BytesIO()
        here = enumerate(packs[start : start + PACKS_PER_SHARD], start)
        documents = ((pack, [read(row) for row in rows]) for pack, rows in here)
        index.append(write_shard(buffer, name, documents, COST, NUM_CODES))
        files[name] = buffer.getvalue()
    files[INDEX] = index_bytes(pa.concat_tables(index))
    return files


def index_bytes(index: pa.Table) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Storage(folder).write_part(INDEX, index, PACK_INDEX, "pack")
        return Storage(folder).read(INDEX)


def found(storage: Storage, job: ShardJob) -> dict[str, bytes]:
    """All that lies in the folder but the plan, temporary files too."""
    files = (path for path, *_ in storage.find(job.folder))
    return {
        path.removeprefix(f"{job.folder}/"): storage.read(path)
        for path in files
        if "/plan/" not in path
    }


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "ws"))
    return Storage(request.getfixturevalue("s3") + "/ws")


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "ws"))


@pytest.fixture(autouse=True)
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch.setattr)
    if "ray_session" not in request.fixturenames:  # workers would not know of the sizes
        monkeypatch.setattr("ray.is_initialized", lambda: False)


def shrink(setattr_: object, run_bytes: int = 20_000, group_bytes: int = 60_000) -> None:
    """Sizes at which a small job has several routes, runs, batches, and groups of shards."""
    for module, name, value in (
        (write_shards, "PACKS_PER_SHARD", PACKS_PER_SHARD),
        (write_shards, "ROW_GROUP_ROWS", 10),
        (shard_groups, "PLAN_FILES_PER_ROUTE", 2),
        (shard_groups, "GROUP_BYTES", group_bytes),
        (shard_groups, "MIN_GROUPS", 1),
        (shuffle, "RUN_BYTES", run_bytes),
        (shuffle, "BATCH_ROWS", 7),
    ):
        setattr_(module, name, value)  # type: ignore[operator]


def test_shards_are_those_of_documents_read_one_by_one(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.storage.ROW_GROUP_ROWS", 10)
    job, shards = make_job(storage)
    assert len(shards) > 8
    write_shards.write_shards(storage, job)
    assert found(storage, job) == shards
    write_shards.write_shards(storage, job)
    assert found(storage, job) == shards


@pytest.mark.parametrize(("run_bytes", "group_bytes"), [(1, 1), (1 << 30, 1 << 30), (5_000, 9_000)])
def test_neither_runs_nor_groups_show(
    local: Storage, monkeypatch: pytest.MonkeyPatch, run_bytes: int, group_bytes: int
) -> None:
    monkeypatch.setattr("infra.storage.ROW_GROUP_ROWS", 10)
    shrink(monkeypatch.setattr, run_bytes, group_bytes)
    job, shards = make_job(local)
    write_shards.write_shards(local, job)
    assert found(local, job) == shards


def test_ray_workers_write_the_same(
    local: Storage, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    job, shards = make_job(local)
    monkeypatch.setattr(write_shards, "ROW_GROUP_ROWS", 16_384)
    write_shards.write_shards(local, job)
    assert found(local, job) == shards


def test_a_run_that_was_cut_into_other_groups_is_of_no_harm(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.storage.ROW_GROUP_ROWS", 10)
    job, shards = make_job(local)
    write_index = write_shards._write_index
    monkeypatch.setattr(write_shards, "_write_index", stop)
    with pytest.raises(InterruptedError):
        write_shards.write_shards(local, job)
    monkeypatch.setattr(write_shards, "_write_index", write_index)
    shrink(monkeypatch.setattr, group_bytes=10_000)
    write_shards.write_shards(local, job)
    assert found(local, job) == shards


def stop(*_: object) -> None:
    raise InterruptedError


def test_a_plan_that_the_tokens_contradict_is_refused(local: Storage) -> None:
    job, _ = make_job(local)
    [first, *_] = job.plan
    rows = local.read_table(first).to_pylist()
    local.write_part(first, pa.Table.from_pylist(rows[1:], schema=PLAN), PLAN, "row")
    with pytest.raises(ValueError, match="leaves out a pack"):
        write_shards.write_shards(local, job)
    local.remove(f"{job.folder}/_shuffle")
    rows[3]["num_segments"] = 99
    local.write_part(first, pa.Table.from_pylist(rows, schema=PLAN), PLAN, "row")
    with pytest.raises(ValueError, match="lacks segments that the plan names"):
        write_shards.write_shards(local, job)


def test_codes_that_the_tokenizer_does_not_have_are_refused(local: Storage) -> None:
    job, _ = make_job(local)
    with pytest.raises(ValueError, match="the tokenizer has 63"):
        write_shards.write_shards(local, dataclasses.replace(job, num_codes=63))


def test_a_killed_process_goes_on_where_it_was(
    local: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed before the first file is in its place, then before the second and so on."""
    monkeypatch.setattr("infra.storage.ROW_GROUP_ROWS", 10)
    job, shards = make_job(local)
    (tmp_path / "job").write_bytes(pickle.dumps((local, job)))
    command = [sys.executable, __file__, str(tmp_path / "job")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8
    assert found(local, job) == shards


def main(path: str) -> None:
    """Run the job in one process after the other, each of which lives a step longer."""
    storage, job = pickle.loads(Path(path).read_bytes())
    shrink(setattr)
    for steps in range(1, 1000):
        child = os.fork()
        if not child:
            die_after(steps)
            write_shards.write_shards(storage, job)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            print(steps)
            return
        assert os.WIFSIGNALED(status), status
        assert os.WTERMSIG(status) == signal.SIGKILL


def die_after(steps: int) -> None:
    """Kill this process when it is about to put its next file in place, or to remove one."""
    left = [steps]

    def dying(act: object) -> object:
        def step(*args: object, **keywords: object) -> object:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*args, **keywords)  # type: ignore[operator]

        return step

    os.replace = dying(os.replace)  # type: ignore[assignment]
    os.unlink = dying(os.unlink)  # type: ignore[assignment]


if __name__ == "__main__":
    main(sys.argv[1])
