"""Multi-scale residual quantisation: two codebooks, one shared index per position.

At each scale of a schedule the residual is area-averaged down to the scale's grid, every cell
takes the index whose semantic and pixel codes are nearest together, and the codes, raised
bicubically to the full grid, are taken off the residual (VAR; TokenFlow for the two branches;
paper section 2.1). There is no convolution after the upsampling: it would make a scale's meaning
depend on how many scales follow.

**Distances** are ``|a_sem - b_sem|^2 + w |a_pix - b_pix|^2`` of unit vectors, each branch
normalised on its own. Normalising a residual outright forgets how large it is: every scale would
then add a vector of the same length and the error would not shrink. So a constant coordinate 1 is
appended before normalising (the residual becomes a point on the sphere whose angle to the pole is
its length), and a code has a length of its own. The unit of length is one number per branch and
*absolute* scale, since residuals shrink from scale to scale; a code is the same picture element at
every scale, stronger or weaker, and scale 7 means the same at every level.

Everything runs in float32 with TF32 off, whatever autocast says. Ties go to the lowest index.
Rounding (another processor, another size of pieces) can change a code only where two squared
distances are within 5e-6 of each other; of real residuals, that is fewer than one in a thousand.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.schedules import MAX_SCALES, Grid
from tokenize_offline.largest import largest

_CACHE_BYTES = 2 * 2**20  # about the second-level cache of a core and its share of the third

Choose = Callable[[int, Tensor], Tensor]
"""(scale index from 0, residual rows [B, h*w, D]) -> the codes to take [B, h*w]."""


class Quantized(NamedTuple):
    """What a training pass gives back."""

    features: Tensor  # [B, D, H, W], straight through: the gradient goes to the encoder
    commit_loss: Tensor  # pulls features to their codes
    codebook_loss: Tensor  # pulls codes to the features
    codes: Tensor  # [B, N]; -1 for dropped scales


class Quantizer(nn.Module):
    """Codebooks of ``num_codes`` pairs of vectors, [V, semantic_dim] and [V, pixel_dim].

    ``pixel_weight`` is w of the module's docstring; ``memory_bytes`` bounds the distances held at
    any time.
    """

    def __init__(
        self,
        num_codes: int,
        semantic_dim: int,
        pixel_dim: int,
        pixel_weight: float = 1.0,
        memory_bytes: int = 64 * 2**20,
    ) -> None:
        super().__init__()
        self.num_codes, self.dims = num_codes, (semantic_dim, pixel_dim)
        self.pixel_weight, self.memory_bytes = pixel_weight, memory_bytes
        self.semantic = nn.Parameter(torch.randn(num_codes, semantic_dim) / semantic_dim**0.5)
        self.pixel = nn.Parameter(torch.randn(num_codes, pixel_dim) / pixel_dim**0.5)
        self.log_magnitude = nn.Parameter(torch.zeros(MAX_SCALES, 2))

    def magnitude(self, scale: int) -> Tensor:
        """[D]: the unit of length of each coordinate at this scale (index from 0)."""
        semantic, pixel = self.log_magnitude[scale].exp()
        return torch.cat([semantic.expand(self.dims[0]), pixel.expand(self.dims[1])])

    def vectors(self, codes: Tensor, scale: int) -> Tensor:
        """Codes of any shape [...] -> what they add at this scale, [..., D]."""
        halves = F.embedding(codes, self.semantic), F.embedding(codes, self.pixel)
        return torch.cat(halves, dim=-1) * self.magnitude(scale)

    def field(self, codes: Tensor, scale: int, grid: Grid, size: Grid) -> Tensor:
        """Codes [B, h*w] on ``grid`` -> what they add on the full grid, [B, D, *size]."""
        cells = self.vectors(codes, scale).transpose(1, 2).reshape(len(codes), -1, *grid)
        if grid == size:
            return cells
        return F.interpolate(cells, size=size, mode="bicubic", align_corners=False)

    @torch.no_grad()
    def keys(self) -> Tensor:
        """[D + 2, V]: the codes as `nearest` compares residuals with them.

        They change with the codebooks only: whoever calls `nearest` for scale after scale makes
        them once.
        """
        return self._unit(self.semantic, self.pixel).mT

    @torch.no_grad()
    def nearest(
        self, rows: Tensor, scale: int, k: int = 1, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k nearest codes of residuals [B, n, D], nearest first: indices, squared distances.

        Both [B, n, k]. Equal distances are in the order of their indices, at the k-th place too.
        ``keys`` are those of `keys`, where the caller has them.
        """
        keys = self.keys() if keys is None else keys
        batch, num_rows, _ = rows.shape
        scaled = rows / self.magnitude(scale)
        queries = self._unit(*scaled.tensor_split([self.dims[0]], dim=-1))
        index = torch.empty((batch, num_rows, k), dtype=torch.long, device=rows.device)
        similarity = queries.new_empty(index.shape)
        # One product per image, never one across images: its shape, and so the last bit of its
        # result, must depend neither on the batch nor on where in it an image stands.
        most = max(1, self._held_bytes(rows.device) // (4 * self.num_codes))
        images = max(1, most // num_rows)
        for first in range(0, batch, images):
            for start in range(0, num_rows, most):
                here = slice(first, first + images), slice(start, start + most)
                some = queries[here]
                product = torch.bmm(some, keys.expand(len(some), -1, -1))
                similarity[here], index[here] = largest(product, k)
        distance = 2 * (1 + self.pixel_weight) - 2 * similarity
        return index, distance.clamp_min(0)

    def _held_bytes(self, device: torch.device) -> int:
        """Similarities held at a time: a CPU finds the largest while they are in its cache."""
        return min(self.memory_bytes, _CACHE_BYTES) if device.type == "cpu" else self.memory_bytes

    def _unit(self, *branches: Tensor) -> Tensor:
        """Both branches, each with 1 appended, normalised and weighted: [..., D + 2]."""
        parts = []
        for branch, weight in zip(branches, (1.0, self.pixel_weight), strict=True):
            scale = weight**0.5 * (branch.square().sum(dim=-1, keepdim=True) + 1).rsqrt()
            parts += [branch * scale, scale]
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def walk(self, features: Tensor, grids: Sequence[Grid], choose: Choose) -> Tensor:
        """Take ``choose``'s codes off the features, scale by scale; returns what is left over.

        ``features`` [B, D, H, W] with (H, W) = ``grids[-1]``. Later scales see what the chosen
        codes left, so a wrong choice is corrected by the scales after it.
        """
        _check(features, grids)
        with exact_float32(features.device):
            residual = features.float()
            for scale, grid in enumerate(grids):
                codes = choose(scale, _rows(residual, grid))
                residual = residual - self.field(codes, scale, grid, grids[-1])
        return residual

    def encode(self, features: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Features [B, D, H, W] -> codes [B, N], coarse to fine, row-major, without noise."""
        codes: list[Tensor] = []
        keys = self.keys()

        def choose(scale: int, rows: Tensor) -> Tensor:
            codes.append(self.nearest(rows, scale, keys=keys)[0][..., 0])
            return codes[-1]

        self.walk(features, grids, choose)
        return torch.cat(codes, dim=1)

    def decode(self, codes: Tensor, grids: Sequence[Grid], num_scales: int | None = None) -> Tensor:
        """Codes [B, N] -> features [B, D, H, W], from the first ``num_scales`` scales or all."""
        size, start = grids[-1], 0
        features = codes.new_zeros((len(codes), sum(self.dims), *size), dtype=torch.float32)
        with exact_float32(codes.device):
            for scale, (height, width) in enumerate(grids[:num_scales]):
                stop = start + height * width
                features = features + self.field(codes[:, start:stop], scale, (height, width), size)
                start = stop
        return features

    def forward(
        self,
        features: Tensor,
        grids: Sequence[Grid],
        keep: Sequence[bool] | None = None,
    ) -> Quantized:
        """The training pass: straight-through features and the two losses of VAR.

        Both losses compare the features with the sum of codes after every scale, averaged over the
        scales. ``keep`` drops scales (scale dropout; never at extraction).
        """
        _check(features, grids)
        with exact_float32(features.device):
            features = features.float()
            still, total = features.detach(), torch.zeros_like(features)
            zero, keys = features.new_zeros(()), self.keys()
            commit, codebook, codes, kept = zero, zero, [], 0
            for scale, grid in enumerate(grids):
                if keep is not None and not keep[scale]:
                    codes.append(features.new_full((len(features), grid[0] * grid[1]), -1).long())
                    continue
                rows = _rows(still - total.detach(), grid)
                codes.append(self.nearest(rows, scale, keys=keys)[0][..., 0])
                total = total + self.field(codes[-1], scale, grid, grids[-1])
                commit = commit + F.mse_loss(features, total.detach())
                codebook = codebook + F.mse_loss(total, still)
                kept += 1
            through = features + (total - features).detach()
        return Quantized(through, commit / kept, codebook / kept, torch.cat(codes, dim=1))


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32, no sums in varying order inside: all of them flip nearest codes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        # The matrix products' setting leaves the convolutions of a GPU in TF32.
        exact = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        with exact, torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _rows(residual: Tensor, grid: Grid) -> Tensor:
    """[B, D, H, W] -> the mean residual of each cell of ``grid``, [B, h*w, D]."""
    if residual.shape[2:] != grid:
        residual = F.interpolate(residual, size=grid, mode="area")
    return residual.flatten(2).transpose(1, 2)


def _check(features: Tensor, grids: Sequence[Grid]) -> None:
    if tuple(features.shape[2:]) != tuple(grids[-1]):
        raise ValueError(
            f"features of {features.shape[2]} x {features.shape[3]} cells do not fit a schedule "
            f"that ends in {grids[-1][0]} x {grids[-1][1]}: resize the image to the schedule"
        )
