"""How good a tokenizer is on given photographs: pictures, codebook usage, meaning.

PSNR, SSIM and the Fréchet distance compare photographs with their reconstructions as bytes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infra.pixels import Pixels
from infra.schedules import NUM_SCALES
from tokenize_offline.frechet import Gaussian, PictureFeatures, frechet_distance
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Photograph, to_pixels, to_unit, whole
from tokenize_offline.quantizer import exact_float32
from tokenize_offline.ranks import Ranks
from tokenize_offline.teacher import Teacher
from tokenize_offline.usage import perplexity, tally


@dataclass(frozen=True, eq=False)
class Quality:
    """Means over photographs at one level."""

    level: int
    num_photographs: int
    psnr_db: float
    ssim: float
    thumbnail16_db: float  # PSNR of a 16-cell thumbnail raised bicubically, for comparison
    thumbnail32_db: float
    psnr_by_scale_db: tuple[float, ...] | None  # K values: of the mean error after 1 .. K scales
    usage: tuple[float, ...]  # K values: share of the codebook that each scale used
    usage_all: float  # share used by any scale
    perplexity_by_scale: tuple[float, ...]  # K values: exponential of the entropy of the codes
    perplexity: float  # of all codes together
    semantic_cosine: float | None  # to the teacher's standardised features; chance is 0
    frechet_distance: float | None  # None, too, with no more photographs than features
    frechet_features: str | None  # the name of the network that the distance is measured with


@torch.inference_mode()
def evaluate(
    tokenizer: Tokenizer,
    photographs: Iterable[Photograph],
    level: int,
    teacher: Teacher | None = None,
    features: PictureFeatures | None = None,
    *,
    by_scale: bool = False,
    ranks: Ranks | None = None,
) -> Quality:
    """Encode and decode each photograph whole at ``level``, one at a time, in one pass.

    With ``ranks`` each gives photographs of its own, and all get the quality over those of all.

    On the tokenizer's device, where ``teacher`` and ``features`` must be, too. ``teacher`` gives
    the semantic cosine, ``features`` the Fréchet distance; ``by_scale`` draws every photograph
    after each of the K scales instead of once, which is most of the work. Raises ValueError if
    there is no photograph.
    """
    device, num_scales = tokenizer.quantizer.semantic.device, NUM_SCALES[level]
    ranks = ranks or Ranks(0, 1, device)
    counts = torch.zeros((num_scales, tokenizer.settings.num_codes), dtype=torch.long)
    num_drawn = num_scales if by_scale else 1
    # Of each photograph SSIM, both thumbnails, the cosine, and the error after each scale drawn.
    rows: list[list[float]] = []
    real, reconstructed = Gaussian(), Gaussian()
    for photo in photographs:
        schedule, rgb = whole(photo, level)
        grids = schedule.grids[:num_scales]
        images = to_unit([rgb]).to(device)
        with exact_float32(device):  # as extraction does
            codes = tokenizer.quantizer.encode(tokenizer.features(images), grids)
        tally(counts, codes.cpu(), grids)
        errors = []
        for shown in range(num_scales - num_drawn + 1, num_scales + 1):
            quantized = tokenizer.quantizer.decode(codes, grids, shown)
            drawn = to_pixels(tokenizer.draw(quantized))[0]
            errors.append(mse(rgb, drawn))
        cosine = math.nan
        if teacher is not None:
            taught = tokenizer.standard(teacher(images))
            told = tokenizer.meaning(quantized).float()
            cosine = float(F.cosine_similarity(told, taught, dim=1).mean())
        if features is not None:
            real.add(features.describe(images))
            reconstructed.add(features.describe(to_unit([drawn]).to(device)))
        thumbnails = [_thumbnail_db(images, rgb, side * (level // 256)) for side in (16, 32)]
        rows.append([ssim(rgb, drawn), *thumbnails, cosine, *errors])
    table = torch.tensor(rows, dtype=torch.float64, device=device).reshape(-1, 4 + num_drawn)
    per_photo = ranks.gather_rows(table).cpu().numpy()
    if not len(per_photo):
        raise ValueError("there is no photograph to evaluate the tokenizer on: give some")
    counts = ranks.total(counts.to(device)).cpu()
    structure, small, medium, cosine = per_photo[:, :4].mean(axis=0).tolist()
    squared = per_photo[:, 4:]
    distance = None
    if features is not None:
        distance = frechet_distance(real.of_all(ranks), reconstructed.of_all(ranks))
    return Quality(
        level=level,
        num_photographs=len(per_photo),
        psnr_db=float(np.mean([psnr_db(error) for error in squared[:, -1]])),
        ssim=structure,
        thumbnail16_db=small,
        thumbnail32_db=medium,
        psnr_by_scale_db=tuple(map(psnr_db, squared.mean(axis=0))) if by_scale else None,
        usage=tuple((counts > 0).double().mean(1).tolist()),
        usage_all=float((counts.sum(0) > 0).double().mean()),
        perplexity_by_scale=tuple(perplexity(counts).tolist()),
        perplexity=float(perplexity(counts.sum(0))),
        semantic_cosine=None if teacher is None else cosine,
        frechet_distance=distance,
        frechet_features=None if features is None else features.name,
    )


def mse(a: Pixels, b: Pixels) -> float:
    """Mean squared error of two pictures, in bytes squared."""
    return float(np.mean((a.astype(np.float64) - b) ** 2))


def psnr_db(error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error of bytes."""
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def ssim(a: Pixels, b: Pixels) -> float:
    """Structural similarity of luma (Wang et al. 2004): 11-pixel Gaussian window, sigma 1.5."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    x, y = (torch.from_numpy(p.astype(np.float64)) @ weights for p in (a, b))
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()

    def blur(image: Tensor) -> Tensor:
        rows = F.conv2d(image[None, None], taps.view(1, 1, 1, 11))
        return F.conv2d(rows, taps.view(1, 1, 11, 1))[0, 0]

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())


def _thumbnail_db(images: Tensor, rgb: Pixels, side: int) -> float:
    """PSNR of the picture kept as ``side``^2 pixels in its own ratio, as bytes, and raised back."""
    height, width = images.shape[2:]
    unit = (height * width) ** 0.5 / side
    small = (max(1, round(height / unit)), max(1, round(width / unit)))
    kept = F.interpolate(images, size=small, mode="area").mul(127.5).round().div(127.5)
    raised = F.interpolate(kept, size=(height, width), mode="bicubic", align_corners=False)
    return psnr_db(mse(rgb, to_pixels(raised)[0]))
