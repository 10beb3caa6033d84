"""Shards: deterministic, plain tars that others read too, and only our members accepted."""

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from infra.layout import Image, Text, Vocabulary, layout
from infra.schedules import SCHEDULES
from packing.cost import Coefficients
from packing.members import MEMBERS, Document, decode, encode
from packing.shards import PACK_INDEX, shard_name, split_members, write_shard

COST = Coefficients(per_token=2.0, per_pair=0.5, per_loss=10.0, per_pack=7.0)


def make_packs(num_packs: int = 3) -> list[tuple[int, list[Document]]]:
    packs = []
    for pack in range(num_packs):
        documents = []
        for i in range(pack + 1):
            codes = np.arange(SCHEDULES[i].num_codes(4), dtype=np.int32)
            text = Text(np.arange(3 + i, dtype=np.int32), loss=False)
            segments = (text, Image(i, 4, codes % 64, (codes + pack) % 64))
            documents.append(Document(f"{pack}-{i}", 0, "t2i", "demo", segments))
        packs.append((pack, documents))
    return packs


def write(packs: list[tuple[int, list[Document]]]) -> tuple[bytes, list[dict[str, Any]]]:
    file = io.BytesIO()
    index = write_shard(file, shard_name(0), packs, COST)
    assert index.schema.equals(PACK_INDEX)
    return file.getvalue(), index.to_pylist()


def test_the_index_finds_each_pack_and_counts_it() -> None:
    packs = make_packs()
    data, index = write(packs)
    for (pack, documents), row in zip(packs, index, strict=True):
        assert row["pack"] == pack
        assert row["shard"] == "shard-000000.tar"
        piece = data[row["offset"] :][: row["length"]]
        assert hashlib.sha256(piece).hexdigest() == row["sha256"]
        found = decode(split_members(piece, pack))
        assert [d.doc_id for d in found] == [d.doc_id for d in documents]
        tokens, loss, pairs = layout([d.segments for d in found], Vocabulary(64, 100)).counts
        assert (row["num_tokens"], row["num_loss"], row["num_pairs"]) == (tokens, loss, pairs)
        assert row["cost"] == 2.0 * tokens + 0.5 * pairs + 10.0 * loss + 7.0
        assert row["num_documents"] == len(documents)


def test_the_same_packs_give_the_same_bytes_wherever_they_are_written(tmp_path: Path) -> None:
    data, _ = write(make_packs())
    with open(tmp_path / "a.tar", "wb") as file:
        write_shard(file, shard_name(0), iter(make_packs()), COST)
    assert (tmp_path / "a.tar").read_bytes() == data == write(make_packs())[0]

    digest = (
        "11d4d75dea9398c62f631237ace9d6dcde8e385082334de3b8ce2982e4558a7c"  # a change breaks packs
    )
    assert hashlib.sha256(data).hexdigest() == digest


def test_plain_tar_and_tarfile_read_a_shard(tmp_path: Path) -> None:
    path = tmp_path / shard_name(0)
    path.write_bytes(write(make_packs())[0])
    expected = [f"{pack:09d}.{member}" for pack in range(3) for member in MEMBERS]
    with tarfile.open(path) as tar:
        assert tar.getnames() == expected
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
    command = ["tar", "-tf", str(path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert listed.stdout.split() == expected
    assert listed.stderr == ""
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", str(path), "-C", str(tmp_path / "out")], check=True)
    for pack, documents in make_packs():
        for name, data in encode(documents).items():
            assert (tmp_path / "out" / f"{pack:09d}.{name}").read_bytes() == data


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_plain_webdataset_reads_a_shard(tmp_path: Path) -> None:
    packs = make_packs()
    path = tmp_path / shard_name(0)
    path.write_bytes(write(packs)[0])
    dataset = webdataset.WebDataset(str(path), shardshuffle=False).decode()
    samples = list(dataset)
    assert [sample["__key__"] for sample in samples] == [f"{pack:09d}" for pack, _ in packs]
    for sample, (_, documents) in zip(samples, packs, strict=True):
        segments = [s for d in documents for s in d.segments]
        images = [s for s in segments if isinstance(s, Image)]
        texts = [s for s in segments if isinstance(s, Text)]
        inputs = np.concatenate([s.input_codes for s in images])
        assert np.array_equal(sample["input.npy"], inputs)
        assert np.array_equal(sample["text.npy"], np.concatenate([s.ids for s in texts]))
        assert len(sample["layout.json"]["documents"]) == len(documents)


@pytest.mark.slow
def test_ray_reads_a_shard(tmp_path: Path, ray_session: None) -> None:
    import ray.data

    packs = make_packs()
    path = tmp_path / shard_name(0)
    path.write_bytes(write(packs)[0])
    samples = sorted(
        ray.data.read_webdataset(str(path)).take_all(), key=lambda sample: sample["__key__"]
    )
    assert [sample["__key__"] for sample in samples] == [f"{pack:09d}" for pack, _ in packs]
    for sample, (_, documents) in zip(samples, packs, strict=True):
        segments = [s for d in documents for s in d.segments]
        targets = [s.target_codes for s in segments if isinstance(s, Image)]
        assert np.array_equal(sample["target.npy"], np.concatenate(targets))
        texts = [s.ids for s in segments if isinstance(s, Text)]
        assert np.array_equal(sample["text.npy"], np.concatenate(texts))
        ids = [document["doc_id"] for document in sample["layout.json"]["documents"]]
        assert ids == [document.doc_id for document in documents]


def test_an_empty_pack_and_an_empty_shard_are_read_back() -> None:
    data, index = write([(5, [])])
    assert index[0]["num_tokens"] == 0
    assert decode(split_members(data[:-1024], 5)) == ()
    data, index = write([])
    assert index == []
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == []


def _tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = b""
    for header, data in members:
        header.size = len(data) if header.type == tarfile.REGTYPE else 0
        out += header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
    return out


def test_only_the_four_members_are_accepted() -> None:
    data, _ = write(make_packs(1))
    piece = data[:-1024]
    with tarfile.open(fileobj=io.BytesIO(piece)) as tar:
        good = [(m, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    assert _tar(good) == piece

    foreign = tarfile.TarInfo("../../etc/passwd")
    with pytest.raises(ValueError, match=r"holds '\.\./\.\./etc/passwd'"):
        split_members(_tar([(foreign, b"x"), *good[1:]]), 0)
    link = tarfile.TarInfo(good[0][0].name)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(ValueError, match="should be"):
        split_members(_tar([(link, b""), *good[1:]]), 0)
    with pytest.raises(ValueError, match="where the file 000000001"):
        split_members(piece, 1)
    with pytest.raises(ValueError, match="no tar header"):
        split_members(_tar(good[:3]), 0)
    with pytest.raises(ValueError, match="where the members take"):
        split_members(_tar([*good, good[0]]), 0)
    with pytest.raises(ValueError, match="are left"):
        split_members(piece[:-512], 0)


@given(st.data())
def test_damaged_headers_are_refused_or_make_no_difference(data: st.DataObject) -> None:
    piece = bytearray(write(make_packs(1))[0][:-1024])
    whole = split_members(bytes(piece), 0)
    places = st.integers(0, len(piece) - 1) | st.integers(0, 511)  # the first header above all
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        piece[place] = data.draw(st.integers(0, 255))
    cut = bytes(piece[: data.draw(st.none() | st.integers(0, len(piece)))])
    try:
        members = split_members(cut, 0)
    except ValueError:
        return
    assert {name: len(held) for name, held in members.items()} == {
        name: len(held) for name, held in whole.items()
    }
