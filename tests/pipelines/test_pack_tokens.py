"""Tokens of two parts into packs on Ray, and back through the reader."""

import dataclasses
import hashlib
import math

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
from packing.packs import CODEBOOK
from packing.plan import Packing, plan
from packing.reader import open_packs, read_pack
from packing.slices import Slicing
from pipelines.lengths import read_packs
from pipelines.pack_tokens import PackComponent, PackPhase, write_packs
from pipelines.replicas import replica_table
from tokenize_offline import checkpoint
from trainer import codebook

NUM_SCALES = 4
FACTS = {
    "tokenizer_id": "t",
    "vocabulary_id": "v",
    "num_codes": 64,
    "text_vocab_size": 100,
    "level": 256,
}


def document(number, rng):
    """A caption of some length and a small image, as a row of tokens and as segments."""
    schedule = int(rng.integers(len(SCHEDULES)))
    codes = SCHEDULES[schedule].num_codes(NUM_SCALES)
    text = Text(rng.integers(0, 100, int(rng.integers(1, 30))))
    image = Image(
        schedule, NUM_SCALES, rng.integers(0, 64, codes), rng.integers(0, 64, codes), "target"
    )
    counts = count([text, image])
    segments = [
        {"kind": "text", "loss": True, "text_ids": text.ids.tolist(), "schedule": -1},
        {
            "kind": "image",
            "role": "target",
            "loss": True,
            "schedule": schedule,
            "num_scales": NUM_SCALES,
            "input_codes": image.input_codes.tolist(),
            "target_codes": image.target_codes.tolist(),
        },
    ]
    row = {
        "doc_id": hashlib.md5(str(number).encode()).hexdigest(),
        "task": "t2i",
        "source": "photos",
        "sample_ids": [str(number)],
        "segments": segments,
        "num_tokens": counts.num_tokens,
        "num_loss": counts.num_loss,
        "num_pairs": counts.num_pairs,
    }
    return row, (text, image)


@pytest.fixture
def tokens(tmp_path):
    """A storage with 70 documents in two parts, 2 of them failed; and the documents by id."""
    storage = Storage(str(tmp_path))
    rng = np.random.default_rng(0)
    schema = pa.schema([field.remove_metadata() for field in TOKENS])
    parts, expected = [], {}
    for number, size in enumerate((40, 30)):
        rows = []
        for i in range(size):
            row, segments = document(1000 * number + i, rng)
            if i == 7:
                error = {"stage": "codes", "type": "corrupt", "message": "bad"}
                row = row | {"segments": None, "num_tokens": None, "error": error}
            else:
                expected[row["doc_id"]] = segments
            rows.append(row)
        file = f"{runs.version_of('f' * 32)}/part-{number:05d}.parquet"
        table = pa.Table.from_pylist(rows, schema=schema)
        storage.write_part(f"tokens/photos-256/{file}", table, TOKENS, "doc_id")
        parts.append(Part(file, size, 1))
    record = TableRecord("tokens/photos-256", "f" * 32, "r" * 32, "doc_id", tuple(parts), FACTS)
    runs.save_record(storage, record)
    return storage, record, expected


def phase_of(record, decisions=(), replicas=(), copies=1, drop=0.0, **packing):
    settings = Packing(**({"tokens_per_pack": 200} | packing))
    of = coefficients(qwen2_5_7b(64))
    whole = PackComponent("photos-256", record, replicas, decisions, copies)
    return PackPhase("photos-256", (whole,), settings, of, Slicing(drop_captions=drop))


def replica_of(storage, record, number, noise):
    """The tokens again, ``noise`` added to every input code."""
    table = replica_table("photos-256", number)
    for part in range(len(record.parts)):
        rows = storage.read_table(record.path(part)).to_pylist()
        images = [s for row in rows for s in row["segments"] or () if s["kind"] == "image"]
        for image in images:
            image["input_codes"] = [(code + noise) % 64 for code in image["input_codes"]]
        schema = pa.schema([field.remove_metadata() for field in TOKENS])
        found = pa.Table.from_pylist(rows, schema=schema)
        storage.write_part(f"{table}/{record.parts[part].file}", found, TOKENS, "doc_id")
    spec = f"{number}{noise}".rjust(32, "0")
    replica = dataclasses.replace(record, table=table, fingerprint=spec, row_spec=spec)
    runs.save_record(storage, replica)
    return replica


