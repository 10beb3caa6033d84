"""Text-to-image documents: the caption, then the picture cut to its schedule (paper, 5.2, A.1)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from infra.pixels import DecodeError, decode, encode_jpeg, resize_crop
from infra.schedules import nearest
from infra.schema import DOCUMENTS


@dataclass(frozen=True)
class TextToImage:
    """One document per sample: a text segment (``text``) and a target image (from ``bytes``).

    The picture is scaled to cover and centre-cropped to the schedule whose last grid is nearest in
    ratio, at ``level``: 16 pixels per cell of that level's last grid. Nothing is upsampled: a
    picture below that size fails with type ``too_small_for_level``.
    """

    reads: ClassVar[tuple[str, ...]] = ("doc_id", "sample_id", "source", "text", "bytes", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [DOCUMENTS.field(n) for n in ("task", "sample_ids", "segments")],
    )
    version: ClassVar[int] = 1

    level: int = 256
    jpeg_quality: int = 95

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = batch["error"].to_pylist()
        segments = []
        columns = (batch[name].to_pylist() for name in ("sample_id", "text"))
        for row, (sample, text) in enumerate(zip(*columns, strict=True)):
            document = None
            if errors[row] is None:
                try:
                    picture = self._picture(batch["bytes"][row].as_py())
                except DecodeError as error:
                    errors[row] = {"stage": "documents", "type": error.type, "message": str(error)}
                else:
                    document = [
                        {"kind": "text", "text": text, "loss": True, "sample_id": sample},
                        {"kind": "image", "role": "target", "loss": True, "sample_id": sample}
                        | picture,
                    ]
            segments.append(document)
        place = batch.column_names.index("error")
        batch = batch.set_column(place, "error", pa.array(errors, batch.schema.field("error").type))
        tasks = pa.repeat(pa.scalar("t2i"), len(batch))
        batch = batch.append_column(self.writes.field("task"), tasks)
        samples = pa.array([[sample] for sample in batch["sample_id"].to_pylist()])
        field = self.writes.field("sample_ids")
        batch = batch.append_column(field, samples.cast(field.type))
        field = self.writes.field("segments")
        return batch.append_column(field, pa.array(segments, field.type))

    def _picture(self, data: bytes) -> dict[str, Any]:
        # Half as large again as the target's short side keeps the reduction to the exact size a
        # true area mean while JPEGs still decode at reduced scale.
        short_side = max(self.level, 1) * 3 // 2
        decoded = decode(data, short_side)
        height, width = nearest(decoded.height, decoded.width).image_size(self.level)
        if decoded.height < height or decoded.width < width:
            raise DecodeError(
                "too_small_for_level",
                f"{decoded.width}x{decoded.height} is below {width}x{height} of level {self.level}",
            )
        rgb = decoded.rgb
        if rgb.shape[0] < height or rgb.shape[1] < width:
            rgb = decode(data).rgb  # extreme ratios: the reduced picture was too small
        crop, _ = resize_crop(rgb, height, width)
        return {"image": encode_jpeg(crop, self.jpeg_quality), "width": width, "height": height}
