"""Open a picture once: its facts, its exact hash, and the pixels the other operators read."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from infra.pixels import MAX_PIXELS, DecodeError, Pixels, decode, to_struct
from infra.schema import ERROR, IMAGE_TYPE, column

# name -> how a decoded row is told; the order is that of `Probe.writes`.
_FACTS = pa.schema(
    [
        column("format", pa.string(), "", "JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF"),
        column("width", pa.int32(), "pixels", "width of the full picture, upright"),
        column("height", pa.int32(), "pixels", "height of the full picture, upright"),
        column("aspect", pa.float32(), "height/width", "shape, as the schedules' ratio"),
        column("file_bytes", pa.int64(), "bytes", "size of the encoded file"),
        column(
            "bytes_per_pixel", pa.float32(), "bytes", "file_bytes / pixels; JPEG photos 0.05..1"
        ),
        column("mode", pa.string(), "", "stored pixels in Pillow's words: L, RGB, CMYK, I;16, ..."),
        column("orientation", pa.int8(), "EXIF", "1..8 as found; width and height are after it"),
        column("sha256", pa.string(), "", "SHA-256 of the file's bytes as hex: exact duplicates"),
    ],
)


@dataclass(frozen=True)
class Probe:
    """Decode ``bytes`` (encoded files) into facts and the transient ``image`` column.

    ``image`` is RGB uint8, upright, with a short side of at most ``short_side`` pixels; never
    enlarged, never stored. A row that cannot be decoded, or has more than ``max_pixels`` pixels,
    gets ``error`` = {stage: probe, type: see `infra.pixels.DecodeError`, message}.
    """

    reads: ClassVar[tuple[str, ...]] = ("bytes", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [*_FACTS, column("image", IMAGE_TYPE, "", "decoded picture; dropped before storage")],
    )
    version: ClassVar[int] = 2

    short_side: int = 512
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise ValueError(f"short_side is {self.short_side}: choose at least 1 pixel")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}: choose at least 1")

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = batch.column("error").to_pylist()
        facts: list[dict[str, object]] = []
        images: list[Pixels | None] = []
        for row, data in enumerate(batch.column("bytes")):
            fact: dict[str, object] = {}
            image = None
            if errors[row] is None:
                try:
                    fact, image = self._open(data.as_py())
                except DecodeError as error:
                    errors[row] = {"stage": "probe", "type": error.type, "message": str(error)}
            facts.append(fact)
            images.append(image)
        table = pa.Table.from_pylist(facts, schema=_FACTS)
        position = batch.schema.get_field_index("error")
        batch = batch.set_column(position, ERROR, pa.array(errors, ERROR.type))
        for field in _FACTS:
            batch = batch.append_column(field, table.column(field.name))
        return batch.append_column(self.writes.field("image"), to_struct(images))

    def _open(self, data: bytes | None) -> tuple[dict[str, object], Pixels]:
        if data is None:
            raise DecodeError("missing_bytes", "the row has no bytes to decode")
        picture = decode(data, self.short_side, self.max_pixels)
        fact = {
            "format": picture.format,
            "width": picture.width,
            "height": picture.height,
            "aspect": picture.height / picture.width,
            "file_bytes": len(data),
            "bytes_per_pixel": len(data) / (picture.width * picture.height),
            "mode": picture.mode,
            "orientation": picture.orientation,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        return fact, picture.rgb