def shards_of(storage, phase):
    """All bytes of the packs, by name."""
    found = [path for path, _, _ in storage.find(phase.folder)]
    return {path.removeprefix(f"{phase.folder}/"): storage.read(path) for path in found}


def judge(storage, stage, copies, per_part=17):
    """Decisions that give samples these copies."""
    schema = pa.schema([field.remove_metadata() for field in DECISIONS])
    rows = [{"sample_id": id_, "status": "kept", "copies": n} for id_, n in copies.items()]
    parts = []
    for number, start in enumerate(range(0, len(rows), per_part)):
        here = rows[start : start + per_part]
        file = f"v-1/part-{number:05d}.parquet"
        table = pa.Table.from_pylist(here, schema=schema)
        storage.write_part(f"{stage}/photos/{file}", table, DECISIONS, "sample_id")
        parts.append(Part(file, len(here)))
    spec = hashlib.md5(repr((stage, copies)).encode()).hexdigest()
    return TableRecord(f"{stage}/photos", spec, spec, "sample_id", tuple(parts))


def test_every_document_comes_back_once_with_its_codes(tokens, ray_session):
    storage, record, expected = tokens
    phase = phase_of(record)
    packed = write_packs(storage, phase)
    packs = open_packs(storage.path(phase.table))
    assert packs.storage.root == storage.path(phase.folder)
    assert packs.num_packs == packed.num_rows > 10
    assert packs.facts.tokenizer_id == "t"
    seen = {}
    for i in range(packs.num_packs):
        pack = read_pack(packs, i)
        assert sum(count(d.segments).num_tokens for d in pack.documents) <= packs.facts.token_cap
        for found in pack.documents:
            assert found.doc_id not in seen
            seen[found.doc_id] = found.segments
    assert seen.keys() == expected.keys()
    for doc_id, (text, image) in seen.items():
        wanted_text, wanted_image = expected[doc_id]
        assert np.array_equal(text.ids, wanted_text.ids)
        assert np.array_equal(image.input_codes, wanted_image.input_codes)
        assert np.array_equal(image.target_codes, wanted_image.target_codes)


def test_packs_carry_the_codebook_of_their_own_tokenizer_and_no_other(tokens, ray_session):
    storage, record, _ = tokens
    foreign = phase_of(record)
    write_packs(storage, foreign)
    assert not storage.exists(f"{foreign.folder}/{CODEBOOK}")
    identity, num_codes = checkpoint.identity(), checkpoint.read_settings().num_codes
    facts = FACTS | {"tokenizer_id": identity, "num_codes": num_codes}
    own = phase_of(dataclasses.replace(record, facts=facts, fingerprint="e" * 32))
    write_packs(storage, own)
    found = codebook.of_packs(open_packs(storage.path(own.table)))
    assert found == storage.path(f"{own.folder}/{CODEBOOK}")
    assert len(codebook.read(found, num_codes, identity)) == num_codes
    nowhere = dataclasses.replace(own, name="other", tokenizer="nowhere.safetensors")
    with pytest.raises(ConfigError, match=r"nowhere\.safetensors does not exist"):
        write_packs(storage, nowhere)
    assert not storage.exists(nowhere.table)


def test_a_run_that_stopped_between_shards_goes_on(tokens, ray_session, monkeypatch):
    storage, record, _ = tokens
    monkeypatch.setattr("pipelines.write_shards.PACKS_PER_SHARD", 4)
    phase = phase_of(record)
    write_packs(storage, phase)
    whole = shards_of(storage, phase)
    files = list(whole)
    assert len(files) > 5
    # As after a kill: no record, one shard written, another only half of the way.
    shards = [name for name in files if name.endswith(".tar")]
    for name in [*shards[1:], "index.parquet", "packs.json"]:
        storage.remove(f"{phase.folder}/{name}")
    storage.remove(f"{phase.table}/_table.json")
    write_packs(storage, phase)
    assert shards_of(storage, phase) == whole


