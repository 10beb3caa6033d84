"""What ``nextscale verify`` proves: sound packs pass, and every damage is named."""

import dataclasses
import hashlib
import io
import itertools
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from infra import runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.schedules import SCHEDULES
from infra.schema import DECISIONS, TOKENS
from infra.segments import Image, Text, count
from infra.storage import Storage
from packing.cost import coefficients, cost, qwen2_5_7b
from packing.members import Document, from_tokens
from packing.packs import Facts, open_packs, read_pack
from packing.plan import PLAN, Packing
from packing.shards import PACK_INDEX, shard_name, write_shard
from packing.slices import Slicing, dropped
from pipelines.pack_phase import PackComponent, PackPhase
from pipelines.packed_set import find_packed
from pipelines.verify import describe, main, verify
from pipelines.verify_plan import quotas

NUM_SCALES = 3
NUM_CODES = 64
CAP, PER_SHARD = 240, 4
SLICING = Slicing(drop_captions=0.3, split_at_images=True, seed=5)
FOLDER = "packs/photos-256/v-1"
Change = Callable[[list[dict[str, Any]]], Any]
OF = coefficients(qwen2_5_7b(NUM_CODES))
SHARED = {
    "tokenizer_id": "t",
    "vocabulary_id": "v",
    "num_codes": NUM_CODES,
    "text_vocab_size": 100,
    "level": 256,
}


def text(rng: np.random.Generator, length: int, loss: bool = True) -> dict[str, Any]:
    return {"kind": "text", "loss": loss, "text_ids": rng.integers(0, 100, length).tolist()}


def image(rng: np.random.Generator) -> dict[str, Any]:
    schedule = int(rng.integers(len(SCHEDULES)))
    codes = rng.integers(0, NUM_CODES, SCHEDULES[schedule].num_codes(NUM_SCALES)).tolist()
    return {
        "kind": "image",
        "role": "target",
        "loss": True,
        "schedule": schedule,
        "num_scales": NUM_SCALES,
        "input_codes": codes,
        "target_codes": codes[::-1],
    }


def token_row(number: int) -> dict[str, Any]:
    """A document: mostly a caption and a picture; every fifth has two, every 20th is too long."""
    rng = np.random.default_rng(number)
    segments = [text(rng, int(rng.integers(1, 30)), loss=number % 3 > 0), image(rng)]
    if number % 5 == 0:
        segments += [text(rng, 4), image(rng)]
    if number % 20 == 3:
        segments = [text(rng, CAP + 1)]
    row = {
        "doc_id": hashlib.md5(str(number).encode()).hexdigest(),
        "task": "t2i",
        "source": "photos",
        "sample_ids": [str(number)],
        "segments": segments,
    }
    return row | counts_of(segments)


def counts_of(segments: list[dict[str, Any]]) -> dict[str, int]:
    of: list[Text | Image] = []
    for s in segments:
        if s["kind"] == "text":
            of.append(Text(np.array(s["text_ids"]), s["loss"]))
        else:
            codes = np.array(s["input_codes"]), np.array(s["target_codes"])
            of.append(Image(s["schedule"], NUM_SCALES, *codes))
    return count(of)._asdict()


def write(storage: Storage, path: str, rows: list[dict[str, Any]], schema: pa.Schema, key: str):
    bare = pa.schema([field.remove_metadata() for field in schema])
    storage.write_part(path, pa.Table.from_pylist(rows, schema=bare), schema, key)


def write_tokens(storage: Storage, replica: int) -> TableRecord:
    """40 documents in two parts, one of them failed; replicas differ in their input codes."""
    table = "tokens/photos-256" + (f"-r{replica}" if replica else "")
    parts = []
    for number, numbers in enumerate((range(25), range(25, 40))):
        rows = [token_row(n) for n in numbers]
        for row in rows:
            for segment in row["segments"]:
                if segment["kind"] == "image":
                    codes = segment["input_codes"]
                    segment["input_codes"] = [(code + replica) % NUM_CODES for code in codes]
        error = {"stage": "codes", "type": "corrupt", "message": "bad"}
        none = dict.fromkeys(("segments", "num_tokens", "num_loss", "num_pairs"))
        rows[9] |= none | {"error": error}
        file = f"v-1/part-{number:05d}.parquet"
        write(storage, f"{table}/{file}", rows, TOKENS, "doc_id")
        parts.append(Part(file, len(rows), 1))
    spec = f"{replica:032d}"
    record = TableRecord(table, spec, spec, "doc_id", tuple(parts), SHARED)
    runs.save_record(storage, record)
    return record


