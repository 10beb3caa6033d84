"""One PNG that shows what a tokenizer makes of photographs, scale by scale.

A row is a photograph: as it is, after some numbers of scales, after all of them, and how far off
the last is. The heads of the columns say which, the line under each picture how well.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from infra.pixels import Pixels, resize_crop
from infra.schedules import NUM_SCALES
from tokenize_offline.evaluation import mse, psnr_db
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Photograph, to_pixels, to_unit, whole
from tokenize_offline.quantizer import exact_float32

# Pixels of a shown picture's longer side, by level; larger pictures are reduced by area.
_LONGEST = {256: 320, 512: 512, 1024: 512}
_GAP, _HEAD, _LINE = 8, 34, 20  # between pictures, above the columns, below a picture
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_AMPLIFICATION = 4  # of the error: a quarter of full scale is shown as white

Cell = tuple[Pixels, str]
"""A picture and the line under it."""


def write_sample_grid(
    tokenizer: Tokenizer, photographs: Iterable[Photograph], level: int, path: str | Path
) -> None:
    """Draw each photograph whole at ``level`` and write the grid to ``path``, always a PNG.

    Same tokenizer, photographs and machine, same bytes. Raises ValueError without photographs.
    """
    num_scales = NUM_SCALES[level]
    shown = [num_scales // 4, num_scales // 2, 3 * num_scales // 4, num_scales]
    rows = [_row(tokenizer, photo, level, shown) for photo in photographs]
    if not rows:
        raise ValueError("a sample grid needs photographs: give one or more")
    heads = [
        f"photograph, level {level}",
        *(f"{count} of {num_scales} scales" for count in shown[:-1]),
        f"all {num_scales} scales",
        f"absolute error x {_AMPLIFICATION}",
    ]
    _compose(heads, rows, _LONGEST[level]).save(path, format="PNG")


@torch.inference_mode()
def _row(tokenizer: Tokenizer, photo: Photograph, level: int, shown: list[int]) -> list[Cell]:
    schedule, rgb = whole(photo, level)
    grids = schedule.grids[: NUM_SCALES[level]]
    device = tokenizer.quantizer.semantic.device
    with exact_float32(device):
        codes = tokenizer.quantizer.encode(tokenizer.features(to_unit([rgb]).to(device)), grids)
    # The font that comes with Pillow has Latin letters only.
    name = photo.name.rpartition("/")[2].encode("ascii", "replace").decode()
    cells = [(rgb, f"{name}, {rgb.shape[1]} x {rgb.shape[0]}")]
    for count in shown:
        drawn = to_pixels(tokenizer.draw(tokenizer.quantizer.decode(codes, grids, count)))[0]
        cells.append((drawn, f"{psnr_db(mse(rgb, drawn)):.2f} dB"))
    error = np.abs(rgb.astype(np.int16) - drawn).mean(axis=2, keepdims=True)
    amplified = np.minimum(error * _AMPLIFICATION, 255).astype(np.uint8).repeat(3, axis=2)
    return [*cells, (amplified, f"mean {error.mean():.1f} of 255")]


def _compose(heads: list[str], rows: list[list[Cell]], longest: int) -> Image.Image:
    """Columns as wide as their widest picture, rows as high as their pictures."""
    sizes = [_shown_size(row[0][0], longest) for row in rows]
    width = max(size[1] for size in sizes)
    sheet = Image.new(
        "RGB",
        (
            _GAP + len(heads) * (width + _GAP),
            _HEAD + sum(height + _LINE + _GAP for height, _ in sizes),
        ),
        _PAPER,
    )
    pen, bold, plain = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(12)
    lefts = [_GAP + column * (width + _GAP) for column in range(len(heads))]
    for left, head in zip(lefts, heads, strict=True):
        pen.text((left + width // 2, _HEAD // 2), head, _INK, bold, anchor="mm")
    top = _HEAD
    for row, (height, own_width) in zip(rows, sizes, strict=True):
        for left, (picture, line) in zip(lefts, row, strict=True):
            reduced = resize_crop(picture, height, own_width)[0]
            sheet.paste(Image.fromarray(reduced), (left + (width - own_width) // 2, top))
            middle = (left + width // 2, top + height + _LINE // 2)
            pen.text(middle, _fitting(line, plain, width), _FAINT, plain, anchor="mm")
        top += height + _LINE + _GAP
    return sheet


def _shown_size(picture: Pixels, longest: int) -> tuple[int, int]:
    height, width = picture.shape[:2]
    factor = min(1.0, longest / max(height, width))
    return round(height * factor), round(width * factor)


def _fitting(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The line, without its first letters if it is too long."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength("..." + line) > width:
        line = line[1:]
    return "..." + line
