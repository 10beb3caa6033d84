"""The words of web documents: their texts in order, read as one text by the operators of texts."""

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from infra.schema import ERROR, ERROR_TYPE, column
from operators.language import Language
from operators.text_probe import TextError, TextProbe
from operators.web_page import parse

BETWEEN = "\n\n"  # two texts of a page are two paragraphs

_OTHERS = ("kind", "sha256", "num_turns")  # what a web document is not, or says of itself
_COUNTS = ("num_chars", "num_words", "num_lines")
_WITHOUT = {"stage": "web", "type": "no_text", "message": "the document has pictures alone"}


@dataclass(frozen=True)
class WebText:
    """Write ``num_texts`` and what `TextProbe` and ``language`` say of all texts together.

    A document of pictures alone has counts of 0 and nulls. A row fails, at stage ``web``, where
    `operators.web_page.parse` raises.
    """

    reads: ClassVar[tuple[str, ...]] = ("bytes", "error")
    version: ClassVar[int] = 1

    language: Language | None = field(default_factory=Language)
    probe: TextProbe = field(default_factory=TextProbe)

    @property
    def writes(self) -> pa.Schema:
        own = column("num_texts", pa.int32(), "count", "places with a text that is not blank")
        probed = [f for f in self.probe.writes if f.name not in _OTHERS]
        return pa.schema([own, *probed, *(self.language.writes if self.language else ())])

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = batch["error"].to_pylist()
        counts: list[int | None] = [None] * len(batch)
        samples: list[bytes | None] = [None] * len(batch)
        for row, data in enumerate(batch["bytes"]):
            if errors[row] is not None:
                continue
            try:
                texts = [part.text for part in parse(data.as_py()) if part.text]
            except TextError as error:
                errors[row] = {"stage": "web", "type": error.type, "message": str(error)}
                continue
            counts[row] = len(texts)
            samples[row] = json.dumps({"text": BETWEEN.join(texts)}).encode()
        skipped = [e or (None if n else _WITHOUT) for e, n in zip(errors, counts, strict=True)]
        words = pa.table(
            {
                "bytes": pa.array(samples, pa.large_binary()),
                "error": pa.array(skipped, ERROR_TYPE),
            }
        )
        for operator in (self.probe, *((self.language,) if self.language else ())):
            words = operator(words)
        place = batch.column_names.index("error")
        batch = batch.set_column(place, ERROR, pa.array(errors, ERROR_TYPE))
        for of in self.writes:
            values: list[Any] = counts if of.name == "num_texts" else words[of.name].to_pylist()
            if of.name in _COUNTS:
                values = [0 if n == 0 else v for v, n in zip(values, counts, strict=True)]
            batch = batch.append_column(of, pa.array(values, of.type))
        return batch
