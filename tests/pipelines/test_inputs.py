"""What phases read: gated samples, kept samples, documents; parts and slices lose nothing."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from infra.runs import Part, TableRecord
from infra.schema import CAPTIONS, DECISIONS, DOCUMENTS, ERROR, SAMPLES, doc_id, sample_id, uniform
from infra.storage import ROW_GROUP_ROWS_WITH_MEDIA, Storage
from operators.image_text import ImageText
from pipelines import inputs
from pipelines.inputs import DocumentInput, KeptInput, SampleInput, dataset_parts
from pipelines.source import Source

CHEAP = pa.schema([("sample_id", pa.string()), ("width", pa.int32()), ERROR])
BAD = {"stage": "probe", "type": "cut", "message": "m"}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "ws"))


def put(
    storage: Storage, table: str, schema: pa.Schema, parts: list[list[dict[str, Any]]], key: str
) -> TableRecord:
    bare = pa.schema([field.remove_metadata() for field in schema])
    written = []
    for number, rows in enumerate(parts):
        file = f"v-1/part-{number:05d}.parquet"
        data = pa.Table.from_pylist(rows, schema=bare)
        storage.write_part(f"{table}/{file}", data, schema, key)
        written.append(Part(file, len(rows)))
    return TableRecord(table, table, "spec", key, tuple(written))


def source_of(tmp_path: Path, name: str, count: int) -> tuple[Source, list[dict[str, Any]]]:
    """A folder of files that hold their own names, and their rows of `samples`."""
    (tmp_path / name).mkdir()
    rows = []
    for number in range(count):
        key = f"{number:04d}.jpg"
        (tmp_path / name / key).write_text(f"{name}/{key}")
        rows.append(
            {
                "sample_id": sample_id(name, key),
                "source": name,
                "key": key,
                "uri": key,
                "offset": 0,
                "length": len(f"{name}/{key}"),
                "caption": f"caption {number}",
                "metadata": json.dumps({"number": number}),
            }
        )
    return Source(name=name, kind="folder", path=str(tmp_path / name)), rows


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (None, [0, 3, 4, 5]),
        ("width > 3", [4, 5]),
        ("width > 3 or caption = 'caption 0'", [0, 4, 5]),
        ("width * 1000000000 > 1", []),
        ("caption::integer > 1", []),
        ("source = 'a' and key < '0004' -- and more", [0, 3]),
    ],
)
def test_a_gate(tmp_path: Path, storage: Storage, gate: str | None, expected: list[int]) -> None:
    source, rows = source_of(tmp_path, "a", 6)
    rows[2]["error"] = BAD
    samples = put(storage, "samples/a", SAMPLES, [rows[:4], rows[4:]], "sample_id")
    # Row 1 failed in an earlier group, row 0 has no width.
    scores = [
        {
            "sample_id": row["sample_id"],
            "width": number or None,
            "error": {1: BAD, 2: BAD}.get(number),
        }
        for number, row in enumerate(rows)
    ]
    cheap = put(storage, "scores/a/cheap", CHEAP, [scores[:4], scores[4:]], "sample_id")
    gated = SampleInput(source, samples, earlier=(cheap,), gate=gate)
    found = [gated.rows(storage, part) for part in range(2)]
    numbers = [int(uri[:4]) for table in found for uri in table["uri"].to_pylist()]
    assert numbers == expected
    loaded = gated.load(storage, found[0])
    assert loaded.column_names == list(gated.columns)
    for row in loaded.to_pylist():
        assert row["bytes"] == f"a/{row['key']}".encode()


def test_without_a_gate_all_rows_come_failed_ones_too(tmp_path: Path, storage: Storage) -> None:
    source, rows = source_of(tmp_path, "a", 3)
    rows[1]["error"] = BAD
    samples = put(storage, "samples/a", SAMPLES, [rows], "sample_id")
    every = SampleInput(source, samples)
    loaded = every.load(storage, every.rows(storage, 0)).to_pylist()
    assert [row["key"] for row in loaded] == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert [row["bytes"] for row in loaded] == [b"a/0000.jpg", None, b"a/0002.jpg"]
    assert loaded[1]["error"] == BAD


@pytest.mark.parametrize("per_slice", [7, 1000])
def test_kept_samples_of_two_sources_in_slices(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch, per_slice: int
) -> None:
    monkeypatch.setattr(inputs, "SAMPLES_PER_MEDIA_PART", per_slice)
    one, first = source_of(tmp_path, "a", 20)
    two, second = source_of(tmp_path, "b", 10)
    samples = (
        put(storage, "samples/a", SAMPLES, [first[:15], first[15:]], "sample_id"),
        put(storage, "samples/b", SAMPLES, [second], "sample_id"),
    )
    cuts = [first[:15], first[15:], second]

    def is_kept(row: dict[str, Any]) -> bool:
        return int(row["key"][:4]) % 3 != 0

    decisions = put(
        storage,
        "decisions/d",
        DECISIONS,
        [
            [
                {"sample_id": r["sample_id"], "status": "kept" if is_kept(r) else "rejected"}
                for r in cut
            ]
            for cut in cuts
        ],
        "sample_id",
    )
    captions = put(
        storage,
        "captions/d",
        CAPTIONS,
        [
            [
                {
                    "sample_id": r["sample_id"],
                    "text": None if r["key"] == "0001.jpg" else f"text of {r['sample_id']}",
                    "error": BAD if r["key"] == "0001.jpg" else None,
                }
                for r in cut
                if is_kept(r)
            ]
            for cut in cuts
        ],
        "sample_id",
    )
    parts = dataset_parts((one, two), samples, inputs.SAMPLES_PER_MEDIA_PART)
    assert len(parts) == (3 + 1 + 2 if per_slice == 7 else 3)
    kept = KeptInput(parts, decisions, captions, document=("d", "t2i"))
    seen = []
    for part in range(len(parts)):
        rows = kept.rows(storage, part)
        loaded = kept.load(storage, rows.slice(0, 4)).to_pylist()
        loaded += kept.load(storage, rows.slice(4)).to_pylist() if len(rows) > 4 else []
        for row in loaded:
            assert row["task"] == "t2i"
            assert row["doc_id"] == doc_id("d", "t2i", [row["sample_id"]])
            failed = row["key"] == "0001.jpg"
            assert row["text"] == (None if failed else f"text of {row['sample_id']}")
            assert (row["error"] == BAD) == failed
            assert row["bytes"] == (None if failed else f"{row['source']}/{row['key']}".encode())
        seen += [row["sample_id"] for row in loaded]
    assert sorted(seen) == sorted(r["sample_id"] for cut in cuts for r in cut if is_kept(r))


def test_a_row_stays_in_its_slice_whatever_is_kept(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "SAMPLES_PER_MEDIA_PART", 5)
    source, rows = source_of(tmp_path, "a", 20)
    samples = put(storage, "samples/a", SAMPLES, [rows], "sample_id")
    parts = dataset_parts((source,), (samples,), inputs.SAMPLES_PER_MEDIA_PART)
    places: list[dict[str, int]] = []
    for keep in (rows, rows[3:11]):
        status = [{"sample_id": r["sample_id"], "status": "kept"} for r in keep]
        decisions = put(storage, "decisions/d", DECISIONS, [status], "sample_id")
        kept = KeptInput(parts, decisions, media=False)
        places.append(
            {
                id_: part
                for part in range(len(parts))
                for id_ in kept.rows(storage, part)["sample_id"].to_pylist()
            }
        )
    assert len(places[0]) == 20
    assert places[1] == {r["sample_id"]: places[0][r["sample_id"]] for r in rows[3:11]}


def kept_of(storage: Storage, table: str, rows: list[dict[str, Any]]) -> TableRecord:
    status = [{"sample_id": r["sample_id"], "status": "kept"} for r in rows]
    return put(storage, table, DECISIONS, [status], "sample_id")


def test_task_inversion_turns_the_drawn_documents_over(tmp_path: Path, storage: Storage) -> None:
    source, rows = source_of(tmp_path, "a", 400)
    samples = put(storage, "samples/a", SAMPLES, [rows], "sample_id")
    decisions = kept_of(storage, "decisions/d", rows)
    parts = dataset_parts((source,), (samples,))

    def tasks(task: str, share: float, seed: int) -> dict[str, str]:
        kept = KeptInput(
            parts, decisions, document=("d", task), inversion=share, inversion_seed=seed
        )
        found = kept.rows(storage, 0)
        assert set(found.column_names) >= set(kept.columns) - {"bytes"}
        for row in found.to_pylist():
            assert row["doc_id"] == doc_id("d", row["task"], [row["sample_id"]])
        return dict(zip(found["sample_id"].to_pylist(), found["task"].to_pylist(), strict=True))

    turned = tasks("t2i", 0.1, 3)
    assert {id_ for id_, task in turned.items() if task == "i2t"} == {
        row["sample_id"] for row in rows if uniform(row["sample_id"], 3) < 0.1
    }
    assert 20 <= list(turned.values()).count("i2t") <= 60
    more = tasks("t2i", 0.3, 3)
    assert all(more[id_] == "i2t" for id_, task in turned.items() if task == "i2t")
    assert set(tasks("t2i", 0.0, 3).values()) == {"t2i"}
    assert set(tasks("t2i", 1.0, 3).values()) == {"i2t"}
    assert set(tasks("i2t", 0.5, 3).values()) == {"i2t"}


def test_columns_of_score_groups_come_along_as_text(tmp_path: Path, storage: Storage) -> None:
    one, first = source_of(tmp_path, "a", 6)
    two, second = source_of(tmp_path, "b", 3)
    samples = (
        put(storage, "samples/a", SAMPLES, [first[:2], first[2:]], "sample_id"),
        put(storage, "samples/b", SAMPLES, [second], "sample_id"),
    )
    schema = pa.schema([("sample_id", pa.string()), ("ocr_text", pa.string()), ERROR])
    other = pa.schema([("sample_id", pa.string()), ("share", pa.float32()), ERROR])
    cuts = {"a": [first[:2], first[2:]], "b": [second]}
    groups = []
    for name, parts in cuts.items():
        told = [[r | {"ocr_text": f"SIGN {r['key']}"} for r in cut[1:]] for cut in parts]
        groups.append(put(storage, f"scores/{name}/ocr", schema, told, "sample_id"))
        told = [[r | {"share": 0.5} for r in cut] for cut in parts]
        groups.append(put(storage, f"scores/{name}/models", other, told, "sample_id"))
    status = [
        [{"sample_id": row["sample_id"], "status": "kept"} for row in cut]
        for cut in (*cuts["a"], second)
    ]
    kept = KeptInput(
        dataset_parts((one, two), samples),
        put(storage, "decisions/d", DECISIONS, status, "sample_id"),
        extra=tuple(groups),
        extra_columns=("ocr_text", "share"),
    )
    found = [
        row for part in range(3) for row in kept.load(storage, kept.rows(storage, part)).to_pylist()
    ]
    assert len(found) == 9
    unseen = {cut[0]["sample_id"] for parts in cuts.values() for cut in parts}
    for row in found:
        assert row["ocr_text"] == (None if row["sample_id"] in unseen else f"SIGN {row['key']}")
        assert row["share"] == "0.5"
    with pytest.raises(KeyError, match="no score group of a has a column missing"):
        replace(kept, extra_columns=("missing",)).rows(storage, 0)


def test_a_sample_without_a_caption_may_be_written_of_otherwise(
    tmp_path: Path, storage: Storage
) -> None:
    source, rows = source_of(tmp_path, "a", 4)
    samples = put(storage, "samples/a", SAMPLES, [rows], "sample_id")
    schema = pa.schema([("sample_id", pa.string()), ("ocr_text", pa.string()), ERROR])
    read = [r | {"ocr_text": t} for r, t in zip(rows, ("EXIT", None, "EXIT", "EXIT"), strict=True)]
    ocr = put(storage, "scores/a/ocr", schema, [read], "sample_id")
    types = {0: "no_caption", 1: "no_caption", 2: "timeout"}
    told = [
        {
            "sample_id": row["sample_id"],
            "text": None if number in types else "Said.",
            "error": {**BAD, "stage": "caption", "type": types[number]}
            if number in types
            else None,
        }
        for number, row in enumerate(rows)
    ]
    kept = KeptInput(
        dataset_parts((source,), (samples,)),
        kept_of(storage, "decisions/d", rows),
        put(storage, "captions/d", CAPTIONS, [told], "sample_id"),
        media=False,
        document=("d", "t2i"),
        extra=(ocr,),
        extra_columns=("ocr_text",),
    )

    def failed(kept: KeptInput) -> dict[str, str | None]:
        found = kept.load(storage, kept.rows(storage, 0))
        return {row["key"]: row["error"] and row["error"]["type"] for row in found.to_pylist()}

    names = [row["key"] for row in rows]
    assert failed(kept) == dict(zip(names, (None, None, "timeout", None), strict=True))
    bare = replace(kept, extra=(), extra_columns=())
    assert failed(bare) == dict(zip(names, (*types.values(), None), strict=True))
    picture = io.BytesIO()
    Image.new("RGB", (300, 300)).save(picture, "PNG")
    loaded = kept.load(storage, kept.rows(storage, 0)).sort_by("key")
    bytes_ = pa.array([picture.getvalue()] * 4, pa.large_binary())
    out = ImageText(text=("{text}", " {ocr_text}"))(loaded.append_column("bytes", bytes_))
    assert [e and e["type"] for e in out["error"].to_pylist()] == [None, "no_text", "timeout", None]
    segments = out["segments"].to_pylist()
    assert [segments[n][0]["text"] for n in (0, 3)] == [" EXIT", "Said. EXIT"]


def test_documents_come_in_their_order_from_any_slice(storage: Storage) -> None:
    count = ROW_GROUP_ROWS_WITH_MEDIA * 2 + 5
    rows = [
        {"doc_id": f"{n:04d}", "task": "t2i", "source": "a", "sample_ids": [], "segments": None}
        for n in range(count)
    ]
    record = put(storage, "documents/d", DOCUMENTS, [[], rows], "doc_id")
    documents = DocumentInput(record)
    assert len(documents.rows(storage, 0)) == 0
    listed = documents.rows(storage, 1)
    for start, length in ((0, count), (60, 10), (127, 3), (count - 1, 1)):
        loaded = documents.load(storage, listed.slice(start, length))
        assert loaded["doc_id"].to_pylist() == [f"{n:04d}" for n in range(start, start + length)]
        assert set(documents.columns) <= set(loaded.column_names)
