"""Spilled documents: each once, cut as planned, in bounded runs, each part read once."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pytest

from infra.runs import Part, TableRecord
from infra.schema import TOKENS
from infra.storage import Storage
from packing.plan import PLAN
from pipelines import shuffle
from pipelines.shard_groups import Groups
from pipelines.shuffle import read_documents, spill

ROWS, SEGMENTS = 40, 3


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("infra.storage.ROW_GROUP_ROWS", 16)
    monkeypatch.setattr(shuffle, "BATCH_ROWS", 5)
    monkeypatch.setattr(shuffle, "RUN_BYTES", 4_000)


def make(storage: Storage, used: range = range(ROWS)) -> tuple[TableRecord, list[dict[str, int]]]:
    """Two parts of texts whose ids say part, row and segment; and a plan of slices of them."""
    schema = pa.schema([field.remove_metadata() for field in TOKENS])
    rng, planned, parts = np.random.default_rng(1), [], []
    for part in range(2):
        rows = [
            {
                "doc_id": f"{part}-{row:03d}",
                "task": "text",
                "source": "s",
                "segments": [
                    {"kind": "text", "loss": True, "text_ids": [part, row, i] + [0] * (row % 7)}
                    for i in range(SEGMENTS)
                ],
            }
            for row in range(ROWS)
        ]
        file = f"part-{part}.parquet"
        storage.write_part(f"t/{file}", pa.Table.from_pylist(rows, schema=schema), TOKENS, "doc_id")
        parts.append(Part(file, ROWS))
        for row in used:
            for copy in range(row % 3):
                first = int(rng.integers(SEGMENTS))
                where = {"component": 0, "part": part, "token_row": row, "copy": copy}
                length = int(rng.integers(1, SEGMENTS - first + 1))
                planned.append(where | {"first_segment": first, "num_segments": length})
    order = rng.permutation(len(planned))
    planned = [
        planned[i] | {"row": n, "pack": n // 3, "position": n % 3} for n, i in enumerate(order)
    ]
    storage.write_part("plan", pa.Table.from_pylist(planned, schema=PLAN), PLAN, "row")
    return TableRecord("t", "", "", "doc_id", tuple(parts)), planned


@pytest.mark.parametrize("num_codes", [64, 100_000])
def test_a_group_is_given_its_documents_once(tmp_path: Path, num_codes: int) -> None:
    storage = Storage(str(tmp_path))
    table, planned = make(storage)
    num_packs = planned[-1]["pack"] + 1
    groups = Groups(np.array([0, 4, 5, 12, num_packs]))
    num_runs = spill(storage, "x", ["plan"], [[table]], groups, num_codes)
    assert (num_runs > 1).all()
    seen = []
    for group in range(len(groups)):
        for rows in read_documents(storage, "x", num_runs, group):
            places = list(zip(rows["pack"].to_pylist(), rows["position"].to_pylist(), strict=True))
            assert places == sorted(places)
            for (pack, position), row in zip(places, rows.to_pylist(), strict=True):
                assert groups.starts[group] <= pack < groups.starts[group + 1]
                wanted = planned[3 * pack + position]
                assert (row["copy"], row["first_segment"]) == (
                    wanted["copy"],
                    wanted["first_segment"],
                )
                first = wanted["first_segment"]
                assert [segment["text_ids"][:3] for segment in row["segments"]] == [
                    [wanted["part"], wanted["token_row"], first + i]
                    for i in range(wanted["num_segments"])
                ]
                assert row["doc_id"] == f"{wanted['part']}-{wanted['token_row']:03d}"
                seen.append((pack, position))
    assert sorted(seen) == [(row["pack"], row["position"]) for row in planned]


def test_parts_that_ended_are_not_read_again_and_others_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    table, planned = make(storage)
    groups = Groups(np.array([0, 9, planned[-1]["pack"] + 1]))
    num_runs = spill(storage, "x", ["plan"], [[table]], groups, 64)
    runs = {path: storage.read(path) for path, *_ in storage.find("x")}
    storage.remove(f"x/ended/000001-{num_runs[1]}")
    storage.remove("x/runs/000001-0000")
    opened, plain = [], Storage.open

    def watched(self: Storage, path: str) -> BinaryIO:
        opened.append(path)
        return plain(self, path)

    monkeypatch.setattr(Storage, "open", watched)
    assert spill(storage, "x", ["plan"], [[table]], groups, 64).tolist() == num_runs.tolist()
    assert opened == ["t/part-1.parquet"]
    assert {path: storage.read(path) for path, *_ in storage.find("x")} == runs


def test_row_groups_and_parts_that_no_one_wants_are_skipped(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    table, planned = make(storage, range(17, 18))
    groups = Groups(np.array([0, planned[-1]["pack"] + 1]))
    assert spill(storage, "x", ["plan"], [[table]], groups, 64).tolist() == [1, 1]
    one = [row | {"row": 0, "pack": 0, "position": 0} for row in planned if row["part"]][:1]
    storage.write_part("plan", pa.Table.from_pylist(one, schema=PLAN), PLAN, "row")
    assert spill(storage, "y", ["plan"], [[table]], groups, 64).tolist() == [0, 1]
