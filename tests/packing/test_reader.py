"""The stream of packs: one global order, whatever ranks, micro-steps, workers and restarts."""

import hashlib
import io
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from infra.layout import Sequence, Text, layout
from infra.storage import Storage
from packing.cost import Coefficients
from packing.members import Document
from packing.reader import Facts, Pack, PackError, Packs, PackStream, open_packs, read_pack
from packing.shards import PACK_INDEX, shard_name, write_shard

NUM_PACKS = 23

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on few cores


def write_packs(folder: Path) -> None:
    """Packs of one text each, whose ids name the pack, five to a shard."""
    storage, indexes = Storage(str(folder)), []
    for number, start in enumerate(range(0, NUM_PACKS, 5)):
        file = io.BytesIO()
        packs = [
            (i, [Document(f"d{i}", 0, "text", "demo", (Text(np.full(3, i, np.int32)),))])
            for i in range(start, min(start + 5, NUM_PACKS))
        ]
        indexes.append(write_shard(file, shard_name(number), packs, Coefficients(1.0, 0.0, 0.0)))
        storage.write(shard_name(number), file.getvalue())
    storage.write_part("index.parquet", pa.concat_tables(indexes), PACK_INDEX, "pack")
    facts = Facts("tokenizer", "text", 64, 100, 256, "fixed_length", 2_000, 0)
    storage.write("packs.json", facts.to_json())


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    folder = tmp_path_factory.mktemp("packs")
    write_packs(folder)
    return open_packs(folder)


def content(pack: Pack) -> int:
    """The pack as its content says, not its number."""
    (document,) = pack.documents
    (text,) = document.segments
    assert isinstance(text, Text)
    return int(text.ids[0])


def load(stream: PackStream, num_workers: int = 0) -> list[int]:
    return [content(p) for p in DataLoader(stream, batch_size=None, num_workers=num_workers)]


def in_order(packs: Packs, num_ranks: int, micro_steps: int, consumed: int) -> list[int]:
    """What all ranks consume, micro-step by micro-step."""
    ranks = []
    for rank in range(num_ranks):
        stream = PackStream(
            packs,
            rank=rank,
            num_ranks=num_ranks,
            micro_steps=micro_steps,
            packs_consumed=consumed,
        )
        ranks.append([content(pack) for pack in stream])
        assert len(ranks[-1]) == len(stream)
    return list(itertools.chain(*zip(*ranks, strict=True)))


def test_one_rank_reads_all_in_order(packs: Packs) -> None:
    assert load(PackStream(packs)) == list(range(NUM_PACKS))


@pytest.mark.parametrize("prefetch", [0, 1, 5, 100])
def test_reading_ahead_does_not_change_the_stream(packs: Packs, prefetch: int) -> None:
    stream = PackStream(packs, rank=1, num_ranks=2, packs_consumed=2, prefetch=prefetch)
    assert load(stream) == list(range(3, NUM_PACKS, 2))
    assert content(next(iter(stream))) == 3  # and a loop may stop early


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_loader_workers_do_not_change_the_stream(packs: Packs, num_workers: int) -> None:
    stream = PackStream(packs, rank=1, num_ranks=2, packs_consumed=2)
    assert load(stream, num_workers) == load(stream) == list(range(3, NUM_PACKS, 2))


def test_micro_step_m_of_rank_r_takes_pack_m_n_plus_r_of_the_step(packs: Packs) -> None:
    stream = PackStream(packs, rank=2, num_ranks=3, micro_steps=2, packs_consumed=1)
    assert (stream.packs_per_step, stream.num_steps, stream.num_dropped) == (6, 3, 4)
    assert load(stream) == [1 + 2, 1 + 5, 1 + 8, 1 + 11, 1 + 14, 1 + 17]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3)), max_size=5))
