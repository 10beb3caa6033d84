"""Run a network over rows in batches of one fixed shape, so that a row's score is its own.

Kernels are chosen by shape: with a varying batch size the last bits of a row's score change with
the number of its neighbours. Here every batch has ``batch_rows`` rows; the last is filled with
zeros.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    them to outputs [batch_rows, ...] on ``device``: neither with TF32 nor with an algorithm that
    sums in varying order. Beside an accelerator, which would wait, rows are prepared ahead by as
    many threads as torch may use here.
    """
    outputs: list[NDArray[np.float32] | None] = [None] * len(rows)
    present = [(i, row) for i, row in enumerate(rows) if row is not None]
    exact = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.inference_mode(), exact, _prepared(present, prepare, device) as prepared:
        for start in range(0, len(present), batch_rows):
            part = present[start : start + batch_rows]
            tensors = [next(prepared) for _ in part]
            batch = torch.empty((batch_rows, *tensors[0].shape), dtype=tensors[0].dtype)
            torch.stack(tensors, out=batch[: len(part)])
            batch[len(part) :] = 0
            scored = forward(batch.to(device)).float().cpu().numpy()
            for (i, _), score in zip(part, scored, strict=False):
                outputs[i] = score
    return outputs


@contextmanager
def _prepared(
    present: Iterable[tuple[int, Row]], prepare: Callable[[Row], Tensor], device: str
) -> Iterator[Iterator[Tensor]]:
    rows = (row for _, row in present)
    if device == "cpu":  # the network takes every core that there is
        yield map(prepare, rows)
        return
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield pool.map(prepare, rows)
