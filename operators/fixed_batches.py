"""Run a network over rows in batches of one fixed shape, so that a row's score is its own.

Kernels are chosen by shape: with a varying batch size the last bits of a row's score change with
the number of its neighbours. Here every batch has ``batch_rows`` rows; the last is filled with
zeros.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Row = TypeVar("Row")


def run_fixed(
    rows: Sequence[Row | None],
    prepare: Callable[[Row], Tensor],
    forward: Callable[[Tensor], Tensor],
    batch_rows: int,
    device: str = "cpu",
) -> list[NDArray[np.float32] | None]:
    """One output row per input row; None where the input is None.

    ``prepare`` makes one row's tensor (all of one shape) on the CPU, ``forward`` maps a batch of
    them to outputs [batch_rows, ...] on ``device``, in full fp32: neither TF32 nor an algorithm
    that sums in varying order.
    """
    outputs: list[NDArray[np.float32] | None] = [None] * len(rows)
    present = [(i, row) for i, row in enumerate(rows) if row is not None]
    exact = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.inference_mode(), exact:
        for start in range(0, len(present), batch_rows):
            part = present[start : start + batch_rows]
            tensors = [prepare(row) for _, row in part]
            batch = torch.zeros((batch_rows, *tensors[0].shape), dtype=tensors[0].dtype)
            torch.stack(tensors, out=batch[: len(part)])
            scored = forward(batch.to(device)).float().cpu().numpy()
            for (i, _), score in zip(part, scored, strict=False):
                outputs[i] = score
    return outputs
