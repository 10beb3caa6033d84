"""Measures of ranges against the layout of each range laid out alone."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.layout import Image, Segment, Text, Vocabulary, count, layout
from infra.schedules import MAX_SCALES, SCHEDULES
from infra.schema import TOKENS
from packing.measures import Measures, measure, measure_rows

VOCABULARY = Vocabulary(num_codes=64, text_size=100)

texts = st.builds(
    lambda length, loss: Text(np.arange(length, dtype=np.int32), loss),
    st.integers(0, 5),
    st.booleans(),
)


def picture(schedule: int, num_scales: int, role: str, loss: bool) -> Image:
    codes = np.arange(SCHEDULES[schedule].num_codes(num_scales), dtype=np.int32) % 64
    return Image(schedule, num_scales, codes, codes[::-1], role, loss)  # type: ignore[arg-type]


images = st.builds(
    picture,
    st.integers(0, len(SCHEDULES) - 1),
    st.integers(1, 4),
    st.sampled_from(["target", "condition"]),
    st.booleans(),
)
documents = st.lists(st.one_of(texts, images), min_size=1, max_size=7)


def as_row(segment: Segment) -> dict[str, object]:
    """A segment as a table of tokens holds it."""
    if isinstance(segment, Text):
        return {"kind": "text", "loss": segment.loss, "text_ids": segment.ids.tolist()}
    return {
        "kind": "image",
        "role": segment.role,
        "loss": segment.loss,
        "schedule": segment.schedule,
        "num_scales": segment.num_scales,
        "input_codes": segment.input_codes.tolist(),
        "target_codes": segment.target_codes.tolist(),
    }


def column(rows: list[list[Segment] | None]) -> pa.ListArray:
    values = [None if row is None else [as_row(segment) for segment in row] for row in rows]
    return pa.array(values, TOKENS.field("segments").type)


def same(a: Measures, b: Measures) -> bool:
    names = ("num_tokens", "num_loss", "num_pairs", "is_image")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


@settings(max_examples=60, deadline=None)
@given(documents)
def test_every_range_counts_as_its_layout_alone(document: list[Segment]) -> None:
    measures = measure(document)
    for start in range(len(document)):
        for stop in range(start + 1, len(document) + 1):
            part = document[start:stop]
            found = measures.count(np.array([start]), np.array([stop]))[0].tolist()
            assert found == list(count(part))
            if found[0]:  # a pack holds no document without tokens
                sequence = layout([part], VOCABULARY)
                assert found == list(sequence.counts)
                assert found[2] == int(sequence.dense_mask().sum())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), documents), min_size=1, max_size=4))
def test_a_column_measures_as_its_documents(rows: list[list[Segment] | None]) -> None:
    flat = [segment for row in rows for segment in row or []]
    whole = column([None, [Text(np.arange(3, dtype=np.int32))], *rows]).slice(
        2
    )  # offsets do not start at 0
    for segments in (column(rows), whole):
        measures, starts = measure_rows(segments)
        assert same(measures, measure(flat))
        assert starts.tolist() == np.cumsum([0, *(len(row or []) for row in rows)]).tolist()


def test_all_images_of_the_table_are_measured() -> None:
    shapes = [(s, k, r) for s in range(41) for k in range(1, 19) for r in ("target", "condition")]
    rows = [
        {"kind": "image", "role": r, "loss": True, "schedule": s, "num_scales": k}
        for s, k, r in shapes
    ]
    measures, _ = measure_rows(pa.array([rows], TOKENS.field("segments").type))
    assert MAX_SCALES == 18
    for i in range(0, len(shapes), 7):
        schedule, num_scales, role = shapes[i]
        due = count([Text(np.zeros(1, np.int32), False), picture(schedule, num_scales, role, True)])
        alone = measures.num_tokens[i], measures.num_loss[i], measures.num_pairs[i]
        assert alone == (due.num_tokens - 1, due.num_loss, due.num_pairs - due.num_tokens)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("role", value) for value in ("system", None)),
        *(("schedule", value) for value in (41, -1, None)),
        *(("num_scales", value) for value in (0, 19, None)),
    ],
)
def test_images_that_cannot_be_are_refused(name: str, value: object) -> None:
    row = as_row(picture(20, 2, "target", True)) | {name: value}
    with pytest.raises(ValueError, match="there is no such image"):
        measure_rows(pa.array([[row]], TOKENS.field("segments").type))
