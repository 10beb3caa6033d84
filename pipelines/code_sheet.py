"""One plain picture of many images after each of their scales: the PNG of ``inspect-codes``.

A row of pictures from target codes above one from input codes, the original to their left, the
PSNR in dB below each.
"""

import io
import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from infra.pixels import Pixels, resize_crop
from infra.storage import Storage
from pipelines.coded_images import CodedImage, Redrawn

CELL = 192  # pixels of a picture's longer side
GAP, LABEL = 8, 18  # pixels between pictures, of a line of text
PAPER, INK, SOFT = (250, 249, 246), (35, 38, 43), (109, 113, 120)


class CodeSheet:
    """Rows are drawn as images come, so that no picture is held at its full size."""

    def __init__(self, num_scales: int) -> None:
        self.width = (num_scales + 1) * (CELL + GAP) + GAP
        font = ImageFont.load_default(13)
        assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels have FreeType
        self.font = font
        header, draw = self._strip(LABEL + GAP)
        names = ["original", *(f"scale {scale}" for scale in range(1, num_scales + 1))]
        for column, name in enumerate(names):
            self._write(draw, column, GAP, name)
        self.strips = [header]

    def add(self, image: CodedImage, redrawn: Redrawn) -> None:
        """Two rows: from targets, from inputs."""
        name = image.sample_id or image.doc_id
        targets, inputs = f"{name[:12]}  targets:", "inputs:"
        self._add_row(redrawn.from_targets, redrawn.target_db.tolist(), targets, image.original)
        self._add_row(redrawn.from_inputs, redrawn.input_db.tolist(), inputs)

    def write(self, path: str) -> None:
        """Write the PNG to a local path or an ``s3://`` URI, whole or not at all."""
        sheet = Image.fromarray(np.concatenate([np.asarray(strip) for strip in self.strips]))
        out = io.BytesIO()
        sheet.save(out, "PNG")
        folder, name = os.path.split(path)
        Storage(folder or ".").write(name, out.getvalue())

    def _add_row(
        self,
        pictures: list[Pixels],
        psnr_db: list[float],
        label: str,
        original: Pixels | None = None,
    ) -> None:
        small = [_reduced(picture) for picture in pictures]
        height = max(len(picture) for picture in small)
        strip, draw = self._strip(height + LABEL + GAP)
        if original is not None:
            strip.paste(Image.fromarray(_reduced(original)), (GAP, 0))
        self._write(draw, 0, height + 2, label)
        for column, (picture, value) in enumerate(zip(small, psnr_db, strict=True), 1):
            strip.paste(Image.fromarray(picture), (self._left(column), 0))
            self._write(draw, column, height + 2, f"{value:.1f} dB")
        self.strips.append(strip)

    def _strip(self, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        strip = Image.new("RGB", (self.width, height), PAPER)
        return strip, ImageDraw.Draw(strip)

    def _left(self, column: int) -> int:
        return GAP + column * (CELL + GAP)

    def _write(self, draw: ImageDraw.ImageDraw, column: int, top: int, text: str) -> None:
        draw.text((self._left(column), top), text, SOFT if column else INK, font=self.font)


def _reduced(rgb: Pixels) -> Pixels:
    height, width = rgb.shape[:2]
    scale = CELL / max(height, width)
    return resize_crop(rgb, round(height * scale), round(width * scale))[0]
