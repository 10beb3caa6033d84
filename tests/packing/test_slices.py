"""Slices against brute force: every way to cut, and every slice laid out alone."""

import io
from collections import Counter
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.layout import NO_TARGET, Image, Segment, Text, count, layout
from infra.schema import TOKENS, uniform
from packing.cost import Coefficients, cost
from packing.members import from_tokens
from packing.slices import (
    COLUMNS,
    COUNTS,
    SLICES,
    Slice,
    Slicing,
    cut,
    dropped,
    slices_of,
    without_caption,
)
from tests.packing.test_measures import VOCABULARY, as_row, documents, picture

COST = Coefficients(per_token=1.0, per_pair=0.25, per_loss=0.5)
NONE, ALL = Slicing(drop_captions=0.0), Slicing(drop_captions=1.0)


def words(length: int, loss: bool = False) -> Text:
    return Text(np.arange(length, dtype=np.int32), loss)


def table(rows: list[tuple[str, list[Segment] | None]]) -> pa.Table:
    """A table of tokens: task and segments of each row."""
    return pa.Table.from_pylist(
        [
            {"doc_id": f"{i:032x}", "task": task, "source": "here"}
            | ({} if part is None else {"segments": [as_row(segment) for segment in part]})
            | ({} if part is None else count(part)._asdict())
            for i, (task, part) in enumerate(rows)
        ],
        schema=TOKENS,
    )


def light(tokens: pa.Table) -> pa.Table:
    """What a reader of `COLUMNS` alone gets of it."""
    file = io.BytesIO()
    pq.write_table(tokens, file)
    return pq.ParquetFile(file).read(columns=COLUMNS)


def fits(part: list[Segment], cap: int, budget: float) -> bool:
    counts = count(part)
    return counts.num_tokens <= cap and float(cost(*counts, COST)) <= budget


def ways(document: list[Segment]) -> list[list[list[Segment]]]:
    """Every way to cut a document behind images."""
    inner = [i for i in range(1, len(document)) if isinstance(document[i - 1], Image)]
    return [
        [document[a:b] for a, b in zip([0, *places], [*places, len(document)], strict=True)]
        for n in range(len(inner) + 1)
        for places in combinations(inner, n)
    ]


def greedy(document: list[Segment], cap: int, budget: float) -> int | None:
    """The number of pieces if each is as long as it can be."""
    finest = max(ways(document), key=len)
    pieces: list[list[Segment]] = []
    for unit in finest:
        if pieces and fits(pieces[-1] + unit, cap, budget):
            pieces[-1] = pieces[-1] + unit
        elif fits(unit, cap, budget):
            pieces.append(unit)
        else:
            return None
    return len(pieces)


limits = st.tuples(st.integers(5, 120), st.sampled_from([30.0, 200.0, 1e9]))


@settings(max_examples=150, deadline=None)
@given(documents.filter(lambda d: count(d).num_tokens > 0), limits)
def test_a_cut_has_as_few_pieces_as_can_be(
    document: list[Segment], limit: tuple[int, float]
) -> None:
    fitting = [way for way in ways(document) if all(fits(part, *limit) for part in way)]
    found = cut(document, *limit, COST)
    if not fitting:
        assert found is None
        assert greedy(document, *limit) is None
        return
    assert found is not None
    pieces = [document[s.first_segment :][: s.num_segments] for s in found]
    assert [segment for piece in pieces for segment in piece] == document
    assert [s.counts for s in found] == [count(piece) for piece in pieces]
    best = min(
        (len(way), sum(count(part).num_loss == 0 for part in way), [-len(part) for part in way])
        for way in fitting
    )
    lost = sum(s.counts.num_loss == 0 for s in found)
    assert (len(found), lost, [-s.num_segments for s in found]) == best
    assert len(found) == greedy(document, *limit)  # cost grows with length


def test_an_end_of_text_does_not_become_a_piece_where_it_can_be_helped() -> None:
    image, end = picture(20, 2, "target", True), words(1, loss=True)
    document: list[Segment] = [image, image, end]
    cap = count([image, image]).num_tokens
    found = cut(document, cap, np.inf, COST)
    assert found is not None
    assert [s.num_segments for s in found] == [1, 2]
    [first, last] = cut([image, end], count([image]).num_tokens, np.inf, COST) or ()
    assert last == Slice(1, 1, count([words(1)]))
    assert last.counts.num_loss == 0
    assert first.counts == count([image])


@settings(max_examples=80, deadline=None)
@given(documents)
def test_a_dropped_caption_is_the_text_before_a_predicted_image(document: list[Segment]) -> None:
    at = next((i for i, s in enumerate(document) if isinstance(s, Image)), 0)
    image = document[at]
    found = without_caption(document)
    if at == 0 or not (isinstance(image, Image) and image.has_loss):
        assert found is None
        return
    rest = document[at:]
    assert found == Slice(at, len(rest), count(rest))
    sequence = layout([rest], VOCABULARY)
    assert found.counts == sequence.counts
    assert found.counts.num_pairs == int(sequence.dense_mask().sum())


def test_text_at_the_start_of_a_slice_has_no_predictor() -> None:
    image = picture(20, 2, "target", True)
    document: list[Segment] = [words(2), image, words(3, loss=True), image]
    found = cut(document, count(document[2:]).num_tokens, np.inf, COST)
    assert found is not None
    assert found[1] == Slice(2, 2, count(document[2:]))
    sequence = layout([document[2:]], VOCABULARY)
    predicted = int((sequence.targets != NO_TARGET).sum())
    assert found[1].counts.num_loss == predicted == 2 + image.num_codes + 1
    assert sequence.targets[:2].tolist() == [1, 2]  # nothing predicts the id 0


