"""The three kinds of duplicates against a plain reading of the rule; kills, fingerprints, S3."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.config import ConfigError, build
from infra.runs import Part, TableRecord, load_record
from infra.schema import ERROR, SAMPLES, sample_id
from infra.storage import Storage
from pipelines import near_hashes
from pipelines.duplicates import (
    Duplicates,
    DuplicatesPhase,
    Kind,
    Perceptual,
    find_duplicates,
)
from pipelines.inputs import dataset_parts
from pipelines.near_embeddings import Semantic
from pipelines.scored import ScoredPart
from pipelines.source import Source
from pipelines.status import Look, NotDoneError

CHEAP = pa.schema(
    [
        ("sample_id", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ERROR,
    ]
)
MODELS = pa.schema([("sample_id", pa.string()), ("aesthetic", pa.float32()), ERROR])
EMBEDDINGS = pa.schema([("sample_id", pa.string()), ("embedding", pa.list_(pa.float32())), ERROR])
CONFIG = Duplicates(
    gate="height > 0 AND source <> 'closed'",
    semantic=Semantic(threshold=0.9),
    memory_gb=0.5,
)
Row = dict[str, Any]


def make_rows(seed: int, count: int, source: str) -> list[Row]:
    """Rows of few pictures: equal and nearly equal ones, failed, unscored and gated ones."""
    draw = random.Random(f"{seed} {source}")
    hashes = [random.Random(f"{seed} {i}").getrandbits(64) for i in range(3)]
    rows = []
    for number in range(count):
        picture = draw.randrange(3)
        flips = draw.sample(range(64), draw.choice([0, 1, 2, 3]))
        angle = picture * 0.9 + draw.choice([0.0, 0.1, 0.3, 0.5])
        row: Row = {
            "sample_id": sample_id(source, str(number)),
            "source": source,
            "width": draw.choice([100, 200, None]),
            "height": draw.choice([100, 100, 100, 0]),
            "sha256": draw.choice([f"{picture}{flips}", f"{picture}", f"{number} {source}"]),
            "phash": hashes[picture] ^ sum(1 << bit for bit in flips),
            "aesthetic": draw.choice([4.0, 5.0, math.nan, None]),
            "embedding": [math.cos(angle), math.sin(angle), 0.0],
            "failed": draw.choices(["", "samples", "cheap", "models"], [20, 1, 1, 1])[0],
        }
        if row["failed"] in ("samples", "cheap"):
            row |= dict.fromkeys(("width", "height", "sha256", "phash", "aesthetic"))
        if row["failed"] == "models" or draw.random() < 0.1:
            row["embedding"] = None
        if row["failed"] == "models":
            row["aesthetic"] = None
        rows.append(row)
    return rows


def store(storage: Storage, rows: dict[str, list[Row]], per_part: int) -> list[TableRecord]:
    """All tables as phases leave them, source by source: samples, cheap, models, embeddings."""
    records = []
    for source, here in rows.items():
        for table, schema, stage in (
            (f"samples/{source}", SAMPLES, "samples"),
            (f"scores/{source}/cheap", CHEAP, "cheap"),
            (f"scores/{source}/models", MODELS, "models"),
            (f"scores/{source}/embeddings", EMBEDDINGS, "models"),
        ):
            parts = []
            bare = pa.schema([field.remove_metadata() for field in schema])
            for number, start in enumerate(range(0, len(here), per_part)):
                full = [
                    dict.fromkeys(schema.names) | row | {"error": error(row, stage)}
                    for row in here[start : start + per_part]
                ]
                cut = [{name: row[name] for name in schema.names} for row in full]
                data = pa.Table.from_pylist(cut, schema=bare)
                file = f"v-1/part-{number:05d}.parquet"
                storage.write_part(f"{table}/{file}", data, schema, "sample_id")
                parts.append(Part(file, len(data)))
            records.append(TableRecord(table, table, "spec", "sample_id", tuple(parts)))
    return records


def error(row: Row, stage: str) -> Row | None:
    return {"stage": stage, "type": "bad", "message": "m"} if row["failed"] == stage else None


def phase_of(
    records: list[TableRecord], kind: Kind, config: Duplicates = CONFIG
) -> DuplicatesPhase:
    by_table = {record.table: record for record in records}
    names = [record.table.split("/")[1] for record in records if record.table[:7] == "samples"]
    sources = tuple(Source(name=name, kind="folder", path="x") for name in names)
    samples = tuple(by_table[f"samples/{name}"] for name in names)
    groups = {
        name: (by_table[f"scores/{name}/cheap"], by_table[f"scores/{name}/models"])
        for name in names
    }
    parts = tuple(
        ScoredPart(place, groups[place.source.name]) for place in dataset_parts(sources, samples)
    )
    embeddings = tuple(by_table[f"scores/{name}/embeddings"] for name in names)
    return DuplicatesPhase("d", kind, parts, config, embeddings)


def told(storage: Storage, record: TableRecord) -> dict[str, str]:
    """The group of every row of a table."""
    tables = [storage.read_table(record.path(part)) for part in range(len(record.parts))]
    assert [len(table) for table in tables] == [part.num_rows for part in record.parts]
    groups = {}
    for row in pa.concat_tables(tables).to_pylist():
        assert row["representative"] == (row["group"] == row["sample_id"])
        groups[row["sample_id"]] = row["group"]
    assert len(groups) == record.num_rows
    return groups


def expected(rows: list[Row], kind: Kind, radius: int = 4) -> dict[str, str]:
    """Rows best first, each beside those that are kept so far."""
    seen = [
        row
        for row in rows
        if row["failed"] == ""
        and (row["height"] or 0) > 0
        and row["source"] != "closed"
        and (kind != "semantic" or row["embedding"] is not None)
    ]

    def rank(row: Row) -> tuple[Any, ...]:
        values: list[Any] = [row["width"] and row["width"] * row["height"], row["aesthetic"]]
        values = [None if v is None or math.isnan(v) else v for v in values]
        return (*((v is None, -(v or 0)) for v in values), row["sample_id"])

    def near(a: Row, b: Row) -> bool:
        if kind == "exact":
            return bool(a["sha256"] == b["sha256"])
        if kind == "perceptual":
            return int(a["phash"] ^ b["phash"]).bit_count() <= radius
        return float(np.dot(a["embedding"], b["embedding"])) >= 0.9

    groups: dict[str, str] = {}
    kept: list[Row] = []
    for row in sorted(seen, key=rank):
        first = next((k for k in kept if near(k, row)), row)
        groups[row["sample_id"]] = first["sample_id"]
        if first is row:
            kept.append(row)
    return groups


@pytest.mark.parametrize("kind", ["exact", "perceptual", "semantic"])
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([3, 17, 100]))
@settings(max_examples=4, deadline=None)
def test_against_one_row_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, kind: Kind, seed: int, count: int, per_part: int
) -> None:
    sources = {"a": count, "b": count // 2 + 1, "closed": 3}
    rows = {name: make_rows(seed, number, name) for name, number in sources.items()}
    storage = Storage(str(tmp_path_factory.mktemp("duplicates")))
    phase = phase_of(store(storage, rows, per_part), kind)
    record = find_duplicates(storage, phase)
    assert load_record(storage, f"duplicates/d/{kind}") == record
    groups = told(storage, record)
    assert groups == expected([row for here in rows.values() for row in here], kind)
    # Aligned with the dataset's parts, so that scores and duplicates join part by part.
    for number, part in enumerate(phase.parts):
        ids = set(storage.read_table(part.place.samples.path(part.place.part))["sample_id"])
        assert set(storage.read_table(record.path(number))["sample_id"]) <= ids
    copies = len(groups) - len(set(groups.values()))
    assert record.facts["copies"] == copies
    sizes = sorted((list(groups.values()).count(g) for g in set(groups.values())), reverse=True)
    assert [size for _, size in record.facts["largest"]] == [n for n in sizes if n > 1][:20]


def test_parts_do_not_matter(tmp_path: Path) -> None:
    rows = {"a": make_rows(1, 60, "a"), "b": make_rows(1, 25, "b")}
    for kind in ("exact", "perceptual", "semantic"):
        found = []
        for per_part in (1000, 4):
            storage = Storage(str(tmp_path / f"{kind}-{per_part}"))
            phase = phase_of(store(storage, rows, per_part), kind)
            found.append(told(storage, find_duplicates(storage, phase)))
        assert found[0] == found[1]
        assert len(set(found[0].values())) < len(found[0])


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may catch it."""


