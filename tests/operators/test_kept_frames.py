"""Kept frames out of Arrow columns: chunks, slices, nulls and rows that have failed."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.schema import CANDIDATE, ERROR_TYPE
from operators.kept_frames import KeptFrame, kept_frames

FAILED = {"stage": "frames", "type": "too_few_frames", "message": "earlier"}


def candidate(rng: np.random.Generator, time_s: float) -> dict[str, Any]:
    kept = bool(rng.random() < 0.5)
    return {
        "timestamp_s": time_s,
        "class": "object",
        "evidence": "",
        "kept": kept if rng.random() < 0.9 else None,
        "rank": 0,
        "flow": [0.0] * 8,
        "width": 32,
        "height": 16,
        "cropped": 0.25,
        "image": rng.bytes(5) if kept else None,
    }


@pytest.mark.parametrize("seed", range(20))
def test_any_chunks_and_slices_give_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(12):
        times = np.sort(rng.random(rng.integers(0, 6)) * 20)
        frames = [candidate(rng, float(time_s)) for time_s in times]
        rows.append(
            {
                "candidates": frames if rng.random() < 0.9 else None,
                "error": FAILED if rng.random() < 0.2 else None,
            }
        )
    expected = [
        None
        if row["error"]
        else [
            KeptFrame(f["timestamp_s"], f["image"], f["width"], f["height"], f["cropped"])
            for f in row["candidates"] or ()
            if f["kept"]
        ]
        for row in rows
    ]
    schema = pa.schema([("candidates", pa.list_(CANDIDATE)), ("error", ERROR_TYPE)])
    table = pa.Table.from_pylist(rows, schema=schema)
    assert kept_frames(table) == expected
    start, end = sorted(rng.integers(0, 13, 2).tolist())
    assert kept_frames(table.slice(start, end - start)) == expected[start:end]
    cut = pa.concat_tables([table.slice(start), table.slice(0, 0), table.slice(0, start)])
    assert kept_frames(cut) == expected[start:] + expected[:start]
    assert kept_frames(table.slice(0, 0)) == []