def slices_of(doc_id: str, copy: int, num_segments: int) -> list[tuple[int, int]]:
    """(first segment, segments): some documents are cut in two, some come without a caption."""
    first = 1 if num_segments > 1 and dropped(doc_id, copy, SLICING) else 0
    if num_segments == 4:
        return [(first, 2 - first), (2, 2)]
    return [(first, num_segments - first)]


def copies_of(number: int) -> int:
    """Twice what the decisions say: 0, 1 or 2."""
    if number >= 38:  # not judged
        return 2
    return 0 if number % 4 == 2 else 4 if number % 10 == 7 else 2


def write_decisions(storage: Storage) -> TableRecord:
    """Decisions that leave out some documents and double others; of most they say 1."""
    rows = [{"sample_id": str(n), "copies": copies_of(n) // 2} for n in range(38)]
    write(storage, "decisions/photos/v/part-00000.parquet", rows, DECISIONS, "sample_id")
    part = Part("v/part-00000.parquet", len(rows))
    record = TableRecord("decisions/photos", "d" * 32, "d" * 32, "sample_id", (part,))
    runs.save_record(storage, record)
    return record


def write_set(storage: Storage) -> TableRecord:
    """``packs/photos-256`` of these tokens, most documents twice, in several shards."""
    decisions = write_decisions(storage)
    tables = (write_tokens(storage, 0), write_tokens(storage, 1))
    number_of = {hashlib.md5(str(n).encode()).hexdigest(): n for n in range(40)}
    packs: list[tuple[int, list[Document]]] = []
    plan: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    fill = CAP
    for copy in range(4):
        for part in (0, 1):
            rows = storage.read_table(tables[copy % 2].path(part))
            for token_row, row in enumerate(rows.to_pylist()):
                if row["error"] is not None or copy >= copies_of(number_of[row["doc_id"]]):
                    continue
                [whole] = from_tokens(rows.slice(token_row, 1), [copy])
                cuts = slices_of(row["doc_id"], copy, len(whole.segments))
                for piece, (first, num_segments) in enumerate(cuts):
                    segments = whole.segments[first : first + num_segments]
                    document = dataclasses.replace(whole, segments=segments, first_segment=first)
                    counts = count(segments)
                    planned = {
                        "component": 0,
                        "epoch": 0,
                        "doc_id": row["doc_id"],
                        "copy": copy,
                        "piece": piece,
                        "part": part,
                        "token_row": token_row,
                        "first_segment": first,
                        "num_segments": num_segments,
                        **counts._asdict(),
                        "cost": float(cost(*counts, OF)),
                    }
                    if counts.num_tokens > CAP:
                        rejected.append(planned | {"reason": "over_token_cap"})
                        continue
                    if fill + counts.num_tokens > CAP:
                        packs.append((len(packs), []))
                        fill = 0
                    fill += counts.num_tokens
                    packs[-1][1].append(document)
                    place = {"pack": len(packs) - 1, "position": len(packs[-1][1]) - 1}
                    plan.append(planned | place)
    plan += rejected
    index = []
    for shard in range(-(-len(packs) // PER_SHARD)):
        here = packs[shard * PER_SHARD : (shard + 1) * PER_SHARD]
        buffer = io.BytesIO()
        index.append(write_shard(buffer, shard_name(shard), here, OF, NUM_CODES))
        storage.write(f"{FOLDER}/{shard_name(shard)}", buffer.getvalue())
    storage.write_part(f"{FOLDER}/index.parquet", pa.concat_tables(index), PACK_INDEX, "pack")
    rows = [planned | {"row": i} for i, planned in enumerate(plan)]
    half = len(rows) // 2
    files = [f"{FOLDER}/plan/part-{n:06d}.parquet" for n in (0, 1)]
    write(storage, files[0], rows[:half], PLAN, "row")
    write(storage, files[1], rows[half:], PLAN, "row")
    facts = Facts(**SHARED, strategy="fixed_length", token_cap=CAP, seed=0)
    storage.write(f"{FOLDER}/packs.json", facts.to_json())
    component = PackComponent("photos", tables[0], tables[1:], (decisions,), copies=2)
    packing = Packing("fixed_length", CAP, 1.0)
    phase = PackPhase("photos-256", (component,), packing, OF, SLICING)
    sums = {"num_tokens": sum(row["num_tokens"] for row in plan if "pack" in row)}
    told = {"plan": files, "lower_bound": len(packs) - 3, "num_packs": len(packs)}
    told |= {"components": [sums]} | vars(facts)
    part = Part("v-1/index.parquet", len(packs))
    record = TableRecord(phase.table, phase.fingerprint, phase.row_spec, "pack", (part,), told)
    runs.finish(storage, record, phase.spec, phase.inputs, 0.0)
    return record


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of `made`; do not write here."""
    folder = tmp_path_factory.mktemp("made") / "workspace"
    write_set(Storage(str(folder)))
    return folder


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Storage:
    """A workspace with tokens, a replica of them, and packs."""
    shutil.copytree(made_once, tmp_path / "workspace")
    return Storage(str(tmp_path / "workspace"))


def lines_of(storage: Storage) -> tuple[int, list[str]]:
    """Exit status and lines, without Ray unless a test has started it."""
    verified = verify(find_packed(storage, "photos-256"))
    return int(verified.damages.count > 0), list(describe(verified))


def edit(storage: Storage, path: str, schema: pa.Schema, key: str, change: Change) -> None:
    """Write a file again after ``change`` of its rows."""
    rows = storage.read_table(path).to_pylist()
    changed = change(rows)
    write(storage, path, rows if changed is None else changed, schema, key)


def edit_plan(storage: Storage, change: Change, part: int = 0) -> None:
    edit(storage, f"{FOLDER}/plan/part-{part:06d}.parquet", PLAN, "row", change)


def edit_index(storage: Storage, change: Change) -> None:
    edit(storage, f"{FOLDER}/index.parquet", PACK_INDEX, "pack", change)


def edit_tokens(storage: Storage, change: Change, replica: str = "") -> None:
    path = f"tokens/photos-256{replica}/v-1/part-00000.parquet"
    edit(storage, path, TOKENS, "doc_id", change)


def row_of(storage: Storage, **wanted: Any) -> dict[str, Any]:
    """The first row of the first plan file with these values."""
    rows = storage.read_table(f"{FOLDER}/plan/part-000000.parquet").to_pylist()
    return next(row for row in rows if all(row[name] == v for name, v in wanted.items()))


def rewrite_pack(
    storage: Storage, pack: int, change: Callable[[list[Document]], list[Document]]
) -> None:
    """Other documents in a pack, with a shard and an index that are right about them."""
    packs = open_packs(storage.path(FOLDER))
    shard = packs.index["shard"][pack].as_py()
    numbers = [row["pack"] for row in packs.index.to_pylist() if row["shard"] == shard]
    documents = {n: list(read_pack(packs, n).documents) for n in numbers}
    documents[pack] = change(documents[pack])
    buffer = io.BytesIO()
    index = write_shard(buffer, shard, list(documents.items()), OF, NUM_CODES)
    storage.write(f"{FOLDER}/{shard}", buffer.getvalue())
    edit_index(storage, lambda rows: [r for r in rows if r["shard"] != shard] + index.to_pylist())


def flip(storage: Storage, shard: str, offset: int) -> None:
    data = bytearray(storage.read(f"{FOLDER}/{shard}"))
    data[offset] ^= 1
    storage.write(f"{FOLDER}/{shard}", bytes(data))


def a_flipped_code(storage: Storage) -> list[str]:
    with storage.open(f"{FOLDER}/shard-000000.tar") as file, tarfile.open(fileobj=file) as tar:
        member = tar.getmember("000000002.target.npy")
    flip(storage, "shard-000000.tar", member.offset_data + member.size - 2)
    return [
        "shard shard-000000.tar, pack 2: the checksum differs from the index",
        r"shard shard-000000.tar, pack 2, document \w{32}: target codes differ in segment \d "
        r"\(row \d+ of part \d of tokens/photos-256\)",
    ]


def a_flipped_header(storage: Storage) -> list[str]:
    flip(storage, "shard-000000.tar", 100)
    return [
        "shard shard-000000.tar, pack 0: no tar header at byte 0: .*",
        "shard shard-000000.tar, pack 0: the checksum differs from the index",
    ]


def swapped_packs(storage: Storage) -> list[str]:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[1]["pack"], rows[2]["pack"] = 2, 1

    edit_index(storage, change)
    return [
        "shard shard-000000.tar, pack 1: holds '000000002.text.npy' where the file "
        "000000001.text.npy should be",
        "shard shard-000000.tar, pack 2: holds '000000001.text.npy' where .*",
        r"shard shard-000000.tar, pack \d: stands after pack \d in its shard",
        "shard shard-000000.tar, pack [12]: by the plan, .*",
    ]


def a_changed_code(storage: Storage) -> list[str]:
    found = row_of(storage, copy=0, part=0, piece=0, first_segment=0, num_segments=2)

    def change(rows: list[dict[str, Any]]) -> None:
        codes = rows[found["token_row"]]["segments"][1]["target_codes"]
        codes[5] = (codes[5] + 1) % NUM_CODES

    edit_tokens(storage, change)
    return [
        rf"shard \S+, pack \d+, document {found['doc_id']}: target codes differ in segment 1 "
        rf"\(row {found['token_row']} of part 0 of tokens/photos-256\)"
    ]


def a_changed_replica(storage: Storage) -> list[str]:
    found = row_of(storage, copy=1, part=0, piece=0)

    def change(rows: list[dict[str, Any]]) -> None:
        for segment in rows[found["token_row"]]["segments"]:
            if segment["kind"] == "image":
                segment["input_codes"] = [0] * len(segment["input_codes"])

    edit_tokens(storage, change, "-r1")
    return [
        r"shard \S+, pack \d+, document \w{32}: input codes differ in segment \d "
        r"\(row \d+ of part 0 of tokens/photos-256-r1\)"
    ]


def other_words_and_a_loss(storage: Storage) -> list[str]:
    found = row_of(storage, copy=0, part=0, piece=0, first_segment=0, num_segments=2)

    def change(rows: list[dict[str, Any]]) -> None:
        row = rows[found["token_row"]]
        row["segments"][0]["text_ids"][0] += 1
        row["segments"][1]["role"], row["source"] = "condition", "elsewhere"

    edit_tokens(storage, change)
    return [
        rf"shard \S+, pack \d+, document {found['doc_id']}: source is photos, the tokens say "
        r"elsewhere; target image, .*, the tokens say condition image, .* in segment 1; "
        r"text ids differ in segment 0 .*",
        rf"shard .*, document {found['doc_id']}: by row .* of part 0 of .* num_tokens is .*",
    ]


def a_row_of_the_plan_that_is_gone(storage: Storage) -> list[str]:
    edit_plan(storage, lambda rows: rows[:3] + rows[4:])
    return [
        r"shard shard-000000.tar, pack \d, document \w{32}: is at position \d, where the plan has "
        "nothing",
        r"document \w{32}: \d copies are planned of tokens/photos-256, expected \d",
        r"shard shard-000000.tar, pack \d: by the plan, num_documents is \d, the index says \d; .*",
    ]


def a_document_that_is_nowhere(storage: Storage) -> list[str]:
    """Not in shards, index or plan, which agree."""
    found = row_of(storage, copy=0, piece=0, num_segments=2, position=1)
    pack = found["pack"]

    def drop(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = [row for row in rows if row["row"] != found["row"]]
        for row in rows:
            row["position"] -= row["pack"] == pack and row["position"] > 1
        return rows

    edit_plan(storage, drop)
    rewrite_pack(storage, pack, lambda documents: documents[:1] + documents[2:])
    return [rf"document {found['doc_id']}: \d copies are planned of tokens/photos-256, expected \d"]


def a_doubled_document(storage: Storage) -> list[str]:
    rewrite_pack(storage, 1, lambda documents: [*documents, documents[0]])
    return [
        r"shard shard-000000.tar, pack 1, document \w{32}: is at position \d, where the plan has "
        "nothing",
        "shard shard-000000.tar, pack 1: by the plan, num_documents is .*",
    ]


def documents_out_of_place(storage: Storage) -> list[str]:
    rewrite_pack(storage, 1, lambda documents: [documents[1], documents[0], *documents[2:]])
    place = (
        r"shard shard-000000.tar, pack 1, document \w+: is at position {}, where the plan has \w+"
    )
    return [place.format(0), place.format(1)]


def a_row_planned_twice(storage: Storage) -> list[str]:
    edit_plan(storage, lambda rows: rows[1].update(rows[0] | {"row": 1}))
    return [
        r"shard \S+, pack 0, document \w{32}: copy 0(, piece \d)? stands 2 times in the plan",
        r"shard \S+, pack 0: its positions in the plan are not 0 to \d",
    ]


def a_wrong_cost(storage: Storage) -> list[str]:
    edit_plan(storage, lambda rows: rows[0].update(cost=1.0))
    return [
        r"shard \S+, pack 0, document \w{32}: costs \d\S+, the plan says 1",
    ]


def a_wrong_index(storage: Storage) -> list[str]:
    edit_index(storage, lambda rows: rows[0].update(num_loss=3, cost=2.0))
    return [
        r"shard shard-000000.tar, pack 0: num_loss is \d+, the index says 3",
        r"shard shard-000000.tar, pack 0: costs \S+, the index says 2",
        r"shard shard-000000.tar, pack 0: by the plan, num_loss is \d+, the index says 3",
    ]


def a_reason_that_does_not_hold(storage: Storage) -> list[str]:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[0] |= {"pack": None, "position": None, "reason": "over_token_cap"}
        rows[1] |= {"pack": None, "position": None, "reason": None}
        rows[2] |= {"reason": "over_budget"}

    edit_plan(storage, change)
    return [
        r"document \w{32}: is rejected as over_token_cap, but its \d+ tokens are within the cap of "
        "240",
        r"document \w{32}: is in no pack, without a reason",
        r"document \w{32}: is in a pack and rejected \(over_budget\)",
    ]


def a_piece_that_is_gone(storage: Storage) -> list[str]:
    found = row_of(storage, copy=0, piece=1)
    edit_plan(storage, lambda rows: [row for row in rows if row["row"] != found["row"]])
    return [f"document {found['doc_id']}: copy 0 ends at segment 2 of 4"]


def a_slice_elsewhere(storage: Storage) -> list[str]:
    found = row_of(storage, piece=0, first_segment=0, num_segments=2, copy=0, position=0)
    edit_plan(storage, lambda rows: rows[found["row"]].update(first_segment=1, num_segments=4))
    return [
        rf"shard \S+, pack \d+, document {found['doc_id']}: first_segment is 0, the plan says 1; "
        "num_segments is 2, the plan says 4",
        rf"shard \S+, pack \d+, document {found['doc_id']}: the plan takes 4 segments from 1, .*",
    ]


def a_caption_that_is_gone(storage: Storage) -> list[str]:
    """Plan, shard and index agree; the draw is another."""
    found = row_of(storage, copy=0, piece=0, first_segment=0, num_segments=2, position=0)
    pack = found["pack"]

    def shorten(documents: list[Document]) -> list[Document]:
        segments = documents[0].segments[1:]
        short = dataclasses.replace(documents[0], segments=segments, first_segment=1)
        counts = count(segments)
        new = {"first_segment": 1, "num_segments": 1, "cost": float(cost(*counts, OF))}
        edit_plan(storage, lambda rows: rows[found["row"]].update(new | counts._asdict()))
        return [short, *documents[1:]]

    rewrite_pack(storage, pack, shorten)
    return [rf"shard \S+, pack {pack}, document \w+: copy 0 starts at segment 1, expected 0"]


def a_document_that_failed(storage: Storage) -> list[str]:
    found = row_of(storage, copy=0, part=0)
    error = {"stage": "codes", "type": "corrupt", "message": "bad"}
    edit_tokens(storage, lambda rows: rows[found["token_row"]].update(error=error))
    return [rf"shard \S+, pack \d+, document {found['doc_id']}: row .* of part 0 of .* has failed"]


def a_missing_shard(storage: Storage) -> list[str]:
    storage.remove(f"{FOLDER}/shard-000001.tar")
    return ["shard shard-000001.tar: the shard is missing"]


def a_truncated_shard(storage: Storage) -> list[str]:
    data = storage.read(f"{FOLDER}/shard-000001.tar")
    storage.write(f"{FOLDER}/shard-000001.tar", data[: len(data) // 2])
    return [
        r"shard shard-000001.tar, pack \d: only \d+ of \d+ bytes are there",
        r"shard shard-000001.tar: \d+ bytes, the packs end at \d+ .*",
    ]


def bytes_that_nobody_knows(storage: Storage) -> list[str]:
    storage.write(f"{FOLDER}/shard-000000.tar", storage.read(f"{FOLDER}/shard-000000.tar") + b"x")
    storage.write(f"{FOLDER}/shard-000900.tar", b"")
    return [
        r"shard shard-000000.tar: \d+ bytes, the packs end at \d+ and an archive .*",
        "shard shard-000900.tar: the index does not know this shard",
    ]


def a_name_that_leads_away(storage: Storage) -> list[str]:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["shard"] = row["shard"].replace("shard-000000", "../../x")

    edit_index(storage, change)
    return [
        "shard ../../x.tar: the index says a name that no shard has",
        "shard shard-000000.tar: the index does not know this shard",
    ]


def other_facts(storage: Storage) -> list[str]:
    facts = storage.read_json(f"{FOLDER}/packs.json")
    storage.write_json(f"{FOLDER}/packs.json", facts | {"num_codes": 128})
    return [f"{FOLDER}/packs.json is not what the packs' record says"]


def files_that_are_none(storage: Storage) -> list[str]:
    storage.write(f"{FOLDER}/index.parquet", b"PAR1 no PAR1")
    storage.remove(f"{FOLDER}/plan/part-000001.parquet")
    return [
        f"{FOLDER}/index.parquet cannot be read: .*",
        f"{FOLDER}/plan/part-000001.parquet is missing",
    ]


def a_part_of_the_tokens_that_is_gone(storage: Storage) -> list[str]:
    storage.remove("tokens/photos-256-r1/v-1/part-00001.parquet")
    return ["tokens/photos-256-r1/v-1/part-00001.parquet cannot be read: .*"]


DAMAGES = [
    a_flipped_code,
    a_flipped_header,
    swapped_packs,
    a_changed_code,
    a_changed_replica,
    other_words_and_a_loss,
    a_row_of_the_plan_that_is_gone,
    a_document_that_is_nowhere,
    a_doubled_document,
    documents_out_of_place,
    a_row_planned_twice,
    a_wrong_cost,
    a_wrong_index,
    a_reason_that_does_not_hold,
    a_piece_that_is_gone,
    a_slice_elsewhere,
    a_caption_that_is_gone,
    a_document_that_failed,
    a_missing_shard,
    a_truncated_shard,
    bytes_that_nobody_knows,
    a_name_that_leads_away,
    other_facts,
    files_that_are_none,
    a_part_of_the_tokens_that_is_gone,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named(made: Storage, damage: Callable[[Storage], list[str]]) -> None:
    expected = damage(made)
    before = made.find()
    status, lines = lines_of(made)
    assert status == 1
    assert re.fullmatch(r"packs/photos-256: \d+ damages?", lines[0]), lines
    for pattern in expected:
        found = [line for line in lines if re.fullmatch("  " + pattern, line)]
        assert found, "\n".join([pattern, *lines])
    assert made.find() == before


def test_sound_packs_pass(made: Storage) -> None:
    before = made.find()
    status, lines = lines_of(made)
    assert status == 0, lines
    assert lines[0] == "packs/photos-256: as it should be"
    told = dict(line.strip().split("  ", 1) for line in lines[1:])
    rows = [
        row
        for part in (0, 1)
        for row in made.read_table(f"{FOLDER}/plan/part-{part:06d}.parquet").to_pylist()
    ]
    packed = [row for row in rows if row["reason"] is None]
    documents = len({row["doc_id"] for row in packed})
    assert told["documents"].strip() == f"{len(packed)} packed, {documents} different ones"
    assert told["rejected"].strip() == f"{len(rows) - len(packed)} over_token_cap"
    left_out = {token_row(n)["doc_id"] for n in range(40)} - {row["doc_id"] for row in rows}
    assert told["left out"].strip().startswith(f"{len(left_out) - 2} (")  # two failed
    assert made.find() == before


def test_packs_on_s3_are_verified_alike(
    made_once: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process: tasks of a session that runs already do not know the store of this test.
    monkeypatch.setattr("pipelines.verify.each", itertools.starmap)
    here, there = Storage(str(made_once)), Storage(f"{s3}/workspace")
    for path, *_ in here.find():
        there.write(path, here.read(path))
    status, lines = lines_of(there)
    assert status == 0, lines
    data = bytearray(there.read(f"{FOLDER}/shard-000001.tar"))
    data[2_000] ^= 1
    there.write(f"{FOLDER}/shard-000001.tar", bytes(data))
    status, lines = lines_of(there)
    assert status == 1
    assert "  shard shard-000001.tar, pack 4: the checksum differs from the index" in lines
    assert not there.names("verify")


def test_tasks_say_the_same(
    made: Storage, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("photos-256", made.root) == 0
    assert capsys.readouterr().out.startswith("packs/photos-256: as it should be\n")
    a_changed_replica(made)
    assert main("photos-256", made.root) == 1
    assert "input codes differ in segment" in capsys.readouterr().out


def test_mistakes_are_told_before_the_work(made: Storage) -> None:
    with pytest.raises(ConfigError, match="packs/other is not there: name a table of packs"):
        main("other", made.root)
    with pytest.raises(ConfigError, match="packs/photos-256 is not there"):
        main("photos-256", made.path("nowhere"))
    tokens = runs.load_record(made, "tokens/photos-256-r1")
    assert tokens is not None
    runs.save_record(made, dataclasses.replace(tokens, fingerprint="9" * 32))
    anew = r"tokens/photos-256-r1: one of these has been made anew since packs/photos-256"
    with pytest.raises(ConfigError, match=anew) as told:
        main("photos-256", made.root)
    assert "\n" not in str(told.value)
    runs.save_record(made, tokens)
    decisions = runs.load_record(made, "decisions/photos")
    assert decisions is not None
    runs.save_record(made, dataclasses.replace(decisions, fingerprint="9" * 32))
    with pytest.raises(ConfigError, match=r"decisions/photos, .* made anew since"):
        main("photos-256", made.root)
    runs.save_record(made, decisions)
    made.remove("tokens/photos-256-r1")
    with pytest.raises(ConfigError, match="from tokens/photos-256-r1, which is not there any more"):
        main("photos-256", made.root)
    made.remove("runs")
    with pytest.raises(ConfigError, match="does not say how packs/photos-256 was made"):
        main("photos-256", made.root)


def test_no_more_lines_than_anyone_reads(made: Storage) -> None:
    edit_plan(made, lambda rows: [row.update(cost=1.0) for row in rows] and None)
    status, lines = lines_of(made)
    assert status == 1
    assert len(lines) == 22
    [count] = re.findall(r"packs/photos-256: (\d+) damages", lines[0])
    assert int(count) >= 40
    assert lines[-1] == f"  … the first 20 of {count}"


@pytest.mark.parametrize(
    ("tokens", "wanted", "expected"),
    [
        pytest.param((300, 100), None, [], id="as asked"),
        pytest.param((308, 92), None, [], id="to a document of each"),
        pytest.param((325, 75), None, ["a has 325", "b has 75"], id="too much of one"),
        pytest.param((300, 0), None, ["a has 300", "b has 0"], id="nothing of one"),
        pytest.param((300, 100), 400, [], id="all that was asked"),
        pytest.param((300, 100), 500, ["the packs have 400 tokens, asked for are 500"], id="less"),
    ],
)
def test_quotas_hold_to_a_document(
    tokens: tuple[int, int], wanted: int | None, expected: list[str]
) -> None:
    records = [TableRecord(name, name, name, "doc_id", ()) for name in "ab"]
    components = [PackComponent(r.table, r, share=s) for r, s in zip(records, (3, 1), strict=True)]
    phase = PackPhase("x", tuple(components), Packing(), OF, Slicing(), wanted)
    with duckdb.connect() as con:
        con.execute("CREATE TABLE plan (component INT, num_tokens BIGINT, pack BIGINT, epoch INT)")
        for component, total in enumerate(tokens):
            rows = [[component, 5, 0]] * (total // 5) + [[component, total % 5, 0]]
            con.executemany("INSERT INTO plan VALUES (?, ?, ?, 0)", rows)
        con.execute("INSERT INTO plan VALUES (0, 900, NULL, 0)")
        con.execute('CREATE TABLE sources (component INT, replica INT, "of" VARCHAR)')
        con.execute("INSERT INTO sources VALUES (0, 0, 'a'), (1, 0, 'b'), (1, 1, 'c')")
        found = [what for q in quotas(phase) for *_, what in con.execute(q).fetchall()]
    assert len(found) == len(expected)
    assert all(what.startswith(e) for what, e in zip(sorted(found), expected, strict=True))
