"""What the report says of captions: makers, styles, checks, failures, tokens and latencies."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra import catalog, runs
from infra.runs import Part, TableRecord
from infra.schema import CAPTIONS
from infra.storage import Storage
from pipelines.report_tokens import CaptionSection, StyleCount, caption_section


def section(storage: Storage, rows: list[dict[str, Any]], schema: pa.Schema) -> CaptionSection:
    table = pa.Table.from_pylist(
        [{"sample_id": f"{i:032x}", **row} for i, row in enumerate(rows)], schema=schema
    )
    storage.write_part("captions/d/v/part-00000.parquet", table, schema, "sample_id")
    part = Part("v/part-00000.parquet", len(rows))
    record = TableRecord("captions/d", "f", "r", "sample_id", (part,))
    runs.finish(storage, record, {}, (), time.time())
    with catalog.connect(storage, views=False) as con:
        return caption_section(con, storage, record)


def said(style: str, latency_s: float, *checks: str) -> dict[str, Any]:
    counts = {"num_tokens": 10, "num_prompt_tokens": 500}
    return {"style": style, "text": "x", "latency_s": latency_s, "checks": checks, **counts}


def test_what_is_told_of_captions(tmp_path: Path) -> None:
    failed = {"stage": "caption", "type": "timeout", "message": "<script>"}
    long, short = said("long", 2.0), said("short", 1.0, "too_short", "echo")
    lost = {"style": "long", "error": failed}
    maker = {"engine": "openai", "model": "<b>seer</b>"}
    given = {"style": "given", "text": "A cat.", "checks": ["too_short"], "engine": "given"}
    rows = [
        {**long, **maker, "variants": [short, long]},
        {**short, **maker, "variants": [lost, short]},
        {**given, "variants": [given, long]},
        {**long, **maker},
        {"error": failed, "variants": [lost, {**lost, "style": "short"}]},
        {"error": {**failed, "type": "no_image"}},
    ]
    found = section(Storage(str(tmp_path)), rows, CAPTIONS)
    assert found.makers == [
        ("openai", "<b>seer</b>", 3, 0, 1),
        ("none", "", 2, 2, 0),
        ("given", "", 1, 0, 1),
    ]
    assert found.checks == [("too_short", 2), ("echo", 1)]
    assert found.failures == [("no_image", 1), ("timeout", 1)]
    assert found.styles == [
        StyleCount("long", 5, 2, 2, 0, 1500, 30, 2.0, 2.0),
        StyleCount("short", 3, 1, 1, 2, 1000, 20, 1.0, 1.0),
        StyleCount("given", 1, 1, 0, 1, 0, 0, None, None),
    ]


def test_tables_of_an_earlier_version_are_shown_without_styles(tmp_path: Path) -> None:
    names = ("sample_id", "text", "engine", "model", "prompt_hash", "num_tokens", "checks", "error")
    older = pa.schema([CAPTIONS.field(name) for name in names])
    found = section(
        Storage(str(tmp_path)), [{"text": "A cat.", "checks": [], "engine": "given"}], older
    )
    assert (found.styles, found.checks, len(found.makers)) == ([], [], 1)


def test_nothing_was_kept(tmp_path: Path) -> None:
    found = section(Storage(str(tmp_path)), [], CAPTIONS)
    assert found == CaptionSection([], [], [], [], None)
