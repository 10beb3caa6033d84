"""Rows in, rows out, in the same order, in batches of one shape."""

import numpy as np
import pytest
import torch
from torch import Tensor

from operators.fixed_batches import run_fixed


def test_rows_keep_their_place_and_batches_their_shape() -> None:
    shapes = []

    def forward(batch: Tensor) -> Tensor:
        shapes.append(tuple(batch.shape))
        assert not batch.requires_grad
        return batch * 2

    rows = [1.0, None, 2.0, 3.0, None, 4.0, 5.0]
    outputs = run_fixed(rows, lambda row: torch.full((3,), row), forward, batch_rows=2)
    assert shapes == [(2, 3)] * 3
    assert [None if o is None else o.tolist() for o in outputs] == [
        None if row is None else [2 * row] * 3 for row in rows
    ]


def test_no_rows_no_work() -> None:
    def forward(batch: Tensor) -> Tensor:
        raise AssertionError("there is nothing to do")

    assert run_fixed([], torch.zeros, forward, 4) == []
    assert run_fixed([None, None], torch.zeros, forward, 4) == [None, None]


def test_outputs_do_not_depend_on_neighbours() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.Flatten(), torch.nn.Linear(16 * 30 * 30, 5)
    )
    pictures = [torch.randn(3, 32, 32) for _ in range(11)]
    together = run_fixed(pictures, lambda picture: picture, network, 4)
    for picture, output in zip(pictures, together, strict=True):
        (alone,) = run_fixed([picture], lambda picture: picture, network, 4)
        assert alone is not None
        assert output is not None
        np.testing.assert_array_equal(alone, output)


def test_rows_prepared_ahead_are_the_same() -> None:
    rows = [float(i) for i in range(7)]

    def run(device: str) -> list[list[float]]:
        outputs = run_fixed(rows, lambda row: torch.full((2,), row), lambda x: x + 1, 3, device)
        return [output.tolist() for output in outputs if output is not None]

    # "cpu:0" is the CPU under a name that is treated as an accelerator's
    assert run("cpu:0") == run("cpu") == [[row + 1] * 2 for row in rows]


def test_what_prepare_raises_is_raised() -> None:
    def prepare(row: float) -> Tensor:
        raise ValueError("a bug")

    for device in ("cpu", "cpu:0"):
        with pytest.raises(ValueError, match="a bug"):
            run_fixed([1.0], prepare, lambda x: x, 2, device)
