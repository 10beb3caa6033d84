"""Optical flow between two frames: RAFT, or OpenCV's DIS and Farneback as cheap alternatives.

Z. Teed and J. Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow"
(arXiv:2003.12039), as torchvision has it; T. Kroeger et al., "Fast Optical Flow using Dense Inverse
Search" (arXiv:1603.03590); G. Farnebäck, "Two-frame motion estimation based on polynomial
expansion" (SCIA 2003).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.pixels import Pixels
from operators import raft
from operators.fixed_batches import run_fixed

FlowField = NDArray[np.float32]
"""[h, w, 2]: where a pixel of the first frame went, (x right, y down) in pixels."""

METHODS = ("raft_small", "raft_large", "dis", "farneback")
MAX_ASPECT = 4  # as the schedules' (Table 14); longer frames are squeezed to it
_LEAST_SIDE = 128  # of RAFT: a pyramid of four levels over an eighth of the size
_MULTIPLE = 8
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Flow:
    """How flow is computed; ``flow`` does it.

    ``weights`` of RAFT: empty for the carried file, ``torchvision``, or a path, see
    `operators.raft`. ``updates`` is RAFT's number of refinements: time grows with it, and the error
    falls slowly (on frames of real clips 1/8 s apart, against raft_large: 1.02 pixels after 4, 0.78
    after 6, 0.68 after 8, 0.63 after 12, 0.61 after 20).

    Frames are brought to a short side of ``short_side`` pixels, larger or smaller, and a long side
    of the multiple of 8 nearest to their ratio (at most 4:1). RAFT takes frames of one size,
    ``batch_pairs`` pairs at a time, the last batch filled up: a pair's flow does not depend on its
    neighbours. 1 is best for a CPU core; an accelerator wants 16 or more. ``precision`` is RAFT's
    on an accelerator; a CPU computes in fp32.

    Raises ValueError for settings that cannot be, and (from ``identity``) for weights that are not
    there or are another network's.
    """

    version: ClassVar[int] = 1
    not_in_output: ClassVar[tuple[str, ...]] = ("weights",)  # their hash is the identity

    method: Literal["raft_small", "raft_large", "dis", "farneback"] = "raft_small"
    weights: str = ""
    short_side: int = 256
    updates: int = 8
    batch_pairs: int = 1
    device: str = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}: choose {', '.join(METHODS)}")
        if self.short_side % _MULTIPLE or self.short_side < _LEAST_SIDE:
            raise ValueError(
                f"short_side is {self.short_side}: choose a multiple of {_MULTIPLE}, at least "
                f"{_LEAST_SIDE}"
            )
        if self.updates < 1:
            raise ValueError(f"updates is {self.updates}: choose at least 1")
        if self.batch_pairs < 1:
            raise ValueError(f"batch_pairs is {self.batch_pairs}: choose at least 1")
        if self.precision not in _DTYPES:
            raise ValueError(f"precision is {self.precision!r}: choose {', '.join(_DTYPES)}")
        if self.precision != "fp32" and self.device == "cpu":
            raise ValueError(f"precision {self.precision} needs an accelerator: set `device`")
        if not self.is_raft and self.weights:
            raise ValueError(f"method {self.method} takes no `weights`: leave them empty")
        if self.method == "raft_large" and not self.weights:
            raise ValueError(
                f"method raft_large needs `weights`: {raft.DOWNLOAD}, or a path (see "
                "operators/weights/README.md)"
            )

    @property
    def is_raft(self) -> bool:
        return self.method.startswith("raft")

    @property
    def identity(self) -> str:
        """Hash or published name of the weights the flow depends on; "" for those without."""
        return raft.identity(self.method, self.weights) if self.is_raft else ""

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which the flow of a frame of this size is computed."""
        ratio = min(max(height, width) / min(height, width), MAX_ASPECT)
        long = max(round(self.short_side * ratio / _MULTIPLE) * _MULTIPLE, self.short_side)
        return (long, self.short_side) if height > width else (self.short_side, long)

    def resize(self, rgb: Pixels, size: tuple[int, int] | None = None) -> Pixels:
        """The picture [h, w, 3] that the flow speaks of: the frame at its own working size, or at
        another's where it is compared with that; the frame itself if it has the size."""
        height, width = size or self.working_size(*rgb.shape[:2])
        if rgb.shape[:2] == (height, width):
            return rgb
        # The whole picture: cropping to whole pixels would shift it against frames of other sizes.
        reduces = height <= rgb.shape[0] and width <= rgb.shape[1]
        method = cv2.INTER_AREA if reduces else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(rgb, (width, height), interpolation=method), np.uint8)

    def flow(self, pairs: Sequence[tuple[Pixels, Pixels] | None]) -> list[FlowField | None]:
        """The motion from the first frame of each pair to the second, at the working size.

        Frames are [h, w, 3] uint8 RGB of any size; the second is brought to the first's working
        size. None gives None.
        """
        ready: list[tuple[Pixels, Pixels] | None] = []
        for pair in pairs:
            if pair is None:
                ready.append(None)
            else:
                size = self.working_size(*pair[0].shape[:2])
                ready.append((self.resize(pair[0], size), self.resize(pair[1], size)))
        if not self.is_raft:
            compute = _dis() if self.method == "dis" else _farneback
            return [None if pair is None else compute(*map(_grey, pair)) for pair in ready]
        flows: list[FlowField | None] = [None] * len(pairs)
        for shape in dict.fromkeys(pair[0].shape for pair in ready if pair):
            here = [pair if pair and pair[0].shape == shape else None for pair in ready]
            found = run_fixed(here, _as_input, self._estimate, self.batch_pairs, self.device)
            for i, field in enumerate(found):
                flows[i] = flows[i] if field is None else field
        return flows

    def _estimate(self, frames: Tensor) -> Tensor:
        """[n, 2, h, w, 3] uint8 -> [n, h, w, 2]."""
        network = raft.load(self.method, self.weights, self.device)
        first, second = (frames.permute(1, 0, 4, 2, 3).float() / 127.5 - 1.0).contiguous()
        with _lowered(self.precision, self.device):
            fields: list[Tensor] = network(first, second, num_flow_updates=self.updates)
        return fields[-1].permute(0, 2, 3, 1).contiguous()


def _as_input(pair: tuple[Pixels, Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(pair))


def _lowered(precision: str, device: str) -> AbstractContextManager[Any]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, _DTYPES[precision])


def _grey(rgb: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)


def _dis() -> Callable[[Pixels, Pixels], FlowField]:
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def compute(first: Pixels, second: Pixels) -> FlowField:
        # Without a field to start from, it may start from what lies in the memory given.
        start = np.zeros((*first.shape, 2), np.float32)
        return np.asarray(method.calc(first, second, start), np.float32)

    return compute


def _farneback(first: Pixels, second: Pixels) -> FlowField:
    start = np.zeros((*first.shape, 2), np.float32)
    field = cv2.calcOpticalFlowFarneback(first, second, start, 0.5, 5, 15, 3, 5, 1.2, 0)
    return np.asarray(field, np.float32)
