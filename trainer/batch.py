"""A pack as the tensors that the decoder and the loss read.

`infra.layout` says what stands at every position; here that becomes index lists, so that the model
touches each kind of position once, without branching on a pack's contents.
"""

from collections import abc
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.layout import NO_TARGET, Sequence
from infra.schedules import SCHEDULES
from trainer.config import ModelConfig
from trainer.loss import scale_weights
from trainer.rope import positions_3d
from trainer.vision_inputs import sequence_taps

Label = tuple[str, str]
"""Task and source of a document, by which the log splits losses."""


@dataclass(frozen=True, eq=False)
class PackTensors:
    """One pack of T positions: T_t text-like, T_v vision, T_l with a target."""

    text_index: Tensor  # [T_t] positions of text, <boi>, <eoi>
    text_ids: Tensor  # [T_t]
    vision_index: Tensor  # [T_v]
    tap_codes: Tensor  # [T_v, 16] raw codes, see `vision_inputs`
    tap_weights: Tensor  # [T_v, 16] fp32
    scale: Tensor  # [T_v] scale of the position's grid, 1-based
    length_index: Tensor  # positions that are told K: <boi> and vision
    length: Tensor  # their K
    positions: Tensor  # [T, 3] fp32
    key_start: Tensor  # [T]
    key_end: Tensor  # [T]
    loss_index: Tensor  # [T_l] positions with a target
    targets: Tensor  # [T_l] vocabulary ids
    weights: Tensor  # [T_l] fp32: 1 for text, equation 2 for codes
    loss_scale: Tensor  # [T_l] 0 for text, s for a code of scale s
    loss_document: Tensor  # [T_l] place of its document in the pack
    labels: tuple[Label, ...] = ()  # of the documents, or none

    @property
    def num_tokens(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device) -> "PackTensors":
        tensors: Any = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


def pack_tensors(
    sequence: Sequence, config: ModelConfig, scale_alpha: float, labels: abc.Iterable[Label] = ()
) -> PackTensors:
    """The tensors of one pack, on the CPU; ``scale_alpha`` is equation 2's exponent."""
    tap_codes, tap_weights = sequence_taps(sequence)
    text = np.flatnonzero(sequence.scale == 0)
    vision = np.flatnonzero(sequence.scale)
    length = np.flatnonzero(sequence.num_scales)
    loss = np.flatnonzero(sequence.targets != NO_TARGET)

    def integers(values: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(values.astype(np.int64))

    return PackTensors(
        text_index=integers(text),
        text_ids=integers(sequence.token_ids[text]),
        vision_index=integers(vision),
        tap_codes=integers(tap_codes),
        tap_weights=torch.from_numpy(tap_weights),
        scale=integers(sequence.scale[vision]),
        length_index=integers(length),
        length=integers(sequence.num_scales[length]),
        positions=torch.from_numpy(positions_3d(sequence, config)),
        key_start=integers(sequence.key_start),
        key_end=integers(sequence.key_end),
        loss_index=integers(loss),
        targets=integers(sequence.targets[loss]),
        weights=torch.from_numpy(loss_weights(sequence, scale_alpha)[loss]),
        loss_scale=integers(sequence.loss_scale[loss]),
        loss_document=integers(sequence.document[loss]),
        labels=tuple(labels),
    )


def loss_weights(sequence: Sequence, scale_alpha: float) -> NDArray[np.float32]:
    """[T] weight of every position's cross-entropy: 1 for text, equation 2 for codes, else 0."""
    weights = (sequence.targets != NO_TARGET).astype(np.float32)
    for image in sequence.images:
        if image.loss:
            grids = SCHEDULES[image.schedule].grids[: image.num_scales]
            per_scale = scale_weights(grids, scale_alpha).astype(np.float32)
            codes = slice(image.start, image.stop - 1)  # <boi> predicts the 1 x 1 code
            weights[codes] = per_scale[sequence.loss_scale[codes] - 1]
    return weights
