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
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.schedules import MAX_SCALES, Grid

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
        table = torch.cat([self.semantic, self.pixel], dim=1)
        return F.embedding(codes, table) * self.magnitude(scale)

    def field(self, codes: Tensor, scale: int, grid: Grid, size: Grid) -> Tensor:
        """Codes [B, h*w] on ``grid`` -> what they add on the full grid, [B, D, *size]."""
        cells = self.vectors(codes, scale).transpose(1, 2).reshape(len(codes), -1, *grid)
        if grid == size:
            return cells
        return F.interpolate(cells, size=size, mode="bicubic", align_corners=False)

    @torch.no_grad()
    def nearest(self, rows: Tensor, scale: int, k: int = 1) -> tuple[Tensor, Tensor]:
        """The k nearest codes of residuals [B, n, D], nearest first: indices, squared distances.

        Both [B, n, k]. Equal distances are in the order of their indices, at the k-th place too.
        """
        keys = self._unit(torch.cat([self.semantic, self.pixel], dim=1)).mT
        batch, num_rows, _ = rows.shape
        chunk = max(1, self.memory_bytes // (4 * self.num_codes * batch))
        indices, similarities = [], []
        for start in range(0, num_rows, chunk):
            # One product per image, never one for the whole batch: its shape, and so the last bit
            # of its result, must not depend on where in the batch an image stands.
            queries = self._unit(rows[:, start : start + chunk] / self.magnitude(scale))
            similarity = torch.bmm(queries, keys.expand(batch, -1, -1))
            value, index = _top(similarity, k)
            indices.append(index)
            similarities.append(value)
        distance = 2 * (1 + self.pixel_weight) - 2 * torch.cat(similarities, dim=1)
        return torch.cat(indices, dim=1), distance.clamp_min(0)

    def _unit(self, rows: Tensor) -> Tensor:
        """[..., D] -> [..., D + 2]: each branch with 1 appended, normalised, weighted."""
        semantic, pixel = (
            F.normalize(F.pad(branch, (0, 1), value=1.0), dim=-1)
            for branch in (rows[..., : self.dims[0]], rows[..., self.dims[0] :])
        )
        return torch.cat([semantic, pixel * self.pixel_weight**0.5], dim=-1)

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

        def choose(scale: int, rows: Tensor) -> Tensor:
            codes.append(self.nearest(rows, scale)[0][..., 0])
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
            zero = features.new_zeros(())
            commit, codebook, codes, kept = zero, zero, [], 0
            for scale, grid in enumerate(grids):
                if keep is not None and not keep[scale]:
                    codes.append(features.new_full((len(features), grid[0] * grid[1]), -1).long())
                    continue
                rows = _rows(still - total.detach(), grid)
                codes.append(self.nearest(rows, scale)[0][..., 0])
                total = total + self.field(codes[-1], scale, grid, grids[-1])
                commit = commit + F.mse_loss(features, total.detach())
                codebook = codebook + F.mse_loss(total, still)
                kept += 1
            through = features + (total - features).detach()
        return Quantized(through, commit / kept, codebook / kept, torch.cat(codes, dim=1))


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32 inside: reduced precision flips the nearest code."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _rows(residual: Tensor, grid: Grid) -> Tensor:
    """[B, D, H, W] -> the mean residual of each cell of ``grid``, [B, h*w, D]."""
    if residual.shape[2:] != grid:
        residual = F.interpolate(residual, size=grid, mode="area")
    return residual.flatten(2).transpose(1, 2)


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last dimension and their indices, ties in the order of indices."""
    if k == 1:
        index = similarity.argmax(dim=-1, keepdim=True)  # documented to be the first of equals
        return similarity.gather(-1, index), index
    value, index = similarity.topk(k, dim=-1)
    # topk leaves the order of equals open: sort the k by index, then stably by value ...
    index, order = index.sort(dim=-1)
    value, order = value.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    index = index.gather(-1, order)
    # ... and sort in full the rare rows where equals also lie beyond the k-th place.
    cut = (similarity >= value[..., -1:]).sum(dim=-1) > k
    if cut.any():
        full, place = similarity[cut].sort(dim=-1, descending=True, stable=True)
        value[cut], index[cut] = full[:, :k], place[:, :k]
    return value, index


def _check(features: Tensor, grids: Sequence[Grid]) -> None:
    if tuple(features.shape[2:]) != tuple(grids[-1]):
        raise ValueError(
            f"features of {features.shape[2]} x {features.shape[3]} cells do not fit a schedule "
            f"that ends in {grids[-1][0]} x {grids[-1][1]}: resize the image to the schedule"
        )
