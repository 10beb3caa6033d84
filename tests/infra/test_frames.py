"""Frames survive the way into Arrow and back, whatever a clip lacks."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from infra.frames import Frame, frames_of, to_frames
from infra.schema import ERROR_TYPE, FRAME_TYPE

DAMAGED = {"stage": "load", "type": "missing", "message": "a.jpg: missing"}


@st.composite
def frames(draw):
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    picture = rng.integers(0, 255, (draw(st.integers(1, 4)), draw(st.integers(1, 5)), 3), np.uint8)
    small = picture[:1]
    return draw(
        st.sampled_from(
            [
                Frame(1.5, picture),
                Frame(2.0, picture, 2.125, small),
                Frame(None, picture),
                Frame(None, None, error=DAMAGED),
            ]
        )
    )


def same(a, b):
    return (a is None) == (b is None) and (a is None or np.array_equal(a, b))


@given(st.lists(st.none() | st.lists(frames(), max_size=4), max_size=5), st.integers(1, 3))
def test_there_and_back(clips, cut):
    column = to_frames(clips)
    assert column.type == pa.list_(FRAME_TYPE)
    # A batch is a slice of a table of several chunks.
    chunked = pa.chunked_array([column[:cut], column[cut:]], column.type)
    errors = pa.nulls(len(clips), ERROR_TYPE)
    for found, clip in zip(
        frames_of(pa.table({"frames": chunked, "error": errors})), clips, strict=True
    ):
        assert (found is None) == (clip is None)
        for one, other in zip(found or (), clip or (), strict=True):
            assert same(one.rgb, other.rgb)
            assert same(one.partner, other.partner)
            assert one.timestamp_s == other.timestamp_s
            assert (one.partner_s, one.error) == (other.partner_s, other.error)


def test_a_failed_row_has_no_frames():
    rows = to_frames([[Frame(0.0, np.zeros((2, 2, 3), np.uint8))]] * 2)
    errors = pa.array([None, DAMAGED], ERROR_TYPE)
    found = frames_of(pa.table({"frames": rows, "error": errors}))
    assert found[0] is not None
    assert found[1] is None
