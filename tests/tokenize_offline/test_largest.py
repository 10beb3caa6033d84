import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_offline.largest import largest


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_equals_a_full_stable_sort(width: int, k: int, distinct: int, seed: int) -> None:
    """Few distinct values: ties everywhere, inside blocks, between them and at the k-th place."""
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(-distinct, distinct + 1, (2, 3, width)) / 3.0).float()
    value, place = largest(values, min(k, width))
    expected, order = values.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(value, expected[..., : value.shape[-1]])
    assert torch.equal(place, order[..., : value.shape[-1]])


@pytest.mark.parametrize("k", [1, 3])
def test_zeros_of_both_signs_are_equal(k: int) -> None:
    values = torch.tensor([[-1.0, -0.0, 0.0, -0.0]])
    assert largest(values, k)[1].tolist() == [[1, 2, 3][:k]]


def test_infinities_are_ordered() -> None:
    values = torch.full((1, 70), -torch.inf)
    values[0, 66] = torch.inf
    values[0, 69] = torch.finfo(torch.float32).min
    assert largest(values, 4)[1].tolist() == [[66, 69, 0, 1]]
