"""Documents of text alone: plain text, instructions and chats (paper, 5.5)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from infra.schema import DOCUMENTS
from operators.text_probe import TextError, Turn, read_texts


@dataclass(frozen=True)
class TextDocument:
    """One document per sample (``bytes`` as in `operators.text_probe`), its task ``text``.

    A plain text is one segment with loss. A chat is a segment per message, with its ``role``; with
    ``loss_on: responses`` only the assistant's have loss, and a chat in which it says nothing fails
    with type ``no_response``. How roles become tokens is for the tokenizer to say.
    """

    reads: ClassVar[tuple[str, ...]] = ("doc_id", "sample_id", "bytes", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [DOCUMENTS.field(n) for n in ("task", "sample_ids", "segments")],
    )
    version: ClassVar[int] = 1

    loss_on: Literal["all", "responses"] = "all"

    def __post_init__(self) -> None:
        if self.loss_on not in ("all", "responses"):
            raise ValueError(f"loss_on is {self.loss_on!r}: choose all or responses")

    def __call__(self, batch: pa.Table) -> pa.Table:
        turns, batch = read_texts(batch, "documents")
        errors = batch["error"].to_pylist()
        samples = batch["sample_id"].to_pylist()
        documents: list[list[dict[str, Any]] | None] = [None] * len(batch)
        for row, (found, sample) in enumerate(zip(turns, samples, strict=True)):
            if found is None:
                continue
            try:
                documents[row] = self._segments(found, sample)
            except TextError as error:
                errors[row] = {"stage": "documents", "type": error.type, "message": str(error)}
        place = batch.column_names.index("error")
        batch = batch.set_column(place, "error", pa.array(errors, DOCUMENTS.field("error").type))
        written = (["text"] * len(batch), [[id_] for id_ in samples], documents)
        # An input of documents may know their task already.
        batch = batch.drop_columns([n for n in self.writes.names if n in batch.column_names])
        for field, values in zip(self.writes, written, strict=True):
            batch = batch.append_column(field, pa.array(values, field.type))
        return batch

    def _segments(self, turns: list[Turn], sample: str) -> list[dict[str, Any]]:
        segments = [
            {
                "kind": "text",
                "text": turn.text,
                "role": turn.role,
                "loss": self.loss_on == "all" or turn.role in (None, "assistant"),
                "sample_id": sample,
            }
            for turn in turns
        ]
        if not any(segment["loss"] and str(segment["text"]).strip() for segment in segments):
            raise TextError("no_response", f"none of {len(turns)} messages is a response")
        return segments
