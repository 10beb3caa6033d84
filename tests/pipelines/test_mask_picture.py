"""The picture of a mask: every cell is the exact share of its pairs, whatever the length."""

import base64
import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from infra.layout import Image, Text, Vocabulary, layout
from infra.schedules import SCHEDULES
from pipelines.mask_picture import INK, Mask, visible_shares

VOCABULARY = Vocabulary(64, 100)


def image(schedule: int, num_scales: int, role: str) -> Image:
    codes = np.zeros(SCHEDULES[schedule].num_codes(num_scales), np.int32)
    return Image(schedule, num_scales, codes, codes, role)


SEGMENTS = st.one_of(
    st.integers(1, 40).map(lambda n: Text(np.zeros(n, np.int32))),
    st.builds(
        image, st.integers(0, 40), st.integers(1, 5), st.sampled_from(("target", "condition"))
    ),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(SEGMENTS, min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_cells_are_means_of_the_dense_mask(documents, data):
    sequence = layout(documents, VOCABULARY)
    length = sequence.num_tokens
    mask = visible_shares(sequence, data.draw(st.integers(1, length + 3)))
    dense = sequence.dense_mask()
    edges = [*range(0, length, mask.cell), length]
    for i, (top, bottom) in enumerate(itertools.pairwise(edges)):
        for j, (left, right) in enumerate(itertools.pairwise(edges)):
            share = dense[top:bottom, left:right].mean()
            assert mask.shares[i, j] == pytest.approx(share, abs=1e-12)
    sizes = np.diff(edges)
    pairs = (mask.shares * sizes[:, None] * sizes).sum()
    assert pairs == pytest.approx(sequence.counts.num_pairs)
    assert len(edges) - 1 == -(-length // mask.cell)
    assert mask.side == length / mask.cell


def test_the_png_is_as_opaque_as_the_shares_and_hides_nothing():
    sequence = layout([[Text(np.zeros(1000, np.int32))]], VOCABULARY)
    mask = visible_shares(sequence, 10)
    data = base64.b64decode(mask.uri().removeprefix("data:image/png;base64,"))
    picture = np.asarray(Picture.open(io.BytesIO(data)))
    assert picture.shape == (10, 10, 4)
    assert (picture[..., :3] == INK).all()
    alpha = picture[..., 3]
    assert (alpha[np.triu_indices(10, 1)] == 0).all()
    assert (alpha[np.tril_indices(10, -1)] == 255).all()
    assert set(np.diag(alpha).tolist()) == {129}  # 5050 of 10000 pairs
    # A cell of which hardly a pair is seen stays visible.
    faint = Mask(20, 10, np.array([[1e-4, 0.0], [0.0, 1.0]]))
    data = base64.b64decode(faint.uri().removeprefix("data:image/png;base64,"))
    assert np.asarray(Picture.open(io.BytesIO(data)))[..., 3].tolist() == [[12, 0], [0, 255]]


def test_no_positions_have_no_mask():
    with pytest.raises(ValueError, match="no mask"):
        visible_shares(layout([], VOCABULARY))