def test_unchanged_tokens_are_not_packed_again_and_other_settings_are(tokens, ray_session):
    storage, record, _ = tokens
    first = write_packs(storage, phase_of(record))
    before = storage.find("packs")
    assert write_packs(storage, phase_of(record)) == first
    assert storage.find("packs") == before
    assert write_packs(storage, phase_of(record, seed=1)).fingerprint != first.fingerprint


def test_packs_know_the_tokens_that_they_were_made_from(tokens, ray_session):
    storage, record, expected = tokens
    phase = phase_of(record)
    facts = write_packs(storage, phase).facts
    [component] = facts["components"]
    assert component["tables"] == [record.table]
    assert component["versions"] == [record.version]
    assert (component["share"], component["quota"], component["epochs"]) == (1, 1, 1)
    assert (component["left_out_tokens"], component["left_out_documents"]) == (0, 0)
    existing = read_packs(storage, phase.name)
    assert (existing.existing.packing, existing.existing.coefficients) == (
        phase.packing,
        phase.coefficients,
    )
    # The plan alone says all that the simulator asks for.
    storage.remove(record.table)
    assert read_packs(storage, phase.name).lengths.num_tokens.sum() == component["num_tokens"]
    assert len(existing.lengths) == len(expected)
    # Rows that failed in another way make another version under the same fingerprint.
    part = dataclasses.replace(record.parts[0], failures="other")
    other = dataclasses.replace(record, parts=(part, *record.parts[1:]))
    assert phase_of(other).fingerprint != phase.fingerprint


def test_the_plan_is_that_of_all_documents_in_memory(tokens, ray_session, monkeypatch):
    """Windows, parts and the sort on disk change nothing of `packing.plan.plan`."""
    monkeypatch.setattr("pipelines.plan_packs.PLAN_PART_ROWS", 20)
    monkeypatch.setattr("pipelines.manifest.PART_ROWS", 30)
    monkeypatch.setattr("pipelines.manifest.BATCH_ROWS", 7)
    storage, record, expected = tokens
    phase = phase_of(record, copies=2, window=16, token_slack=1.1)
    facts = write_packs(storage, phase).facts
    assert len(facts["plan"]) > 2
    rows = pa.concat_tables([storage.read_table(path) for path in facts["plan"]])
    names = sorted(expected)
    counts = np.array([count(expected[name]) for name in names])
    costs = cost(*counts.T, phase.coefficients)
    made = plan(names, counts[:, 0], costs, phase.packing, copies=2)
    assert math.isclose(facts["budget"], made.budget, rel_tol=1e-12)
    inside = made.pack >= 0
    assert rows["row"].to_pylist() == list(range(len(made.pack)))
    assert rows["pack"].to_pylist() == [p if p >= 0 else None for p in made.pack.tolist()]
    doc_ids = [names[i] for i in made.document.tolist()]
    planned = list(zip(rows["doc_id"].to_pylist(), rows["copy"].to_pylist(), strict=True))
    wanted = list(zip(doc_ids, made.copy.tolist(), strict=True))
    num_inside = int(inside.sum())
    assert planned[:num_inside] == wanted[:num_inside]
    assert sorted(planned[num_inside:]) == sorted(wanted[num_inside:])
    assert facts["num_packs"] == made.num_packs
    assert facts["rejected"] == made.rejected()
    assert math.isclose(facts["imbalance"], made.imbalance)
    for row in rows.to_pylist():
        t, loss, pairs = count(expected[row["doc_id"]])
        assert (row["num_tokens"], row["num_loss"], row["num_pairs"]) == (t, loss, pairs)
        place = storage.read_table(record.path(row["part"]), ["doc_id"])["doc_id"]
        assert place[row["token_row"]].as_py() == row["doc_id"]


def test_documents_are_packed_as_often_as_the_decisions_say(tokens, ray_session):
    storage, record, expected = tokens
    sample_of = {hashlib.md5(n.encode()).hexdigest(): n for n in map(str, range(2000))}
    copies = {sample_of[id_]: int(id_, 16) % 4 for id_ in expected}
    decisions = judge(storage, "decisions", copies)
    packed = write_packs(storage, phase_of(record, (decisions,)))
    packs = open_packs(storage.path(packed.table))
    seen = {}
    for i in range(packs.num_packs):
        for found in read_pack(packs, i).documents:
            seen.setdefault(found.doc_id, []).append(found.copy)
            assert np.array_equal(found.segments[0].ids, expected[found.doc_id][0].ids)
    wanted = {id_: copies[sample_of[id_]] for id_ in expected}
    assert {id_: sorted(numbers) for id_, numbers in seen.items()} == {
        id_: list(range(n)) for id_, n in wanted.items() if n
    }
    once = judge(storage, "decisions", dict.fromkeys(copies, 1))
    assert write_packs(storage, phase_of(record, (once,))).fingerprint != packed.fingerprint
    none = judge(storage, "decisions", dict.fromkeys(copies, 0))
    with pytest.raises(ConfigError, match="leave no document a copy"):
        write_packs(storage, phase_of(record, (none,)))


