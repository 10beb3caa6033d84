"""Documents of clips: the order of their segments, and rows that fail alone."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.schema import CANDIDATE, DOCUMENT_SEGMENT, ERROR_TYPE
from operators.clip_document import ClipDocument
from operators.transitions import TRANSITION

FAILED = {"stage": "caption", "type": "timeout", "message": "earlier"}


def clip(
    num_kept: int, text: str | None, bridges: list[str] | None, error: Any = None
) -> dict[str, Any]:
    candidates = [
        {
            "timestamp_s": 2.0 * number,
            "kept": number % 2 == 0,
            "width": 32 + number,
            "height": 16,
            "cropped": 0.0625,
            "image": f"jpeg {number}".encode() if number % 2 == 0 else None,
        }
        for number in range(2 * num_kept)
    ]
    said = None if bridges is None else [{"text": one, "checks": []} for one in bridges]
    return {"candidates": candidates, "text": text, "transitions": said, "error": error}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema(
        [
            ("doc_id", pa.string()),
            ("sample_id", pa.string()),
            ("text", pa.string()),
            ("transitions", pa.list_(TRANSITION)),
            ("candidates", pa.list_(CANDIDATE)),
            ("error", ERROR_TYPE),
        ]
    )
    named = [row | {"doc_id": f"d{i}", "sample_id": f"s{i}"} for i, row in enumerate(rows)]
    return pa.Table.from_pylist(named, schema=schema)


def shown(segments: list[dict[str, Any]]) -> list[str]:
    return [one["text"] if one["kind"] == "text" else one["image"].decode() for one in segments]


def test_texts_and_frames_take_turns() -> None:
    batch = table(
        [
            clip(3, "A cat.", ["It wakes.", "It leaps."]),
            clip(2, None, ["It wakes."]),
            clip(2, "A cat.", []),
            clip(2, None, None),
            clip(1, "A cat.", []),
            clip(1, "", []),
        ]
    )
    out = ClipDocument()(batch)
    assert out.column_names == [*batch.column_names, "sample_ids", "segments"]
    assert out.schema.field("segments").type == pa.list_(DOCUMENT_SEGMENT)
    assert out["error"].null_count == len(batch)
    assert out["sample_ids"].to_pylist() == [[f"s{i}"] for i in range(len(batch))]
    assert [shown(segments) for segments in out["segments"].to_pylist()] == [
        ["A cat.", "jpeg 0", "It wakes.", "jpeg 2", "It leaps.", "jpeg 4"],
        ["jpeg 0", "It wakes.", "jpeg 2"],
        ["A cat.", "jpeg 0", "jpeg 2"],
        ["jpeg 0", "jpeg 2"],
        ["A cat.", "jpeg 0"],
        ["jpeg 0"],
    ]
    text, image = out["segments"][0].as_py()[:2]
    assert text == dict.fromkeys(text) | {
        "kind": "text",
        "text": "A cat.",
        "loss": True,
        "sample_id": "s0",
    }
    assert image == {
        "kind": "image",
        "text": None,
        "image": b"jpeg 0",
        "width": 32,
        "height": 16,
        "cropped": 0.0625,
        "role": "target",
        "loss": True,
        "sample_id": "s0",
    }


def test_rows_fail_alone() -> None:
    batch = table(
        [
            clip(3, "A cat.", ["It wakes.", ""]),
            clip(0, "A cat.", []),
            clip(3, None, None, FAILED),
            clip(2, "A cat.", ["It wakes."]),
        ]
    )
    out = ClipDocument()(batch)
    assert out["error"].to_pylist() == [
        {"stage": "documents", "type": "no_text", "message": "bridge 2 of 2 is empty"},
        {
            "stage": "documents",
            "type": "too_few_frames",
            "message": "no frame of the clip is kept",
        },
        FAILED,
        None,
    ]
    assert [one is None for one in out["segments"].to_pylist()] == [True, True, True, False]
    assert len(ClipDocument()(batch.slice(0, 0))) == 0


def test_bridges_of_other_frames_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="2 bridges between 2 frames"):
        ClipDocument()(table([clip(2, "A cat.", ["It wakes.", "It leaps."])]))


@pytest.mark.parametrize("seed", range(10))
def test_a_row_does_not_depend_on_its_neighbours(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(8):
        kept = int(rng.integers(0, 5))
        bridges = [f"{number}.{i}" for i in range(kept - 1)] if rng.random() < 0.6 else None
        rows.append(clip(kept, "A cat." if rng.random() < 0.5 else None, bridges))
    batch = table(rows)
    alone = pa.concat_tables([ClipDocument()(batch.slice(i, 1)) for i in range(len(rows))])
    out = ClipDocument()(batch)
    assert out.equals(alone.combine_chunks())
    for row, segments in zip(rows, out["segments"].to_pylist(), strict=True):
        images = [one["image"] for one in segments or () if one["kind"] == "image"]
        assert images == [one["image"] for one in row["candidates"] if one["kept"]]
