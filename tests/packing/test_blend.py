"""Blending: quotas held after every document, the same for any cut, nothing lost."""

import math
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.blend import Component, blend, quotas

SHARES = st.floats(0.01, 10)
mixtures = st.lists(
    st.tuples(SHARES, st.lists(st.integers(1, 200), max_size=40)), min_size=1, max_size=5
)


def stream(component: int, tokens: list[int], cuts: list[int]) -> Iterator[pa.Table]:
    """Documents of these tokens in tables that end at ``cuts``; some are empty."""
    rows = pa.table(
        {
            "component": pa.array([component] * len(tokens), pa.int16()),
            "place": pa.array(range(len(tokens)), pa.int64()),
            "num_tokens": pa.array(tokens, pa.int64()),
        }
    )
    ends = sorted(min(cut, len(tokens)) for cut in cuts)
    for start, stop in zip([0, *ends], [*ends, len(tokens)], strict=True):
        yield rows.slice(start, stop - start)


def merged(
    parts: list[tuple[float, list[int]]], cuts: list[list[int]]
) -> list[tuple[int, int, int]]:
    streams = [stream(i, of, cuts[i]) for i, (_, of) in enumerate(parts)]
    tables = list(blend(streams, [share for share, _ in parts]))
    assert all(len(table) for table in tables)
    return [
        tuple(row.values())  # type: ignore[misc]
        for table in tables
        for row in table.to_pylist()
    ]


@settings(max_examples=150, deadline=None)
@given(mixtures, st.data())
def test_quotas_hold_after_every_document(
    parts: list[tuple[float, list[int]]], data: st.DataObject
) -> None:
    cut = st.lists(st.integers(0, 40), max_size=6)
    rows = merged(parts, [data.draw(cut) for _ in parts])
    assert rows == merged(parts, [[]] * len(parts))
    assert sorted(rows) == [(i, p, n) for i, (_, of) in enumerate(parts) for p, n in enumerate(of)]

    shares = [share / math.fsum(share for share, _ in parts) for share, _ in parts]
    longest = [max(of, default=0) for _, of in parts]
    taken, places = [0] * len(parts), [0] * len(parts)
    for component, place, tokens in rows:
        assert place == places[component]  # the order of a stream stays
        places[component] += 1
        taken[component] += tokens
        if any(places[i] == len(of) for i, (_, of) in enumerate(parts)):
            break  # a stream has ended: the others go on without it
        for i, share in enumerate(shares):
            slack = longest[i] / 2 + share * sum(longest) / 2
            assert abs(taken[i] - share * sum(taken)) <= slack + 1e-6


def test_the_merge_is_that_of_virtual_times() -> None:
    draw = np.random.default_rng(0)
    # Shares by which division is exact: equal times are equal in floating point too.
    parts = [(share, draw.integers(1, 50, 300).tolist()) for share in (0.5, 0.25, 0.125)]
    times = []
    for i, (share, of) in enumerate(parts):
        ends = np.cumsum(of)
        times += [
            (Fraction(int(2 * end - n)) / Fraction(share), i, place, n)
            for place, (end, n) in enumerate(zip(ends, of, strict=True))
        ]
    assert merged(parts, [[7, 100], [150], [1, 2, 3]]) == [row[1:] for row in sorted(times)]


def test_memory_does_not_grow_with_the_streams() -> None:
    def endless(component: int, tables: int) -> Iterator[pa.Table]:
        draw = np.random.default_rng(component)
        for _ in range(tables):
            yield pa.table({"num_tokens": draw.integers(1, 5_000, 4_096)})

    def peak(tables: int) -> int:
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        arrow = 0
        for _ in blend([endless(i, tables) for i in range(3)], [0.6, 0.39, 0.01]):
            arrow = max(arrow, pa.total_allocated_bytes() - before)
        _, python = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return arrow + python

    assert peak(80) < 1.5 * peak(20)


def test_quotas_are_shares_of_what_is_asked_for() -> None:
    parts = [Component("text", 3.0), Component("pictures", 1.0)]
    assert quotas(parts, [900, 500], 400) == [300, 100]
    assert quotas(parts, [900, 500], None) == [900, 300]
    assert quotas([Component("text", 0.1, max_epochs=3)], [70], None) == [210]
    assert quotas([Component("text", 0.1)], [70], None) == [70]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(SHARES, st.integers(1, 10**15), st.integers(1, 4)), min_size=1, max_size=6)
)
def test_the_most_that_shares_and_epochs_allow(rows: list[tuple[float, int, int]]) -> None:
    parts = [Component(f"c{i}", share, epochs) for i, (share, _, epochs) in enumerate(rows)]
    tokens = [n for _, n, _ in rows]
    found = quotas(parts, tokens, None)
    most = [n * part.max_epochs for n, part in zip(tokens, parts, strict=True)]
    assert all(n <= limit for n, limit in zip(found, most, strict=True))
    assert any(n == limit for n, limit in zip(found, most, strict=True))
    total = math.fsum(part.share for part in parts)
    for n, part in zip(found, parts, strict=True):
        assert abs(n - part.share / total * sum(found)) <= len(parts) + 1e-9 * sum(found)


def test_mistakes_name_the_component() -> None:
    parts = [Component("text", 1.0), Component("pictures", 1.0, max_epochs=2)]
    with pytest.raises(ValueError, match="component pictures holds 100 tokens, its share is 250"):
        quotas(parts, [1_000, 100], 500)
    with pytest.raises(ValueError, match="component pictures holds no tokens"):
        quotas(parts, [1_000, 0], None)
    with pytest.raises(ValueError, match="text: share is 0"):
        Component("text", 0.0)
    with pytest.raises(ValueError, match="text: share is nan"):
        Component("text", math.nan)
    with pytest.raises(ValueError, match="text: max_epochs is 0"):
        Component("text", 1.0, 0)
