"""A folder of packs: opened, read by range, and every kind of damage named."""

import contextlib
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.config import ConfigError
from infra.layout import Image, Text, layout
from infra.schedules import SCHEDULES
from infra.storage import Storage
from packing.cost import Coefficients
from packing.members import Document
from packing.packs import FACTS, INDEX, Facts, PackError, open_packs, read_pack
from packing.shards import PACK_INDEX, shard_name, write_shard

PACKS_PER_TEST_SHARD = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven packs of one document each in three shards."""
    storage, indexes = Storage(str(tmp_path)), []
    packs = []
    for i in range(7):
        codes = np.arange(SCHEDULES[i].num_codes(4), dtype=np.int32)
        segments = (Text(np.array([i], np.int32)), Image(i, 4, codes % 64, (codes + i) % 64))
        packs.append((i, [Document(f"d{i}", 0, "t2i", "demo", segments)]))
    for number, start in enumerate(range(0, 7, PACKS_PER_TEST_SHARD)):
        file = io.BytesIO()
        some = packs[start : start + PACKS_PER_TEST_SHARD]
        indexes.append(write_shard(file, shard_name(number), some, Coefficients(1.0, 0.0, 0.0)))
        storage.write(shard_name(number), file.getvalue())
    storage.write_part(INDEX, pa.concat_tables(indexes), PACK_INDEX, "pack")
    facts = Facts("tokenizer", "text", 64, 100, 256, "fixed_compute", 2_000, 0, budget=1e9)
    storage.write(FACTS, facts.to_json())
    return tmp_path


def test_every_pack_is_read_back(folder: Path) -> None:
    packs = pickle.loads(pickle.dumps(open_packs(folder)))
    assert packs.num_packs == 7
    assert packs.facts.vocabulary.size == 166
    for i in (6, 0, 3):
        pack = read_pack(packs, i)
        assert (pack.index, [d.doc_id for d in pack.documents]) == (i, [f"d{i}"])
        sequence = layout(pack.segments, packs.facts.vocabulary)
        assert sequence.counts.num_tokens == packs.index["num_tokens"][i].as_py()
    with pytest.raises(IndexError, match="pack 7 does not exist"):
        read_pack(packs, 7)


def test_no_flipped_byte_passes(folder: Path) -> None:
    packs, shard = open_packs(folder), folder / shard_name(1)
    whole = shard.read_bytes()
    start, length = packs.index["offset"][4].as_py(), packs.index["length"][4].as_py()
    for at in range(start, start + length, 997):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(PackError, match=r"shard-000001\.tar, pack 4: the checksum differs"):
            read_pack(packs, 4)
        assert read_pack(packs, 3).documents


def test_truncated_and_missing_shards_are_named(folder: Path) -> None:
    packs, shard = open_packs(folder), folder / shard_name(1)
    shard.write_bytes(shard.read_bytes()[:-5_000])
    with pytest.raises(PackError, match=r"shard-000001\.tar, pack 5: only \d+ of \d+ bytes"):
        read_pack(packs, 5)
    shard.write_bytes(b"")
    with pytest.raises(PackError, match="pack 4: only 0 of"):
        read_pack(packs, 4)
    shard.unlink()
    with pytest.raises(PackError, match=r"shard-000001\.tar, pack 4: the shard is missing"):
        read_pack(packs, 4)


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("shard", "../secret", "the index says"),
        ("shard", "/etc/passwd", "the index says"),
        ("offset", -1, "the index says"),
        ("length", 1 << 50, "the index says"),
        ("length", 0, "the index says"),
        ("length", 512, "the checksum differs"),
        ("length", 1 << 30, "truncated"),
        ("offset", 0, "the checksum differs"),
        ("offset", 1 << 40, "truncated"),
        ("offset", 1 << 62, "the index says"),
        ("sha256", "", "the checksum differs"),
        ("pack", 9, "does not list the packs 0 to 6 once"),
        ("pack", 0, "does not list the packs 0 to 6 once"),
        ("pack", -1, "does not list the packs 0 to 6 once"),
        ("pack", None, "no value in rows of pack"),
        ("shard", None, "no value in rows of shard"),
        ("offset", None, "no value in rows of offset"),
        ("length", None, "no value in rows of length"),
        ("sha256", None, "no value in rows of sha256"),
    ],
)
def test_a_wrong_index_is_refused(folder: Path, column: str, value: object, match: str) -> None:
    table = pq.ParquetFile(folder / INDEX).read()
    values = table[column].to_pylist()
    values[1] = value
    at = table.column_names.index(column)
    table = table.set_column(at, column, pa.array(values, table.schema.field(column).type))
    pq.write_table(table, folder / INDEX)
    with pytest.raises(PackError, match=match):
        read_pack(open_packs(folder), 1)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("pack", pa.array([list("0123456"), ["1"]] + [["x"]] * 5)),
        ("shard", pa.array([b"\xff\xfe"] * 7)),
        ("offset", pa.array(["many"] * 7)),
        ("length", pa.array([0.5] * 7)),
        ("sha256", pa.array([{"a": 1}] * 7)),
    ],
)
def test_an_index_of_other_types_is_refused(folder: Path, column: str, values: pa.Array) -> None:
    table = pq.ParquetFile(folder / INDEX).read()
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, column, values), folder / INDEX)
    with pytest.raises(PackError, match="facts or index are damaged"):
        open_packs(folder)


def test_an_index_in_another_order_is_put_right(folder: Path) -> None:
    whole = open_packs(folder).index
    pq.write_table(whole.take([4, 0, 6, 5, 1, 3, 2]), folder / INDEX)
    packs = open_packs(folder)
    assert packs.index.equals(whole)
    assert read_pack(packs, 5).documents[0].doc_id == "d5"


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_no_flipped_byte_of_the_index_gives_another_pack(folder: Path, data: st.DataObject) -> None:
    """Parquet says nothing of most flips; then the pack's own checksum does."""
    whole = folder / "index.whole"
    if not whole.exists():
        whole.write_bytes((folder / INDEX).read_bytes())
    damaged = bytearray(whole.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / INDEX).write_bytes(damaged)
    try:
        packs = open_packs(folder)
    except PackError:
        return
    for i in range(packs.num_packs):
        with contextlib.suppress(PackError):
            assert [d.doc_id for d in read_pack(packs, i).documents] == [f"d{i}"]