def test_any_sequence_of_restarts_consumes_the_packs_once_and_in_order(
    packs: Packs, runs: list[tuple[int, int, int]]
) -> None:
    """Each run has its own ranks, micro-steps and number of steps before it stops."""
    consumed, seen = 0, []
    for num_ranks, micro_steps, steps in runs:
        run = in_order(packs, num_ranks, micro_steps, consumed)
        seen += run[: steps * num_ranks * micro_steps]
        consumed = len(seen)
    seen += in_order(packs, 1, 1, consumed)
    assert seen == list(range(NUM_PACKS))


def digest(pack: Pack) -> str:
    """Of all that a pack says, to the last bit."""
    told = hashlib.sha256(repr((pack.index, pack.error)).encode())
    for document in pack.documents:
        for name, value in vars(document).items():
            if name != "segments":
                told.update(f"{name} {value!r}".encode())
        for segment in document.segments:
            for name, value in vars(segment).items():
                bits = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
                told.update(f"{name} {getattr(value, 'dtype', '')} {len(bits)}".encode() + bits)
    return told.hexdigest()


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(0, 4)),
        min_size=2,
        max_size=3,
    )
)
def test_bits_are_the_same_after_restarts_with_other_ranks_and_workers(
    packs: Packs, runs: list[tuple[int, int, int, int]]
) -> None:
    """Each run is stopped while its loaders would go on; the next goes on from the integer."""
    consumed, seen = 0, list[str]()
    for num_ranks, micro_steps, num_workers, steps in runs:
        ranks = []
        for rank in range(num_ranks):
            stream = PackStream(
                packs,
                rank=rank,
                num_ranks=num_ranks,
                micro_steps=micro_steps,
                packs_consumed=consumed,
            )
            taken = min(steps, stream.num_steps)
            loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
            wanted = itertools.islice(loader, taken * micro_steps)
            ranks.append([digest(pack) for pack in wanted])
        seen += itertools.chain(*zip(*ranks, strict=True))
        consumed += taken * num_ranks * micro_steps
        assert consumed == len(seen)
    assert seen == [digest(read_pack(packs, i)) for i in range(consumed)]


def test_the_loaders_workers_can_lay_packs_out(packs: Packs) -> None:
    def collate(pack: Any) -> Sequence:
        return layout(pack.segments, packs.facts.vocabulary)

    loader = DataLoader(PackStream(packs), batch_size=None, num_workers=2, collate_fn=collate)
    assert [s.token_ids[0] for s in loader] == list(range(NUM_PACKS))
    assert len(loader) == NUM_PACKS


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_pack_raises_or_comes_empty(tmp_path: Path, num_workers: int) -> None:
    write_packs(tmp_path)
    shard = tmp_path / shard_name(1)
    data = bytearray(shard.read_bytes())
    packs = open_packs(tmp_path)
    data[packs.index["offset"][7].as_py() + 600] ^= 1
    shard.write_bytes(data)
    match = r"shard-000001\.tar, pack 7"
    with pytest.raises(PackError, match=match):
        load(PackStream(packs), num_workers)
    stream = PackStream(packs, on_error="skip")
    found = list(DataLoader(stream, batch_size=None, num_workers=num_workers))
    assert [p.index for p in found] == list(range(NUM_PACKS))
    assert [p.index for p in found if p.error] == [7]
    assert found[7].documents == ()
    assert "checksum" in (found[7].error or "")


def test_impossible_streams_are_refused(packs: Packs) -> None:
    with pytest.raises(ValueError, match="rank 2 of 2"):
        PackStream(packs, rank=2, num_ranks=2)
    with pytest.raises(ValueError, match="with 0 micro-steps"):
        PackStream(packs, micro_steps=0)
    with pytest.raises(ValueError, match="packs_consumed is 24: use 0 to 23"):
        PackStream(packs, packs_consumed=24)
    with pytest.raises(ValueError, match="prefetch is -1"):
        PackStream(packs, prefetch=-1)
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        PackStream(packs, on_error="ignore")  # type: ignore[arg-type]
    assert load(PackStream(packs, packs_consumed=NUM_PACKS)) == []


def test_the_reader_imports_neither_ray_nor_open_clip_nor_duckdb() -> None:
    program = (
        "import sys, packing.reader;"
        "print([m for m in ('ray', 'duckdb', 'open_clip') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
