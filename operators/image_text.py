"""Documents of one picture and its text: text-to-image or image-to-text (paper, 5.1, 5.2, A.1)."""

import string
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from infra.pixels import DecodeError
from infra.schema import DOCUMENTS, uniform
from operators.level_picture import LevelPicture

TASKS = ("t2i", "i2t")


@dataclass(frozen=True)
class ImageText:
    """One document per sample, of the ``task`` that stands in its row.

    ``t2i``: the text, then the picture as target; loss on both.
    ``i2t``: the picture as condition (no loss), one of ``prompts`` if there are any (no loss; drawn
    by ``seed`` and sample_id), then the text (loss).

    The text is put together of ``text``: templates whose fields ``{column}`` are columns of the
    row, in which braces are written twice. A template is left out where one of its columns is null
    or empty; a row for which all are left out fails with type ``no_text``.

    The picture is scaled to cover and centre-cropped to the schedule whose last grid is nearest in
    ratio, at ``level``: 16 pixels per cell of that level's last grid. Nothing is upsampled: a
    picture below that size fails with type ``too_small_for_level``, whatever its role.

    The grids reach from 1:4 to 4:1 in small steps: what is cut away, stored as ``cropped``, is at
    most 7.4% of a picture between them. Beyond, it grows with the ratio, and a picture of which
    more than ``max_cropped`` would go (by default half: longer than 1:8) fails with type
    ``too_elongated``, since its text would speak of what is no longer there. With 1 all are cut.

    Raises ValueError for an unknown level, a quality outside 1 to 100, a share outside 0 to 1, and
    templates with other fields than column names.
    """

    writes: ClassVar[pa.Schema] = pa.schema(
        [DOCUMENTS.field(n) for n in ("sample_ids", "segments")]
    )
    version: ClassVar[int] = 2

    level: int = 256
    jpeg_quality: int = 95
    prompts: tuple[str, ...] = ()
    text: tuple[str, ...] = ("{text}",)
    seed: int = 0
    max_cropped: float = 0.5

    def __post_init__(self) -> None:
        self._at_level()
        if not all(self.prompts):
            raise ValueError("prompts holds an empty prompt: write one, or leave prompts empty")
        if not self.text_columns:
            raise ValueError("text names no column: write at least '{text}'")

    @cached_property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that the text is made of, each once. Raises ValueError."""
        return tuple(dict.fromkeys(name for part in self.text for name in template_fields(part)))

    @property
    def reads(self) -> tuple[str, ...]:
        return ("doc_id", "sample_id", "source", "task", *self.text_columns, "bytes", "error")

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = batch["error"].to_pylist()
        segments = []
        names = ("sample_id", "task", *self.text_columns)
        for row, told in enumerate(batch.select(list(dict.fromkeys(names))).to_pylist()):
            document = None
            if errors[row] is None:
                try:
                    document = self._document(told, batch["bytes"][row].as_py())
                except DecodeError as error:
                    errors[row] = {"stage": "documents", "type": error.type, "message": str(error)}
            segments.append(document)
        place = batch.column_names.index("error")
        batch = batch.set_column(place, "error", pa.array(errors, batch.schema.field("error").type))
        samples = [[sample] for sample in batch["sample_id"].to_pylist()]
        for name, values in (("sample_ids", samples), ("segments", segments)):
            field = self.writes.field(name)
            batch = batch.append_column(field, pa.array(values, field.type))
        return batch

    def _document(self, row: Mapping[str, str | None], data: bytes) -> list[dict[str, Any]]:
        if row["task"] not in TASKS:
            raise AssertionError(f"task {row['task']!r} is none of {', '.join(TASKS)}")
        of_row = {"sample_id": row["sample_id"]}
        text = {"kind": "text", "text": self._text(row), "loss": True} | of_row
        image = {"kind": "image", **self._at_level().of_file(data)} | of_row
        if row["task"] == "t2i":
            return [text, image | {"role": "target", "loss": True}]
        asked = []
        if self.prompts:
            # Its own number: u of the bare id may have decided about the task.
            u = uniform(f"{row['sample_id']}:prompt", self.seed)
            prompt = self.prompts[int(u * len(self.prompts))]
            asked = [{"kind": "text", "text": prompt, "loss": False} | of_row]
        return [image | {"role": "condition", "loss": False}, *asked, text]

    def _text(self, row: Mapping[str, str | None]) -> str:
        parts = [
            part.format_map(row) for part in self.text if all(map(row.get, template_fields(part)))
        ]
        if not any(parts):
            raise DecodeError("no_text", f"{', '.join(self.text_columns)}: nothing to write")
        return "".join(parts)

    def _at_level(self) -> LevelPicture:
        return LevelPicture(self.level, self.jpeg_quality, self.max_cropped)


def template_fields(template: str) -> list[str]:
    """The columns of a template. Raises ValueError unless every field is a bare column name."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"text {template!r}: {error}") from None
    found = []
    for _, name, format_spec, conversion in parsed:
        if name is None:
            continue
        if not name.isidentifier() or format_spec or conversion:
            raise ValueError(f"text {template!r}: {{{name}}} is no column: write `{{column}}`")
        found.append(name)
    return found
