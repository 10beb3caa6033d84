"""Pictures to codes and codes to pictures, for arrays of one schedule.

The network runs in batches of a fixed number of rows, the last one filled up with zeros: a
picture's features, and so its codes, then do not depend on its neighbours.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.pixels import DecodeError, Pixels
from infra.pixels import decode as decode_picture
from infra.schedules import NUM_SCALES, Schedule, nearest
from tokenize_offline.correction import Correction, Encoded, encode
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import to_pixels, to_unit
from tokenize_offline.quantizer import exact_float32


@torch.inference_mode()
def extract(
    tokenizer: Tokenizer,
    images: Sequence[Pixels],
    sample_ids: Sequence[str],
    schedule: Schedule,
    num_scales: int,
    correction: Correction | Sequence[Correction],
    batch_rows: int = 1,
) -> Encoded:
    """Codes of one or more pictures [H, W, 3], all of ``schedule.image_size(num_scales)``.

    ``sample_ids`` seed their noise; ``correction`` is that of all or one for each. Encoders and
    quantiser run in float32 on the tokenizer's device. Raises ValueError for a picture of another
    size.
    """
    corrections = [correction] * len(images) if isinstance(correction, Correction) else correction
    size = schedule.image_size(num_scales)
    for image, _, _ in zip(images, sample_ids, corrections, strict=True):
        if image.shape[:2] != size:
            raise ValueError(
                f"a picture of {image.shape[0]} x {image.shape[1]} pixels does not fit schedule "
                f"{schedule.index} with {num_scales} scales: resize it to {size[0]} x {size[1]}"
            )
    shape = len(images), schedule.num_codes(num_scales)
    found = Encoded(np.empty(shape, np.int32), np.empty(shape, np.int32), np.empty(shape, np.bool_))
    for start in range(0, len(images), batch_rows):
        rows = list(images[start : start + batch_rows])
        padding = batch_rows - len(rows)
        ids = [*sample_ids[start : start + batch_rows], *[""] * padding]
        features = _features(tokenizer, rows + [np.zeros((*size, 3), np.uint8)] * padding)
        of_rows = corrections[start : start + batch_rows]
        for one in dict.fromkeys(of_rows):
            # The whole batch again, in its one shape: a part of it could give other codes.
            encoded = encode(tokenizer.quantizer, features, schedule.grids[:num_scales], ids, one)
            at = np.array([row for row, of_row in enumerate(of_rows) if of_row == one])
            found.input_codes[start + at] = encoded.input_codes[at]
            found.target_codes[start + at] = encoded.target_codes[at]
            found.sampled[start + at] = encoded.sampled[at]
    return found


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
    # Whole rows first, slice by slice: several times as fast as one sum over two axes.
    rows = rgb.reshape(height // factor, factor, width, channels)
    sums = sum((rows[:, i] for i in range(1, factor)), rows[:, 0].astype(np.uint32))
    cells = sums.reshape(height // factor, width // factor, factor, channels)
    sums = sum((cells[:, :, i] for i in range(1, factor)), cells[:, :, 0])
    return ((sums + factor * factor // 2) // (factor * factor)).astype(np.uint8)


def read_stored(data: bytes, level: int) -> tuple[Schedule, Pixels]:
    """A document's picture, stored at its schedule's size of some level, reduced to ``level``.

    Raises DecodeError for another size (``wrong_size``) and for one of a lower level
    (``too_small_for_level``): nothing is upsampled.
    """
    rgb = decode_picture(data).rgb
    height, width = rgb.shape[:2]
    schedule = nearest(height, width)
    wanted = schedule.image_size(level)
    stored = {schedule.image_size(level): level for level in NUM_SCALES}.get((height, width))
    if stored is None:
        raise DecodeError("wrong_size", f"{width}x{height} is the size of no schedule's level")
    if stored < level:
        raise DecodeError(
            "too_small_for_level",
            f"{width}x{height} of level {stored} is below {wanted[1]}x{wanted[0]}",
        )
    return schedule, reduce_by_area(rgb, height // wanted[0])


def per_scale(marks: NDArray[np.bool_], schedule: Schedule, num_scales: int) -> NDArray[np.int32]:
    """Marks of codes [B, N] -> how many are set at each scale, [B, K]."""
    starts = [0, *schedule.code_ends[: num_scales - 1]]
    return np.add.reduceat(marks, starts, axis=1, dtype=np.int32)


def _features(tokenizer: Tokenizer, images: list[Pixels]) -> Tensor:
    device = _device(tokenizer)
    with exact_float32(device):
        return tokenizer.features(to_unit(images).to(device))


def _device(tokenizer: Tokenizer) -> torch.device:
    return tokenizer.quantizer.semantic.device
