"""Multi-scale 3D rotary positions (paper section 2.2, equation 1, figure 5).

Text-like tokens at t stand at (t, t, t); the cell (i, j) of an H x W grid at scale s stands at
(s, C (i + 0.5) / sqrt(HW), C (j + 0.5) / sqrt(HW)). The three axes take the place of (time, height,
width) in Qwen2.5-VL's M-RoPE: each rotates its own section of every head's frequencies.
Positions and angles are fp32 whatever the model's type: bf16 cannot tell position 257 from 256.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.layout import Sequence
from infra.schedules import SCHEDULES
from trainer.config import ModelConfig


def positions_3d(sequence: Sequence, config: ModelConfig) -> NDArray[np.float32]:
    """[T, 3] positions (t, t, t) or (s, y, x), as the config's open choices say."""
    t = sequence.text_position.astype(np.float64)
    if config.text_after_image == "behind":
        for image in sequence.images:
            height, width = SCHEDULES[image.schedule].grids[image.num_scales - 1]
            longest = config.spatial_range * max(height, width) / math.sqrt(height * width)
            after = np.arange(len(t)) >= image.stop - 1  # from <eoi> on
            t[after & (sequence.document == image.document)] += math.ceil(longest)
    vision = sequence.scale > 0
    cells = np.where(vision, sequence.grid_height * sequence.grid_width, 1)
    per_cell = config.spatial_range / np.sqrt(cells)
    y, x = ((axis + 0.5) * per_cell for axis in (sequence.row, sequence.col))
    image_positions = np.stack([sequence.scale.astype(np.float64), y, x], axis=1)
    if config.image_positions == "follow_text":
        image_positions += t[:, None]
    text = np.repeat(t[:, None], 3, axis=1)
    return np.where(vision[:, None], image_positions, text).astype(np.float32)


def rotary(
    positions: Tensor, sections: tuple[int, ...], theta: float, head_dim: int
) -> tuple[Tensor, Tensor]:
    """cos and sin, [T, head_dim] in fp32, of positions [T, 3].

    ``sections`` says how many of the head_dim / 2 frequencies, fastest first, each axis rotates.
    """
    device = positions.device
    # Not a module buffer: casting the model to bf16 would round the frequencies too.
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    axis = torch.repeat_interleave(torch.tensor(sections, device=device))
    angle = positions.float()[:, axis] / theta**exponent
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate [..., T, head_dim] queries or keys in fp32; returns the type of ``x``."""
    cos, sin = rotation
    low, high = x.float().chunk(2, dim=-1)
    turned = torch.cat([-high, low], dim=-1)
    return (torch.cat([low, high], dim=-1) * cos + turned * sin).to(x.dtype)


def sinusoid(values: Tensor, size: int) -> Tensor:
    """[n, size] sinusoidal encoding of n numbers: the scale-length embedding's table look-up."""
    half = size // 2
    steps: Any = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angle = values.float()[:, None] / 10_000.0**steps
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