@pytest.mark.parametrize("num_replicas", [2, 3])
def test_copies_take_turns_among_the_replicas(tokens, ray_session, monkeypatch, num_replicas):
    monkeypatch.setattr("pipelines.write_shards.PACKS_PER_SHARD", 8)
    storage, record, expected = tokens
    replicas = tuple(replica_of(storage, record, n, n) for n in range(1, num_replicas))
    sample_of = {hashlib.md5(n.encode()).hexdigest(): n for n in map(str, range(2000))}
    once_or_twice = {sample_of[id_]: 1 + int(id_, 16) % 2 for id_ in expected}
    decisions = judge(storage, "decisions", once_or_twice)
    phase = phase_of(record, (decisions,), replicas, copies=2)
    packed = write_packs(storage, phase)
    packs = open_packs(storage.path(packed.table))
    seen = set()
    for i in range(packs.num_packs):
        for found in read_pack(packs, i).documents:
            text, image = expected[found.doc_id]
            noise = found.copy % num_replicas
            assert np.array_equal(found.segments[0].ids, text.ids)
            assert np.array_equal(found.segments[1].target_codes, image.target_codes)
            assert np.array_equal(found.segments[1].input_codes, (image.input_codes + noise) % 64)
            seen.add((found.doc_id, found.copy))
    assert seen == {
        (id_, copy) for id_ in expected for copy in range(2 * once_or_twice[sample_of[id_]])
    }


def test_equal_replicas_make_no_difference(tokens, ray_session):
    storage, record, _ = tokens
    phase = phase_of(record)
    twice = phase_of(record, copies=2)
    write_packs(storage, twice)
    before = shards_of(storage, twice)
    with_replica = phase_of(record, replicas=(replica_of(storage, record, 1, 0),), copies=2)
    assert len({p.fingerprint for p in (phase, twice, with_replica)}) == 3
    write_packs(storage, with_replica)
    assert shards_of(storage, with_replica) == before


def test_packs_of_replicas_go_on_after_a_kill(tokens, ray_session, monkeypatch):
    monkeypatch.setattr("pipelines.write_shards.PACKS_PER_SHARD", 8)
    storage, record, _ = tokens
    phase = phase_of(record, replicas=(replica_of(storage, record, 1, 5),), copies=2)
    write_packs(storage, phase)
    whole = shards_of(storage, phase)
    shards = [name for name in whole if name.endswith(".tar")]
    assert len(shards) > 2
    for name in [*shards[1:], "index.parquet", "packs.json"]:
        storage.remove(f"{phase.folder}/{name}")
    storage.remove(f"{phase.table}/_table.json")
    write_packs(storage, phase)
    assert shards_of(storage, phase) == whole


def test_replicas_that_no_copy_would_come_from_are_refused(tokens, ray_session):
    storage, record, _ = tokens
    replicas = tuple(replica_of(storage, record, n, n) for n in (1, 2))
    for copies in (1, 2):
        with pytest.raises(ConfigError, match=f"replicas is 3, but .* more than {copies} times"):
            write_packs(storage, phase_of(record, replicas=replicas, copies=copies))
    assert not storage.names("packs")


def test_nothing_to_pack_is_told(tokens, ray_session):
    storage, record, _ = tokens
    with pytest.raises(ConfigError, match="tokens_per_pack"):
        write_packs(storage, phase_of(record, tokens_per_pack=5))
    empty = TableRecord("tokens/none-256", "e" * 32, "e" * 32, "doc_id", (), FACTS)
    with pytest.raises(ConfigError, match="tokens/none-256"):
        write_packs(storage, phase_of(empty))
