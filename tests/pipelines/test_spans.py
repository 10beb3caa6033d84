"""Times are read as they are written; keys of clips are distinct and stable."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.spans import clip_key, fragment, seconds, span_of


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (12, 12.0),
        (12.5, 12.5),
        ("12.5", 12.5),
        (" 7 ", 7.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1:02", 62.0),
        ("0:00:12.500", 12.5),
        ("01:02:03.004", 3723.004),
        ("100:00:00", 360_000.0),
        (0, 0.0),
        (None, None),
        ("", None),
    ],
)
def test_times(written: object, meant: float | None) -> None:
    assert seconds(written) == meant


@pytest.mark.parametrize(
    "written",
    ["soon", "-1", -1, -0.001, True, [], "1:2:3:4", "1:", "nan", float("nan"), float("inf"), "1e3"],
)
def test_what_is_no_time(written: object) -> None:
    with pytest.raises(ValueError, match="no time"):
        seconds(written)


@pytest.mark.parametrize(
    "row",
    [
        {"start": 12.5, "end": "0:18"},
        {"t": [12.5, 18]},
        {"t": (12.5, "18")},
        {"t": "[12.5, 18.0]"},
        {"t": "['0:00:12.500', '0:00:18.000']"},
    ],
)
def test_spans(row: dict[str, object]) -> None:
    columns = ("t", "t") if "t" in row else ("start", "end")
    assert span_of(row, *columns) == (12.5, 18.0)


def test_a_span_may_be_open() -> None:
    assert span_of({}, "start", "end") == (None, None)
    assert span_of({"end": 3}, "start", "end") == (None, 3.0)
    assert span_of({"start": 3, "end": None}, "start", "end") == (3.0, None)


@pytest.mark.parametrize(
    "row",
    [
        {"start": 3, "end": 3},
        {"start": 3, "end": 2},
        {"end": 0},
        {"start": "x"},
        {"t": [1]},
        {"t": [1, 2, 3]},
        {"t": 5},
        {"t": "1 to 2"},
        {"t": [2, 1]},
    ],
)
def test_what_is_no_span(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"span|time"):
        span_of(row, *(("t", "t") if "t" in row else ("start", "end")))


def test_keys() -> None:
    assert clip_key("a.mp4") == "a.mp4"
    assert clip_key("a.mp4", 0, 12, 18.5) == "a.mp4#t=12.000,18.500"
    assert clip_key("a.mp4", 1) == "a.mp4#track=1"
    assert clip_key("a.mp4", 2, None, 4) == "a.mp4#track=2&t=0.000,4.000"
    assert clip_key("t.csv#7", 0, 3, None) == "t.csv#7&t=3.000"
    assert fragment(0, None, None) == ""


SPANS = st.tuples(st.integers(0, 3), st.integers(0, 10**7), st.integers(1, 10**6))


@given(st.sets(SPANS, min_size=2))
def test_other_spans_and_streams_have_other_keys(spans: set[tuple[int, int, int]]) -> None:
    keys = [clip_key("a", n, start / 1000, (start + ms) / 1000) for n, start, ms in sorted(spans)]
    assert len(set(keys)) == len(spans)


@given(st.lists(st.floats(0, 1e6), min_size=2, unique_by=lambda s: round(s * 1000)))
def test_neighbouring_clips_have_other_keys(borders: list[float]) -> None:
    keys = [clip_key("a", 0, *span) for span in pairwise(sorted(borders))]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "value", [10**400, "9" * 400, "9" * 400 + ":00:00", "1:75", "0:00:99", "1:60:00", -1, math.nan]
)
def test_what_no_video_lasts(value: object) -> None:
    with pytest.raises(ValueError, match="is no time"):
        seconds(value)


def test_an_empty_cell_of_both_ends_is_the_whole_video() -> None:
    assert span_of({"t": ""}, "t", "t") == span_of({"t": None}, "t", "t") == (None, None)
    with pytest.raises(ValueError, match="no span"):
        span_of({"t": b"ab"}, "t", "t")
