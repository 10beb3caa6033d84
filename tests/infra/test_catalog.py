"""Views show complete tables only, and the connection reaches nothing but the workspace."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from infra import catalog
from infra.runs import Part, TableRecord, save_record
from infra.schema import DECISIONS, DOCUMENTS, ERROR, FRAMES, REJECTIONS, SAMPLES, TOKENS
from infra.storage import Storage

SCORES = pa.schema([("sample_id", pa.string()), ("width", pa.int32()), ERROR])
BAD = {"stage": "probe", "type": "cut", "message": "it's cut"}


def put(
    storage: Storage,
    table: str,
    schema: pa.Schema,
    parts: list[list[dict[str, Any]]],
    key: str,
    facts: dict[str, Any] | None = None,
) -> None:
    bare = pa.schema([field.remove_metadata() for field in schema])
    written = []
    for number, rows in enumerate(parts):
        file = f"v-abcdefabcdef/part-{number:05d}.parquet"
        data = pa.Table.from_pylist(rows, schema=bare)
        storage.write_part(f"{table}/{file}", data, schema, key)
        written.append(Part(file, len(rows)))
    finger = "abcdefabcdef" + "0" * 20
    save_record(storage, TableRecord(table, finger, "spec", key, tuple(written), facts or {}))


def fill(storage: Storage) -> None:
    for source, numbers in (("a", range(4)), ("it's b", range(4, 6))):
        samples = [{"sample_id": f"s{n}", "source": source, "key": f"k{n}"} for n in numbers]
        put(storage, f"samples/{source}", SAMPLES, [samples[:2], samples[2:]], "sample_id")
        scores = [
            {"sample_id": f"s{n}", "width": None if n == 1 else n, "error": BAD if n == 1 else None}
            for n in numbers
        ]
        put(storage, f"scores/{source}/cheap", SCORES, [scores], "sample_id")
    decisions = [
        {
            "sample_id": f"s{n}",
            "status": status,
            "reason": reason,
            "failed_rules": [reason] if status == "rejected" else None,
            "copies": int(status == "kept"),
        }
        for n, status, reason in (
            (0, "kept", None),
            (1, "failed", "probe:cut"),
            (2, "rejected", "small"),
            (3, "kept", None),
            (4, "kept", None),
            (5, "rejected", "small"),
        )
    ]
    put(storage, "decisions/d", DECISIONS, [decisions], "sample_id")
    documents = [
        {"doc_id": "d0", "task": "t2i", "sample_ids": ["s0"], "segments": [segment("s0")] * 2},
        {"doc_id": "d3", "task": "t2i", "sample_ids": ["s3"], "error": BAD},
        {"doc_id": "d4", "task": "t2i", "sample_ids": ["s4"], "segments": [segment("s4")]},
    ]
    put(storage, "documents/d", DOCUMENTS, [documents], "doc_id")
    # What a killed run leaves: no record, or files that no record lists.
    storage.write("samples/half/v-1/part-00000.parquet", b"half")
    storage.write("samples/a/v-abcdefabcdef/part-00009.parquet", b"half")
    storage.write("decisions/e/v-1/part-00000.parquet", b"half")


def segment(sample: str) -> dict[str, Any]:
    return {"kind": "image", "loss": True, "role": "target", "sample_id": sample}


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "my 'workspace'"))
    return Storage(request.getfixturevalue("s3") + "/ws")


def rows(con: duckdb.DuckDBPyConnection, sql: str) -> list[Any]:
    return con.execute(sql).fetchall()


def test_views(storage: Storage) -> None:
    fill(storage)
    con = catalog.connect(storage)
    assert rows(con, "SELECT source, count(*) FROM samples GROUP BY 1 ORDER BY 1") == [
        ("a", 4),
        ("it's b", 2),
    ]
    assert rows(con, "SELECT sum(width) FROM scores WHERE cheap_error IS NULL") == [(14,)]
    assert rows(con, "SELECT dataset, count(*) FROM documents GROUP BY 1") == [("d", 3)]
    ledger = rows(
        con, "SELECT key, status, reason, failed_stage, failed_message FROM ledger ORDER BY key"
    )
    assert ledger == [
        ("k0", "kept", None, None, None),
        ("k1", "failed", "probe:cut", "probe", "it's cut"),
        ("k2", "rejected", "small", None, None),
        ("k3", "failed", "probe:cut", "probe", "it's cut"),
        ("k4", "kept", None, None, None),
        ("k5", "rejected", "small", None, None),
    ]
    assert [record.table for record in catalog.records(storage)] == [
        "samples/a",
        "samples/it's b",
        "scores/a/cheap",
        "scores/it's b/cheap",
        "decisions/d",
        "documents/d",
    ]


def test_tokens_of_two_levels_double_no_sample(storage: Storage) -> None:
    fill(storage)
    for level, num_tokens in ((256, 900), (512, 3_700)):
        documents = [
            {"doc_id": "d0", "sample_ids": ["s0"], "num_tokens": num_tokens},
            {"doc_id": "d4", "sample_ids": ["s4"], "error": BAD if level == 512 else None},
        ]
        put(storage, f"tokens/d-{level}", TOKENS, [documents], "doc_id")
    found = rows(catalog.connect(storage), "SELECT key, status, num_tokens FROM ledger ORDER BY 1")
    assert len(found) == 6
    assert found[0] == ("k0", "kept", 3_700)
    assert found[4] == ("k4", "failed", None)


def test_replicas_of_tokens_double_no_sum(storage: Storage) -> None:
    fill(storage)
    documents = [
        {"doc_id": f"d{n}", "sample_ids": [f"s{n}"], "num_tokens": 900 + n} for n in (0, 4)
    ]
    sums = "SELECT dataset, count(*), sum(num_tokens) FROM tokens GROUP BY ALL ORDER BY ALL"
    ledger = "SELECT key, status, num_tokens FROM ledger ORDER BY ALL"
    for name in ("d-256", "d-2-r1-512"):  # a dataset may be named like a replica
        put(storage, f"tokens/{name}", TOKENS, [documents], "doc_id")
    with catalog.connect(storage) as con:
        before = rows(con, sums), rows(con, ledger)
        with pytest.raises(duckdb.CatalogException):
            con.execute("SELECT * FROM token_replicas")
    assert before[0] == [("d-2-r1-512", 2, 1_804), ("d-256", 2, 1_804)]
    for name in ("d-256-r1", "d-256-r12"):
        put(storage, f"tokens/{name}", TOKENS, [documents], "doc_id")
    with catalog.connect(storage) as con:
        assert (rows(con, sums), rows(con, ledger)) == before
        found = rows(con, "SELECT dataset, replica, doc_id FROM token_replicas ORDER BY ALL")
    assert found == [("d-256", replica, doc) for replica in (1, 12) for doc in ("d0", "d4")]


@pytest.mark.parametrize("type_", [*REJECTIONS, "truncated"])
def test_verdicts_on_documents_are_rejections_in_the_ledger(tmp_path: Path, type_: str) -> None:
    storage = Storage(str(tmp_path))
    fill(storage)
    error = {"stage": "documents", "type": type_, "message": "no"}
    documents = [{"doc_id": "d0", "task": "t2i", "sample_ids": ["s0"], "error": error}]
    put(storage, "documents/d", DOCUMENTS, [documents], "doc_id")
    con = catalog.connect(storage)
    [found] = rows(con, "SELECT status, reason FROM ledger WHERE sample_id = 's0'")
    status = "failed" if type_ == "truncated" else "rejected"
    assert found == (status, f"documents:{type_}")


def candidate(time_s: float, class_: str, kept: bool = False) -> dict[str, Any]:
    image = b"jpeg" if kept else None
    return {"timestamp_s": time_s, "class": class_, "kept": kept, "flow": [0.5], "image": image}


def put_frames(storage: Storage, level: int, errors: dict[str, dict[str, str]]) -> None:
    rows = [
        {
            "sample_id": name,
            "candidates": None if name in errors else [candidate(0.0, "object", kept=True)] * kept,
            "num_candidates": None if name in errors else kept,
            "num_kept": None if name in errors else kept,
            "error": errors.get(name),
        }
        for name, kept in (("s0", 3), ("s3", 2), ("s4", 0))
    ]
    put(storage, f"frames/d-{level}", FRAMES, [rows], "sample_id")


def test_candidates_are_rows_without_pictures(storage: Storage) -> None:
    clips = [
        {"sample_id": "s0", "candidates": [candidate(0.0, "object", True), candidate(2, "static")]},
        {"sample_id": "s1", "candidates": []},
        {"sample_id": "s2", "error": BAD},
        {"sample_id": "s3", "candidates": [candidate(7.5, "cut")]},
    ]
    put(storage, "frames/d-256", FRAMES, [clips[:2], clips[2:]], "sample_id")
    con = catalog.connect(storage)
    found = con.execute("SELECT * FROM candidates ORDER BY sample_id, candidate").fetchall()
    names = [name for name, *_ in con.description or ()]
    assert names[:5] == ["dataset", "sample_id", "candidate", "timestamp_s", "class"]
    assert "image" not in names
    assert [row[:5] for row in found] == [
        ("d-256", "s0", 0, 0.0, "object"),
        ("d-256", "s0", 1, 2.0, "static"),
        ("d-256", "s3", 0, 7.5, "cut"),
    ]
    assert rows(con, "SELECT count(*), count(error) FROM frames") == [(4, 1)]


def test_frames_of_other_statistics_stand_beside_each_other(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name, statistic in (("old-256", "shake"), ("new-256", "tilt")):
        told = [("class", pa.string()), (statistic, pa.float32()), ("image", pa.large_binary())]
        schema = pa.schema([("sample_id", pa.string()), ("candidates", pa.list_(pa.struct(told)))])
        clip = {"sample_id": name, "candidates": [{"class": "object", statistic: 0.5}]}
        put(storage, f"frames/{name}", schema, [[clip]], "sample_id")
    found = rows(
        catalog.connect(storage),
        "SELECT dataset, class, shake, tilt FROM candidates ORDER BY dataset",
    )
    assert found == [("new-256", "object", None, 0.5), ("old-256", "object", 0.5, None)]


def test_the_ledger_knows_what_became_of_clips(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    fill(storage)
    few = {"stage": "frames", "type": "too_few_frames", "message": "0 frames qualify"}
    put_frames(storage, 256, {"s3": BAD, "s4": few})
    sql = "SELECT sample_id, status, reason, num_kept FROM ledger ORDER BY sample_id"
    # Documents have the last word: d3 has failed, d4 is there although these frames are too few.
    assert rows(catalog.connect(storage), sql) == [
        ("s0", "kept", None, 3),
        ("s1", "failed", "probe:cut", None),
        ("s2", "rejected", "small", None),
        ("s3", "failed", "probe:cut", None),
        ("s4", "kept", None, None),
        ("s5", "rejected", "small", None),
    ]
    storage.remove("documents/d")
    put_frames(storage, 512, {"s4": few})
    found = rows(catalog.connect(storage), sql)
    assert found[3:5] == [
        ("s3", "failed", "probe:cut", 2),
        ("s4", "rejected", "frames:too_few_frames", None),
    ]


def test_videos_and_shots_have_views(storage: Storage) -> None:
    fill(storage)
    videos = [{"sample_id": "v0", "source": "a", "key": "film.mp4", "media": "video"}]
    put(storage, "videos/a", SAMPLES, [videos], "sample_id")
    spans = pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64())]))
    shots = pa.schema([("sample_id", pa.string()), ("spans", spans), ERROR])
    cut = [{"sample_id": "v0", "spans": [{"start_s": 0.0, "end_s": 2.5}]}]
    put(storage, "shots/a", shots, [cut], "sample_id")
    con = catalog.connect(storage)
    found = rows(
        con,
        "SELECT v.source, v.key, s.source, len(s.spans), s.spans[1].end_s "
        "FROM videos AS v JOIN shots AS s USING (sample_id)",
    )
    assert found == [("a", "film.mp4", "a", 1, 2.5)]
    assert rows(con, "SELECT count(*) FROM samples") == [(6,)]
    assert rows(con, "SELECT count(*) FROM ledger") == [(6,)]


def test_only_scores_that_a_dataset_was_decided_by_fail_its_samples(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    fill(storage)
    late = [{"sample_id": f"s{n}", "width": n, "error": BAD} for n in range(4)]
    put(storage, "scores/a/late", SCORES, [late], "sample_id")
    other = [{"sample_id": "s4", "width": 4, "error": BAD}]
    put(storage, "scores/it's b/late", SCORES, [other], "sample_id")
    kept = [{"sample_id": f"s{n}", "status": "kept", "copies": 1} for n in range(6)]
    both = ["samples/a", "samples/it's b", "scores/a/cheap", "scores/it's b/cheap"]
    tables: tuple[tuple[str, dict[str, Any]], ...] = (
        ("old", {}),
        ("bare", {"inputs": both}),
        ("of a", {"inputs": [*both, "scores/a/late"]}),
    )
    for name, facts in tables:
        put(storage, f"decisions/{name}", DECISIONS, [kept], "sample_id", facts)
    found = rows(
        catalog.connect(storage),
        "SELECT dataset, list(sample_id ORDER BY sample_id) FROM ledger "
        "WHERE status = 'failed' AND dataset <> 'd' GROUP BY dataset ORDER BY dataset",
    )
    assert found == [
        ("bare", ["s1"]),
        ("of a", ["s0", "s1", "s2", "s3"]),
        ("old", ["s0", "s1", "s2", "s3", "s4"]),
    ]


def test_captions_are_judged_of_what_the_rules_keep_now(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    fill(storage)
    judged = [
        {
            "sample_id": "s0",
            "status": "rejected",
            "reason": "short",
            "failed_rules": ["short"],
            "copies": 0,
        },
        # Of an earlier run, when the rules kept this one.
        {"sample_id": "s2", "status": "kept", "copies": 1},
        {"sample_id": "s4", "status": "kept", "copies": 1},
        {
            "sample_id": "s5",
            "status": "rejected",
            "reason": "short",
            "failed_rules": ["short"],
            "copies": 0,
        },
    ]
    put(storage, "caption_decisions/d", DECISIONS, [judged], "sample_id")
    found = rows(
        catalog.connect(storage),
        "SELECT sample_id, status, reason, failed_rules, copies FROM ledger "
        "WHERE sample_id NOT IN ('s1', 's3') ORDER BY 1",
    )
    assert found == [
        ("s0", "rejected", "short", ["short"], 0),
        ("s2", "rejected", "small", ["small"], 0),
        ("s4", "kept", None, [], 1),
        ("s5", "rejected", "small", ["small"], 0),
    ]


def test_an_empty_workspace(storage: Storage) -> None:
    assert catalog.records(storage) == []
    assert rows(catalog.connect(storage), "SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('{outside}')",
        "SELECT * FROM read_text('{outside}')",
        "SELECT * FROM '{outside}'",
        "SELECT * FROM glob('/etc/*')",
        "COPY (SELECT 1) TO '{outside}.copy'",
        "ATTACH '{outside}.db'",
        "EXPORT DATABASE '{outside}.export'",
        "INSTALL httpfs",
        "LOAD '{outside}'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "SET lock_configuration = false",
        "SET memory_limit = '1TB'",
        "RESET memory_limit",
    ],
)
def test_the_connection_is_closed_to_all_else(tmp_path: Path, sql: str) -> None:
    outside = tmp_path / "outside.csv"
    outside.write_text("secret\n1\n")
    storage = Storage(str(tmp_path / "ws"))
    fill(storage)
    con = catalog.connect(storage)
    with pytest.raises(duckdb.Error):
        con.execute(sql.format(outside=outside)).fetchall()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside.csv", "ws"]


def test_a_neighbour_with_a_longer_name_is_outside(tmp_path: Path) -> None:
    storage, neighbour = Storage(str(tmp_path / "ws")), Storage(str(tmp_path / "ws2"))
    fill(storage)
    fill(neighbour)
    con = catalog.connect(storage)
    [record] = [r for r in catalog.records(neighbour) if r.table == "decisions/d"]
    with pytest.raises(duckdb.Error):
        rows(con, f"SELECT * FROM {catalog.scan(neighbour, record)}")


def test_catalog_sql_works_from_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path / "ws"))
    fill(storage)
    path = catalog.write_catalog(storage)
    assert path == str(tmp_path / "ws/catalog.sql")
    # The workspace may move: its paths are relative.
    (tmp_path / "ws").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    with duckdb.connect() as con:
        con.execute((tmp_path / "moved/catalog.sql").read_text())
        assert rows(con, "SELECT count(*) FROM ledger") == [(6,)]


def test_names_are_quoted() -> None:
    assert catalog.quote('a"b') == '"a""b"'
    assert catalog.literal("it's") == "'it''s'"
