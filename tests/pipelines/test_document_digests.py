"""Digests of documents: the same from shards and from tokens, and counts that follow from them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.schedules import SCHEDULES
from infra.schema import TOKENS
from infra.segments import count
from packing.members import Document, decode, encode, from_tokens
from pipelines.document_digests import TOKENIZED, Place, of_pack, of_tokens

BARE = pa.schema([field.remove_metadata() for field in TOKENS])


@st.composite
def segments(draw: Any) -> dict[str, Any]:
    loss = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if draw(st.booleans()):
        ids = rng.integers(0, 100, draw(st.integers(0, 12))).tolist()
        return {"kind": "text", "loss": loss, "text_ids": ids}
    schedule, scales = draw(st.integers(0, 40)), draw(st.integers(1, 4))
    codes = rng.integers(0, 64, (2, SCHEDULES[schedule].num_codes(scales))).tolist()
    return {
        "kind": "image",
        "role": draw(st.sampled_from(("target", "condition"))),
        "loss": loss,
        "schedule": schedule,
        "num_scales": scales,
        "input_codes": codes[0],
        "target_codes": codes[1],
    }


def table_of(documents: list[list[dict[str, Any]]]) -> pa.Table:
    rows = [
        {"doc_id": f"{n:02d}", "task": "t2i", "source": "web", "segments": found, "num_tokens": n}
        for n, found in enumerate(documents)
    ]
    error = {"stage": "codes", "type": "corrupt", "message": "bad"}
    failed = {"doc_id": "x", "task": "t2i", "source": "web", "segments": None, "error": error}
    return pa.Table.from_pylist([failed, *rows], schema=BARE)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(segments(), min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_both_sides_say_the_same_of_every_slice(
    documents: list[list[dict[str, Any]]], data: Any
) -> None:
    tokens = table_of(documents)
    rows = of_tokens(tokens, Place(1, 0, 5), 10)
    assert rows.schema == TOKENIZED
    first, *rest = rows.to_pylist()
    assert (first["failed"], first["forms"], first["token_row"]) == (True, [], 10)
    for row, whole in zip(rest, from_tokens(tokens.slice(1)), strict=True):
        start = data.draw(st.integers(0, len(whole.segments) - 1))
        stop = data.draw(st.integers(start + 1, len(whole.segments)))
        part = Document(whole.doc_id, 0, whole.task, whole.source, whole.segments[start:stop])
        [packed] = of_pack(3, decode(encode([part])))
        for name in ("forms", "inputs", "targets"):
            assert row[name][start:stop] == packed[name]
        # As the joins count a slice.
        lengths, predicted, pairs = (
            np.array(row[name][start:stop]) for name in ("lengths", "predicted", "pairs")
        )
        due = count(part.segments)
        assert lengths.sum() == due.num_tokens
        assert pairs.sum() + (lengths.sum() ** 2 - (lengths**2).sum()) // 2 == due.num_pairs
        begins = predicted[lengths > 0][:1]
        assert predicted.sum() - (begins > 0).sum() == due.num_loss
        assert (packed["pack"], packed["num_tokens"]) == (3, due.num_tokens)


@pytest.mark.parametrize("name", ["text_ids", "input_codes", "target_codes", "loss", "role"])
def test_every_change_shows(name: str) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 64, (2, SCHEDULES[2].num_codes(3))).tolist()
    image: dict[str, Any] = {
        "kind": "image",
        "role": "target",
        "loss": True,
        "schedule": 2,
        "num_scales": 3,
        "input_codes": codes[0],
        "target_codes": codes[1],
    }
    text: dict[str, Any] = {"kind": "text", "loss": True, "text_ids": [1, 2, 3]}
    changed = text if name == "text_ids" else image
    values: dict[str, Any] = {"loss": False, "role": "condition"}
    other = changed | {name: values[name] if name in values else changed[name][::-1]}
    before, after = (
        of_tokens(table_of([[text, one]]), Place(0, 0, 0), 0).to_pylist()[1]
        for one in (changed, other)
    )
    column = {"text_ids": "inputs", "input_codes": "inputs", "target_codes": "targets"}
    differing = [c for c in ("forms", "inputs", "targets") if before[c] != after[c]]
    assert differing == [column.get(name, "forms")]
    shown = column.get(name, "forms")
    assert before[shown][0] == after[shown][0]
