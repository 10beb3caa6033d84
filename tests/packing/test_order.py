"""The seeded order: of ids, copies, pieces and seed alone, and fair."""

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing import order
from packing.order import check_unique, id_hashes, order_keys

rows = st.lists(
    st.tuples(
        st.text(max_size=40).filter(lambda name: "\0" not in name),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(-(2**63), 2**63 - 1), st.randoms(use_true_random=False))
def test_a_key_is_of_its_row_alone(
    given_: list[tuple[str, int, int]], seed: int, draw: random.Random
) -> None:
    def keys(of: list[tuple[str, int, int]]) -> dict[tuple[str, int, int], int]:
        names, copies, pieces = ([row[i] for row in of] for i in range(3))
        found = order_keys(names, copies, pieces, seed)
        assert found.dtype == np.uint64
        assert np.array_equal(order_keys(pa.array(names, pa.string()), copies, pieces, seed), found)
        return dict(zip(of, found.tolist(), strict=True))

    whole = keys(given_)
    assert keys(draw.sample(given_, len(given_))) == whole
    for row in given_:
        assert keys([row])[row] == whole[row]
    assert len(set(whole.values())) == len(whole)  # of so few, none are equal by chance


def test_ids_are_hashed_in_slices_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a" * (i % 23) + str(i) for i in range(100)]
    whole = id_hashes(names, 5)
    chunked = pa.chunked_array([names[:13], names[13:]], pa.string())
    monkeypatch.setattr(order, "_SLICE", 7)
    assert np.array_equal(id_hashes(names, 5), whole)
    assert np.array_equal(id_hashes(chunked, 5), whole)


def test_keys_stay_what_they_are() -> None:
    # Packs made before stay up to date only while these do.
    found = order_keys(["a", "b" * 32, "ü"], [0, 1, 2], [0, 0, 0], 3)
    assert found.tolist() == [11365220231941867557, 7077944468533136616, 3706132556164941060]


def test_copies_and_pieces_are_ordered_each_on_its_own() -> None:
    copies, pieces = (grid.ravel() for grid in np.meshgrid(np.arange(200), np.arange(200)))
    keys = order_keys(["x"] * len(copies), copies, pieces, 0)
    assert len(np.unique(keys)) == len(keys)
    place = np.argsort(np.argsort(keys))
    for numbers in (copies, pieces):
        assert abs(np.corrcoef(place, numbers)[0, 1]) < 4 / np.sqrt(len(keys))


def test_a_repeated_id_is_named() -> None:
    names = ["a", "b", "c", "b"]
    with pytest.raises(ValueError, match="document b is given more than once"):
        check_unique(names, id_hashes(names, 0))
    check_unique(names[:3], id_hashes(names[:3], 0))