tasks = st.sampled_from(["t2i", "interleaved", "edit"])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(tasks, documents, st.integers(0, 3)), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
    limits,
    st.integers(0, 5),
)
def test_a_table_is_sliced_as_its_documents(
    rows: list[tuple[str, list[Segment], int]],
    share: float,
    split: bool,
    limit: tuple[int, float],
    first: int,
) -> None:
    slicing = Slicing(drop_captions=share, split_at_images=split, seed=3)
    tokens = table([(task, document) for task, document, _ in rows])
    copies = [n for _, _, n in rows]
    found = slices_of(light(tokens), copies, slicing, *limit, COST, first_copy=first)
    assert found.schema == SLICES
    due = []
    for i, (task, document, times) in enumerate(rows):
        for copy in range(first, first + times):
            whole = Slice(0, len(document), count(document))
            id_ = f"{i:032x}" + (f"/{copy}" if copy else "")
            if task == "t2i" and uniform(id_, 3) < share:
                whole = without_caption(document) or whole
            rest, reason, pieces = document[whole.first_segment :], None, None
            if not fits(rest, *limit):
                over_cap = whole.counts.num_tokens > limit[0]
                reason = "over_token_cap" if over_cap else "over_budget"
                pieces = cut(rest, *limit, COST) if split else None
            here = (
                [(whole, reason)]
                if pieces is None
                else [
                    (Slice(whole.first_segment + s.first_segment, s.num_segments, s.counts), None)
                    for s in pieces
                ]
            )
            for piece, (s, why) in enumerate(here):
                place = (s.first_segment, s.num_segments)
                due.append((i, copy, piece, *place, *s.counts, why))
    assert [tuple(row.values()) for row in found.to_pylist()] == due


@settings(max_examples=30, deadline=None)
@given(st.lists(documents, min_size=1, max_size=4))
def test_codes_and_ids_of_a_slice_are_those_of_the_row(rows: list[list[Segment]]) -> None:
    tokens = table([("t2i", document) for document in rows])
    slicing = Slicing(drop_captions=0.5, split_at_images=True)
    found = slices_of(light(tokens), 2, slicing, 60, np.inf, COST)
    taken = tokens.take(found["row"])
    names = ("copy", "first_segment", "num_segments")
    places = [found[name].to_pylist() for name in names]
    for document, row in zip(from_tokens(taken, *places), found.to_pylist(), strict=True):
        assert (document.copy, document.first_segment) == (row["copy"], row["first_segment"])
        due = rows[row["row"]][row["first_segment"] :][: row["num_segments"]]
        assert [as_row(s) for s in document.segments] == [as_row(s) for s in due]
        assert count(document.segments) == tuple(row[name] for name in COUNTS)


def test_copies_are_drawn_each_on_its_own() -> None:
    document: list[Segment] = [words(4), picture(20, 2, "target", True), words(1, True)]
    tokens = light(table([("t2i", document)] * 200))
    found = slices_of(tokens, 10, Slicing(seed=7), 10**6, np.inf, COST)
    lost = Counter(row["row"] for row in found.to_pylist() if row["first_segment"])
    assert 130 < lost.total() < 270  # 200 of 2,000 with a standard deviation of 13
    assert max(lost.values()) < 10
    later = slices_of(tokens, 4, Slicing(seed=7), 10**6, np.inf, COST, first_copy=6)
    assert later.to_pylist() == [row for row in found.to_pylist() if row["copy"] >= 6]
    other = slices_of(tokens, 10, Slicing(seed=8), 10**6, np.inf, COST)
    assert not other.equals(found)
    assert dropped("a", 0, ALL)
    assert not dropped("a", 0, NONE)


def test_rows_that_stay_whole_are_not_looked_into() -> None:
    """Their segments may even be wrong: only their number counts. Those of others may not be."""
    document: list[Segment] = [words(4), picture(20, 2, "target", True)]
    tokens = table([("t2i", document), ("text", [words(9)])])
    place = tokens.schema.get_field_index("num_loss")
    wrong = tokens.set_column(place, TOKENS.field(place), pa.array([2, 2], pa.int32()))
    assert slices_of(wrong, 1, NONE, 10**6, np.inf, COST)["num_segments"].to_pylist() == [2, 1]
    with pytest.raises(ValueError, match=rf"{0:032x}: its segments have \[.*\] tokens.*says"):
        slices_of(wrong, 1, ALL, 10**6, np.inf, COST)
    with pytest.raises(ValueError, match="its segments have"):
        slices_of(wrong, [0, 1], ALL, 8, np.inf, COST)


def test_rows_that_failed_and_empty_tables() -> None:
    tokens = light(table([("t2i", None), ("text", [words(3)])]))
    assert slices_of(tokens, [0, 2], ALL, 10, np.inf, COST)["row"].to_pylist() == [1, 1]
    with pytest.raises(ValueError, match="has no segments"):
        slices_of(tokens, 1, ALL, 10, np.inf, COST)
    empty = slices_of(tokens.slice(0, 0), 1, ALL, 10, np.inf, COST)
    assert (len(empty), empty.schema) == (0, SLICES)


def test_how_a_table_is_cut_into_chunks_does_not_matter() -> None:
    document: list[Segment] = [words(4), picture(20, 3, "target", True), words(2, True)] * 3
    tokens = light(table([("t2i", document), ("text", [words(5)]), ("interleaved", document)]))
    chunks = pa.concat_tables([tokens.slice(0, 1), tokens.slice(1)])
    arguments = 2, Slicing(drop_captions=0.5, split_at_images=True), 60, np.inf, COST
    assert slices_of(chunks, *arguments).equals(slices_of(tokens, *arguments))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"drop_captions is {share}: use a share from 0 to 1"):
        Slicing(drop_captions=share)
