"""Pictures to codes and codes to pictures, for arrays of one schedule.

The network runs in batches of a fixed number of rows, the last one filled up with zeros: a
picture's features, and so its codes, then do not depend on its neighbours.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from infra.pixels import Pixels
from infra.schedules import Schedule
from tokenize_offline.correction import Correction, Encoded, encode
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import to_pixels, to_unit


@torch.inference_mode()
def extract(
    tokenizer: Tokenizer,
    images: Sequence[Pixels],
    sample_ids: Sequence[str],
    schedule: Schedule,
    num_scales: int,
    correction: Correction,
    batch_rows: int = 1,
) -> Encoded:
    """Codes of one or more pictures [H, W, 3], all of ``schedule.image_size(num_scales)``.

    ``sample_ids`` seed their noise. Raises ValueError for a picture of another size.
    """
    size = schedule.image_size(num_scales)
    for image in images:
        if image.shape[:2] != size:
            raise ValueError(
                f"a picture of {image.shape[0]} x {image.shape[1]} pixels does not fit schedule "
                f"{schedule.index} with {num_scales} scales: resize it to {size[0]} x {size[1]}"
            )
    parts = []
    for start in range(0, len(images), batch_rows):
        rows = list(images[start : start + batch_rows])
        ids = list(sample_ids[start : start + batch_rows])
        padding = batch_rows - len(rows)
        pixels = to_unit(rows + [np.zeros((*size, 3), np.uint8)] * padding)
        features = tokenizer.features(pixels.to(_device(tokenizer)))
        encoded = encode(
            tokenizer.quantizer,
            features,
            schedule.grids[:num_scales],
            ids + [""] * padding,
            correction,
        )
        parts.append((encoded, len(rows)))
    return Encoded(
        np.concatenate([encoded.input_codes[:count] for encoded, count in parts]),
        np.concatenate([encoded.target_codes[:count] for encoded, count in parts]),
        np.concatenate([encoded.sampled[:count] for encoded, count in parts]),
    )


@torch.inference_mode()
def decode(
    tokenizer: Tokenizer,
    codes: NDArray[np.integer],
    schedule: Schedule,
    num_scales: int,
    first_scales: int | None = None,
) -> Pixels:
    """Codes [B, N] of ``num_scales`` scales -> pictures [B, H, W, 3].

    ``first_scales`` draws the picture after that many scales only, at its full size.
    """
    expected = schedule.num_codes(num_scales)
    if codes.ndim != 2 or codes.shape[1] != expected:
        raise ValueError(
            f"codes of shape {codes.shape} do not fit schedule {schedule.index} with "
            f"{num_scales} scales: expected [B, {expected}]"
        )
    grids = schedule.grids[:num_scales]
    indices = torch.from_numpy(codes.astype(np.int64)).to(_device(tokenizer))
    drawn = [
        tokenizer.draw(tokenizer.quantizer.decode(row[None], grids, first_scales)).cpu()
        for row in indices
    ]
    return np.concatenate([to_pixels(picture) for picture in drawn])


def reduce_by_area(rgb: Pixels, factor: int) -> Pixels:
    """[H, W, 3] -> [H / factor, W / factor, 3]: exact means, halves rounded up.

    Raises ValueError if the sides are not multiples of ``factor``.
    """
    height, width, channels = rgb.shape
    if height % factor or width % factor:
        raise ValueError(f"{height} x {width} pixels are not whole blocks of {factor} x {factor}")
    if factor == 1:
        return rgb
    blocks = rgb.reshape(height // factor, factor, width // factor, factor, channels)
    sums = blocks.sum(axis=(1, 3), dtype=np.uint32)
    return ((sums + factor * factor // 2) // (factor * factor)).astype(np.uint8)


def _device(tokenizer: Tokenizer) -> torch.device:
    return tokenizer.quantizer.semantic.device
