"""Documents of web pages: their texts and the pictures that were kept, in order (paper, 5.4)."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from infra.pixels import DecodeError
from infra.schema import DOCUMENTS
from operators.level_picture import LevelPicture
from operators.text_probe import TextError
from operators.web_page import Part, parse
from operators.web_text import BETWEEN

TASK = "interleaved"


@dataclass(frozen=True)
class WebDocument:
    """One document per page, its task ``interleaved``: texts and targets, all with loss.

    Pictures that ``images`` (see `operators.web_images`) does not keep are left out. Texts that
    then stand side by side become one segment, a blank line between them: as segments of their own
    they would run into each other. Every text is there in full. Pictures are cut as by
    `operators.image_text`, whatever their shape: those that would lose too much are out by now.

    A row fails, at stage ``documents``, with type ``empty`` if nothing is left, with ``changed`` if
    a picture is not the one that was judged, and with its own type if it cannot be had any more.
    Raises ValueError for an unknown level and a quality outside 1 to 100.
    """

    reads: ClassVar[tuple[str, ...]] = (
        "doc_id",
        "sample_id",
        "source",
        "task",
        "bytes",
        "images",
        "pictures",
        "error",
    )
    writes: ClassVar[pa.Schema] = pa.schema(
        [DOCUMENTS.field(n) for n in ("sample_ids", "segments")]
    )
    version: ClassVar[int] = 1

    level: int = 256
    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        _ = self._cutter

    @property
    def _cutter(self) -> LevelPicture:
        return LevelPicture(self.level, self.jpeg_quality, 1.0)

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = batch["error"].to_pylist()
        samples = batch["sample_id"].to_pylist()
        documents: list[list[dict[str, Any]] | None] = [None] * len(batch)
        for row, sample in enumerate(samples):
            if errors[row] is not None:
                continue
            kept = {
                image["place"]: image for image in batch["images"][row].as_py() if image["kept"]
            }
            files = {file["place"].as_py(): file for file in batch["pictures"][row].values or ()}
            try:
                parts = parse(batch["bytes"][row].as_py())
                segments = self._segments(parts, kept, files)
                documents[row] = [segment | {"sample_id": sample} for segment in segments]
            except (DecodeError, TextError) as error:
                errors[row] = {"stage": "documents", "type": error.type, "message": str(error)}
        place = batch.column_names.index("error")
        batch = batch.set_column(place, "error", pa.array(errors, batch.schema.field("error").type))
        for name, values in (("sample_ids", [[id_] for id_ in samples]), ("segments", documents)):
            of = self.writes.field(name)
            batch = batch.append_column(of, pa.array(values, of.type))
        return batch

    def _segments(
        self,
        parts: list[Part],
        kept: Mapping[int, Mapping[str, Any]],
        files: Mapping[int, pa.Scalar],
    ) -> list[dict[str, Any]]:
        segments: list[dict[str, Any]] = []
        for part in parts:
            if part.text is not None and segments and segments[-1]["kind"] == "text":
                segments[-1]["texts"].append(part.text)
            elif part.text is not None:
                segments.append({"kind": "text", "texts": [part.text], "loss": True})
            if part.place in kept:
                data = _file(files[part.place], kept[part.place])
                picture = self._cutter.of_file(data)
                segments.append({"kind": "image", "role": "target", "loss": True} | picture)
        if not segments:
            raise TextError("empty", "no picture is kept, and there is no text")
        for segment in segments:
            if segment["kind"] == "text":
                segment["text"] = BETWEEN.join(segment.pop("texts"))
        return segments


def _file(file: pa.Scalar, judged: Mapping[str, Any]) -> bytes:
    """The bytes of a kept picture; raises DecodeError unless they are those that were judged."""
    error = file["error"].as_py()
    if error is not None:
        raise DecodeError(error["type"], f"place {judged['place']}: {error['message']}")
    data: bytes = file["data"].as_py()
    if hashlib.sha256(data).hexdigest() != judged["sha256"]:
        raise DecodeError("changed", f"place {judged['place']}: not the picture that was judged")
    return data
