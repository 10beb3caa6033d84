"""The manifest on disk: its rows, its order, its epochs, and what is not made twice."""

import math
import os

import numpy as np
import pyarrow as pa
import pytest

from infra import catalog
from infra.segments import Text
from infra.storage import Storage
from packing.cost import Coefficients
from packing.order import order_keys
from packing.plan import MANIFEST, Packing
from packing.slices import Slicing
from pipelines import manifest as module
from pipelines.manifest import Manifest, hold, ordered, rejected, take, write_manifest
from pipelines.manifest_rows import Limits
from pipelines.pack_phase import PackComponent
from pipelines.selection import select

PACKING = Packing(tokens_per_pack=40, token_slack=1.25, seed=5)
OF = Coefficients(1.0, 0.01, 0.5)


@pytest.fixture
def made(tmp_path, token_table, monkeypatch):
    """A manifest of 90 texts with 2 copies each; those of more than 50 tokens fit no pack."""
    monkeypatch.setattr(module, "PART_ROWS", 25)
    storage, rng = Storage(str(tmp_path)), np.random.default_rng(0)
    lengths = {f"d{i:03d}": int(rng.integers(1, 55)) for i in range(90)}
    texts = {name: ("text", [Text(np.zeros(n, np.int32))]) for name, n in lengths.items()}
    tokens = token_table(storage, "texts-256", texts, part_rows=10)
    component = PackComponent("texts", tokens, copies=2)
    limits = Limits(Slicing(drop_captions=0.0), PACKING, OF, math.inf)
    manifest = Manifest("packs/x/v/_plan", (component,), limits)
    with catalog.connect(storage, views=False) as con:
        select(con, storage, manifest.components, PACKING, OF)
        yield con, storage, manifest, lengths


@pytest.mark.parametrize("batch_rows", [7, 1 << 16])
def test_streams_are_sorted_and_whole_whatever_the_batches(made, monkeypatch, batch_rows):
    con, storage, manifest, lengths = made
    monkeypatch.setattr(module, "BATCH_ROWS", batch_rows)
    write_manifest(con, storage, manifest, [3])
    rows = pa.concat_tables(ordered(con, storage, manifest, 0, 3))
    assert rows.schema.equals(MANIFEST)
    fits = sorted(name for name, n in lengths.items() if n <= PACKING.token_cap)
    wanted = []
    for epoch in range(3):
        pairs = [(name, copy) for name in fits for copy in (2 * epoch, 2 * epoch + 1)]
        names, copies = (list(values) for values in zip(*pairs, strict=True))
        keys = order_keys(names, copies, [0] * len(pairs), PACKING.seed).tolist()
        wanted += [(epoch, *row) for row in sorted(zip(keys, names, copies, strict=True))]
    names = ("epoch", "key", "doc_id", "copy")
    assert list(zip(*(rows[name].to_pylist() for name in names), strict=True)) == wanted
    for row in rows.to_pylist():
        place = storage.read_table(manifest.components[0].tokens.path(row["part"]), ["doc_id"])
        assert place["doc_id"][row["token_row"]].as_py() == row["doc_id"]
        assert row["num_tokens"] == lengths[row["doc_id"]]
    lost = pa.concat_tables(rejected(con, storage, manifest, [3]))
    assert set(lost["reason"].to_pylist()) == {"over_token_cap"}
    assert sorted(lost["doc_id"].to_pylist()) == sorted(6 * [n for n in lengths if n not in fits])
    for epoch in range(3):
        held = hold(con, storage, manifest, 0, epoch)
        assert held.num_tokens == 2 * sum(lengths[name] for name in fits)
        assert (held.num_rows, held.num_rejected) == (2 * len(fits), len(lost) // 3)


def test_only_parts_that_are_missing_are_written(made):
    con, storage, manifest, _ = made
    write_manifest(con, storage, manifest, [2])
    files = [path for epoch in range(2) for path in manifest.parts(0, epoch)]
    whole = {path: storage.read(path) for path in files}

    def written_at():
        return {path: os.stat(storage.path(path)).st_mtime_ns for path in files}

    before = written_at()
    storage.remove(files[1])
    storage.remove(files[5])
    write_manifest(con, storage, manifest, [2])
    after = written_at()
    assert [path for path in files if after[path] != before[path]] == [files[1], files[5]]
    assert {path: storage.read(path) for path in files} == whole


def test_two_streams_go_on_side_by_side(made, monkeypatch):
    con, storage, manifest, _ = made
    monkeypatch.setattr(module, "BATCH_ROWS", 5)
    write_manifest(con, storage, manifest, [1])
    alone = pa.concat_tables(ordered(con, storage, manifest, 0, 1))
    streams = [ordered(con, storage, manifest, 0, 1) for _ in range(3)]
    for stream in streams[:2]:
        next(stream)
    found = [pa.concat_tables(stream) for stream in streams]
    assert [len(table) for table in found] == [len(alone) - 5, len(alone) - 5, len(alone)]
    assert found[0].equals(alone.slice(5))


@pytest.mark.parametrize("cut", [1, 3, 100])
def test_a_stream_is_taken_up_to_the_document_that_reaches_the_quota(cut):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50, 60)
    table = pa.table({"num_tokens": tokens, "piece": np.zeros(60, np.int32)})
    for wanted in (0, 1, int(tokens[0]), int(tokens[0]) + 1, 700, int(tokens.sum()), 10_000):
        batches = [table.slice(at, cut) for at in range(0, len(table), cut)]
        found = pa.concat_tables([table.slice(0, 0), *take(iter(batches), wanted)])
        before = np.cumsum(tokens) - tokens
        assert found["num_tokens"].to_pylist() == tokens[before < wanted].tolist()


@pytest.mark.parametrize("cut", [1, 2, 5, 100])
def test_a_quota_never_ends_between_the_pieces_of_a_document(cut):
    pieces = [0, 0, 1, 2, 0, 1, 0, 0, 1, 2, 3]
    table = pa.table({"num_tokens": [10] * len(pieces), "piece": pieces})
    whole = [0, 1, 4, 6, 7, 11]  # where a document may end
    for wanted in range(0, 120, 5):
        batches = [table.slice(at, cut) for at in range(0, len(table), cut)]
        found = sum(len(one) for one in take(iter(batches), wanted))
        assert found == next((n for n in whole if 10 * n >= wanted), len(pieces))