@pytest.mark.parametrize("kind", ["exact", "perceptual"])
def test_killed_at_every_write(tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write is the last, the next run does the rest and the bytes are the same."""
    rows = {"a": make_rows(2, 30, "a"), "b": make_rows(2, 10, "b")}
    whole = Storage(str(tmp_path / "whole"))
    phase = phase_of(store(whole, rows, 15), kind)
    record = find_duplicates(whole, phase)
    files = {path: whole.read(path) for path, *_ in whole.find("duplicates")}
    storage = Storage(str(tmp_path / "killed"))
    store(storage, rows, 15)
    write, written = Storage.write, []

    def write_once(self: Storage, relative: str, data: bytes) -> None:
        if len(written) == 1:
            raise Killed
        written.append(relative)
        write(self, relative, data)

    paths: list[str] = []
    monkeypatch.setattr(Storage, "write", write_once)
    for _ in range(100):
        written.clear()
        try:
            assert find_duplicates(storage, phase) == record
            break
        except Killed:
            paths += written
    assert len(paths) > len(phase.parts)
    assert len(paths) == len(set(paths)), "a finished step was done again"
    assert {path: storage.read(path) for path, *_ in storage.find("duplicates")} == files
    assert not any("_units" in path for path in files)


def test_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Storage(str(tmp_path))
    records = store(storage, {"a": make_rows(1, 20, "a")}, 7)
    phase = phase_of(records, "perceptual")
    states: list[Any] = []
    with pytest.raises(NotDoneError):
        Look(states)(storage, phase)
    record = find_duplicates(storage, phase)
    capsys.readouterr()
    assert find_duplicates(storage, phase) == record
    assert "up to date" in capsys.readouterr().err
    assert Look(states)(storage, phase) == record
    assert [state.state for state in states] == ["missing", "done"]


def test_fingerprints_hold_what_matters(tmp_path: Path) -> None:
    records = store(Storage(str(tmp_path)), {"a": make_rows(1, 20, "a")}, 7)

    def prints(config: Duplicates) -> dict[Kind, str]:
        return {kind: phase_of(records, kind, config).fingerprint for kind in CONFIG.kinds}

    first = prints(CONFIG)

    def changed(**values: Any) -> set[str]:
        other = prints(replace(CONFIG, **values))
        return {kind for kind in CONFIG.kinds if first[kind] != other[kind]}

    assert len(set(first.values())) == 3
    assert changed(memory_gb=8.0) == set()
    assert changed(perceptual=Perceptual(radius=3)) == {"perceptual"}
    assert changed(semantic=Semantic(threshold=0.8)) == {"semantic"}
    for kind in CONFIG.kinds:
        bare = replace(phase_of(records, kind), embeddings=())
        assert (bare.fingerprint == first[kind]) == (kind != "semantic")
    assert changed(gate="height > 1") == changed(prefer=("height",)) == set(CONFIG.kinds)


def test_a_new_radius(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    rows = {"a": make_rows(5, 60, "a")}
    records = store(storage, rows, 20)
    for radius in (0, 1, 6):
        config = replace(CONFIG, perceptual=Perceptual(radius=radius))
        found = told(storage, find_duplicates(storage, phase_of(records, "perceptual", config)))
        assert found == expected(rows["a"], "perceptual", radius)


def test_what_may_be_missed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_hashes.near_under, "__defaults__", (1,))
    storage = Storage(str(tmp_path))
    record = find_duplicates(
        storage, phase_of(store(storage, {"a": make_rows(5, 90, "a")}, 40), "perceptual")
    )
    assert record.facts["crowded"] > 0


def test_all_rows_gated_away(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    records = store(storage, {"closed": make_rows(1, 20, "closed")}, 7)
    for kind in CONFIG.kinds:
        record = find_duplicates(storage, phase_of(records, kind))
        assert record.num_rows == 0
        assert len(record.parts) == 3


def test_on_s3(s3: str) -> None:
    rows = {"a": make_rows(1, 30, "a")}
    storage = Storage(s3 + "/ws")
    record = find_duplicates(storage, phase_of(store(storage, rows, 11), "perceptual"))
    assert told(storage, record) == expected(rows["a"], "perceptual")


def columns(*names: str) -> pa.Schema:
    types = {"sample_id": pa.string(), "sha256": pa.string(), "format": pa.string()}
    return pa.schema([(name, types.get(name, pa.int32())) for name in names])


def test_configurations_are_checked() -> None:
    every = ("sample_id", "sha256", "phash", "width", "height", "format")
    Duplicates(gate="width > 3", prefer=("width", "height - width")).check(columns(*every))
    # The default asks for what there is: no models, no sizes (texts).
    assert Duplicates().preferences(columns(*every)) == ("width * height",)
    assert Duplicates().preferences(columns(*every, "aesthetic")) == Duplicates().prefer
    text = Duplicates(perceptual=None)
    text.check(columns("sample_id", "sha256"))
    assert text.preferences(columns("sample_id", "sha256")) == ()
    assert text.kinds == ("exact",)
    assert build(Duplicates, {"perceptual": {"radius": 2}}).perceptual == Perceptual(radius=2)
    for config, message in (
        (Duplicates(gate="width"), "duplicates.gate: `width` is INTEGER, no condition"),
        (Duplicates(gate="widht > 3"), "duplicates.gate: unknown column `widht`"),
        (Duplicates(prefer=("aesthetic",)), "duplicates.prefer`: unknown column `aesthetic`"),
        (Duplicates(prefer=("format",)), "duplicates.prefer`: `format` is VARCHAR, expected"),
    ):
        with pytest.raises(ConfigError, match=message):
            config.check(columns(*every))
    with pytest.raises(ConfigError, match=r"compares `phash`, .* say `perceptual: null`"):
        Duplicates().check(columns("sample_id", "sha256"))


def test_impossible_values() -> None:
    with pytest.raises(ValueError, match="radius is 9"):
        Perceptual(radius=9)
    with pytest.raises(ValueError, match=r"memory_gb is 0\.1"):
        Duplicates(memory_gb=0.1)
