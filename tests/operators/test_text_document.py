"""Texts and chats become documents; loss stands where it is asked for."""

import json
from typing import Any, Literal

import pyarrow as pa
import pytest

from infra.schema import DOCUMENTS, ERROR_TYPE
from operators.text_document import TextDocument

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi.\n<|im_end|>"},
    {"role": "user", "content": "And?"},
]


def batch(samples: list[Any], errors: dict[int, Any] | None = None) -> pa.Table:
    rows = len(samples)
    data = [s if s is None or isinstance(s, bytes) else json.dumps(s).encode() for s in samples]
    return pa.table(
        {
            "doc_id": pa.array([f"d{i}" for i in range(rows)], pa.string()),
            "sample_id": pa.array([f"s{i}" for i in range(rows)], pa.string()),
            "source": pa.array(["texts"] * rows, pa.string()),
            "bytes": pa.array(data, pa.large_binary()),
            "error": pa.array([(errors or {}).get(i) for i in range(rows)], ERROR_TYPE),
        }
    )


def test_a_plain_text_is_one_segment_with_loss() -> None:
    for loss_on in ("all", "responses"):
        [row] = TextDocument(loss_on)(batch([{"text": "  A text.\n"}])).to_pylist()
        assert (row["task"], row["sample_ids"], row["error"]) == ("text", ["s0"], None)
        [segment] = row["segments"]
        assert (segment["kind"], segment["text"]) == ("text", "  A text.\n")
        assert (segment["role"], segment["loss"], segment["sample_id"]) == (None, True, "s0")


@pytest.mark.parametrize(
    ("loss_on", "losses"),
    [("all", [True] * 4), ("responses", [False, False, True, False])],
)
def test_a_chat_is_a_segment_per_message(
    loss_on: Literal["all", "responses"], losses: list[bool]
) -> None:
    [row] = TextDocument(loss_on)(batch([{"messages": CHAT}])).to_pylist()
    segments = row["segments"]
    assert [{"role": s["role"], "content": s["text"]} for s in segments] == CHAT
    assert [s["loss"] for s in segments] == losses
    assert {s["sample_id"] for s in segments} == {"s0"}


def test_bad_rows_fail_and_failed_rows_stay() -> None:
    before = {"stage": "load", "type": "missing", "message": "m"}
    silent = {"messages": [*CHAT[:2], {"role": "assistant", "content": " "}]}
    samples = [b"{", silent, {"text": "fine"}, None]
    rows = TextDocument("responses")(batch(samples, {3: before})).to_pylist()
    assert [row["error"] and row["error"]["type"] for row in rows] == [
        "bad_json",
        "no_response",
        None,
        "missing",
    ]
    assert [row["segments"] is None for row in rows] == [True, True, False, True]
    assert [row["sample_ids"] for row in rows] == [["s0"], ["s1"], ["s2"], ["s3"]]
    # Where all messages count, one without an answer is a document, too.
    assert TextDocument("all")(batch([silent])).to_pylist()[0]["error"] is None


def test_an_empty_batch_gives_the_columns() -> None:
    made = TextDocument()(batch([]))
    assert len(made) == 0
    stored = {field.name: field.type for field in DOCUMENTS}
    assert all(made.schema.field(f.name).type == stored[f.name] for f in TextDocument.writes)


def test_a_task_that_the_input_names_stands_once() -> None:
    given = batch([{"text": "a"}]).append_column("task", pa.array(["text"]))
    made = TextDocument()(given)
    assert made.column_names.count("task") == 1
    assert made["task"].to_pylist() == ["text"]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="loss_on is 'none': choose all or responses"):
        TextDocument("none")  # type: ignore[arg-type]
