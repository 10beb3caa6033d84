"""How good a tokenizer is on given photographs: PSNR, SSIM, error per scale, codebook usage."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infra.pixels import Pixels
from infra.schedules import NUM_SCALES
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Photograph, to_pixels, to_unit, whole
from tokenize_offline.teacher import Teacher


@dataclass(frozen=True, eq=False)
class Quality:
    """Means over photographs at one level."""

    level: int
    num_photographs: int
    psnr_db: float
    ssim: float
    thumbnail16_db: float  # PSNR of a 16-cell thumbnail raised bicubically, for comparison
    thumbnail32_db: float
    psnr_by_scale_db: tuple[float, ...]  # K values: of the mean error after 1 .. K scales
    usage: tuple[float, ...]  # K values: share of the codebook that each scale used
    usage_all: float  # share used by any scale
    perplexity: float  # of all codes together
    semantic_cosine: float | None  # to the teacher's standardised features; chance is 0


@torch.inference_mode()
def evaluate(
    tokenizer: Tokenizer,
    photographs: Sequence[Photograph],
    level: int,
    teacher: Teacher | None = None,
) -> Quality:
    """Encode and decode each photograph whole at ``level``, one at a time."""
    num_scales = NUM_SCALES[level]
    counts = torch.zeros(num_scales, tokenizer.settings.num_codes, dtype=torch.long)
    errors = np.zeros((len(photographs), num_scales))
    ssims, small, medium, cosines = [], [], [], []
    for row, photo in enumerate(photographs):
        schedule, rgb = whole(photo, level)
        grids = schedule.grids[:num_scales]
        images = to_unit([rgb])
        codes = tokenizer.quantizer.encode(tokenizer.features(images), grids)
        start = 0
        for scale, (height, width) in enumerate(grids):
            part = codes[0, start : start + height * width]
            counts[scale] += torch.bincount(part, minlength=tokenizer.settings.num_codes)
            start += height * width
            features = tokenizer.quantizer.decode(codes, grids, scale + 1)
            drawn = to_pixels(tokenizer.draw(features))[0]
            errors[row, scale] = mse(rgb, drawn)
        if teacher is not None:
            taught = tokenizer.standard(teacher(images))
            cosine = F.cosine_similarity(tokenizer.meaning(features), taught, dim=1)
            cosines.append(float(cosine.mean()))
        ssims.append(ssim(rgb, drawn))
        small.append(_thumbnail_db(images, rgb, 16 * (level // 256)))
        medium.append(_thumbnail_db(images, rgb, 32 * (level // 256)))
    share = counts.sum(0).double() / counts.sum()
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return Quality(
        level,
        len(photographs),
        float(np.mean([psnr_db(e) for e in errors[:, -1]])),
        float(np.mean(ssims)),
        float(np.mean(small)),
        float(np.mean(medium)),
        tuple(psnr_db(e) for e in errors.mean(0)),
        tuple((counts > 0).double().mean(1).tolist()),
        float((counts.sum(0) > 0).double().mean()),
        float(entropy.exp()),
        float(np.mean(cosines)) if cosines else None,
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
