"""A plain vision transformer over patches of any rectangle, as SigLIP2's tower in NaFlex is one.

Patches are read row by row, inside a patch pixel by pixel with the channels last. The table of
positions is a square; it is resized to each picture's grid, bilinearly and with antialiasing
(SigLIP 2, arXiv:2502.14786, section 2.4). All pictures of a batch have one size, so nothing is
padded and nothing masked. Pre-norm layers (Dosovitskiy et al. 2021), GELU by tanh.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VisionTransformer(nn.Module):
    """[B, channels, H, W] -> [B, width, H / patch_size, W / patch_size], without a last norm."""

    def __init__(
        self,
        *,
        channels: int,
        patch_size: int,
        width: int,
        intermediate: int,
        num_heads: int,
        num_layers: int,
        num_positions: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.patches = nn.Linear(channels * patch_size**2, width)
        self.positions = nn.Parameter(torch.randn(num_positions, width) / width**0.5)
        self.layers = nn.ModuleList(
            Layer(width, intermediate, num_heads) for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2] // self.patch_size, x.shape[3] // self.patch_size)
        tokens = self.patches(to_patches(x, self.patch_size)) + self._positions(grid)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.transpose(1, 2).reshape(len(x), -1, *grid)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The table for a grid, [h * w, width]."""
        side = math.isqrt(len(self.positions))
        table = self.positions.float().T.reshape(1, -1, side, side)
        resized = F.interpolate(
            table, size=grid, mode="bilinear", align_corners=False, antialias=True
        )
        # In the weights' precision: under autocast the sum that runs through all layers is float32.
        return resized[0].flatten(1).T.to(self.positions.dtype)


class Layer(nn.Module):
    """Attention among all tokens, then two linear layers on each; an identity at the start."""

    def __init__(self, width: int, intermediate: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm_expand = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, intermediate)
        self.contract = nn.Linear(intermediate, width)
        for last in (self.attended, self.contract):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(cast(Tensor, last.bias))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, width] -> the same shape."""
        joint = self.query_key_value(self.norm_attention(tokens))
        parts = joint.reshape(*joint.shape[:2], 3, self.num_heads, -1)  # [B, N, 3, heads, D]
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.attended(attended.transpose(1, 2).flatten(2))
        expanded = F.gelu(self.expand(self.norm_expand(tokens)), approximate="tanh")
        return tokens + self.contract(expanded)


def to_patches(x: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> [B, H/size * W/size, size * size * C]: rows of patches, channels last."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // size, size, width // size, size)
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