def test_a_pack_under_anothers_number_is_refused(folder: Path) -> None:
    """Offsets, lengths and checksums of packs 0 and 1 exchanged: only the names can tell."""
    table = pq.ParquetFile(folder / INDEX).read()
    numbers = pa.array([1, 0, 2, 3, 4, 5, 6], pa.int64())
    pq.write_table(table.set_column(0, "pack", numbers), folder / INDEX)
    with pytest.raises(PackError, match=r"pack 0: holds '000000001\.text\.npy'"):
        read_pack(open_packs(folder), 0)


def test_a_folder_that_holds_no_packs_is_told_in_one_line(folder: Path) -> None:
    facts = json.loads((folder / FACTS).read_bytes())
    (folder / FACTS).write_text(json.dumps(facts | {"num_codes": "many"}))
    with pytest.raises(ConfigError, match=r"packs\.json\.num_codes"):
        open_packs(folder)
    for sizes in ({"num_codes": 0}, {"num_codes": 2**31}, {"text_vocab_size": 0}):
        (folder / FACTS).write_text(json.dumps(facts | sizes))
        with pytest.raises(ConfigError, match=r"packs\.json.* use (1|at least 1)"):
            open_packs(folder)
    (folder / FACTS).write_text("{")
    with pytest.raises(PackError, match="damaged"):
        open_packs(folder)
    (folder / FACTS).write_text(json.dumps(facts))
    pq.write_table(pq.ParquetFile(folder / INDEX).read(["pack"]), folder / INDEX)
    with pytest.raises(PackError, match="lacks the columns shard, offset"):
        open_packs(folder)
    (folder / INDEX).write_bytes(b"PAR1")
    with pytest.raises(PackError, match="damaged"):
        open_packs(folder)
    with pytest.raises(PackError, match="no folder of packs"):
        open_packs(folder / "nowhere")


def test_packs_are_read_without_torch_ray_duckdb_or_open_clip(folder: Path) -> None:
    program = (
        "import sys; from packing.packs import open_packs, read_pack;"
        f"read_pack(open_packs({str(folder)!r}), 0);"
        "print([m for m in ('torch', 'ray', 'duckdb', 'open_clip', 'pandas') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
