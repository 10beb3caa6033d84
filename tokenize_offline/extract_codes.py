"""The operator from documents to tokens: pictures to codes, text to ids."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from infra import layout, pixels, schedules
from infra.config import ConfigError
from infra.pixels import DecodeError, Pixels
from infra.schedules import NUM_SCALES, Schedule, nearest
from infra.schema import DOCUMENTS, TOKENS, digest
from tokenize_offline import checkpoint, text
from tokenize_offline.codes import extract, reduce_by_area
from tokenize_offline.correction import Correction
from tokenize_offline.model import Tokenizer

STAGE = "codes"
ROLES = ("system", "user", "assistant")


class _Place(NamedTuple):
    """A picture of the batch: where its codes belong, and what its noise is seeded by."""

    row: int
    segment: int
    rgb: Pixels
    sample_id: str


@dataclass(frozen=True)
class ExtractCodes:
    """Replace ``segments`` by token segments, and count them as `infra.layout` will lay them out.

    A stored picture has the size of its schedule at some level; at a lower ``level`` it is reduced
    by exact area means, a higher one fails with type ``too_small_for_level``. Pictures of one
    schedule run together in batches of ``batch_rows`` (1 is as fast as any on a CPU).

    Every document ends in ``<|endoftext|>``: appended to its last segment if that is text with
    loss, else as a text segment of its own, so that the ``<eoi>`` of a last picture has something
    to predict. ``checkpoint`` and ``vocabulary`` are "" for the carried ones.

    A text with a role (system, user, assistant) is a message of a chat, written in ChatML (see
    `TextTokenizer.encode_turn`): where it has loss, content and end mark have it, never the header.
    What ends a chat's last message is its mark, so the document's end has no loss after it.
    """

    reads: ClassVar[tuple[str, ...]] = ("doc_id", "task", "source", "segments", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [TOKENS.field(name) for name in ("segments", "num_tokens", "num_loss", "num_pairs")],
    )
    version: ClassVar[int] = 1

    level: int = 256
    checkpoint: str = ""
    vocabulary: str = ""
    text_size: int = 152_064  # rows of the embedding table before <boi>
    rate: float = 0.6
    top_k: int = 8
    temperature: float = 0.1
    seed: int = 0
    replica: int = 0
    batch_rows: int = 1

    def __post_init__(self) -> None:
        if self.level not in NUM_SCALES:
            raise ConfigError(
                f"level is {self.level}: choose one of {', '.join(map(str, NUM_SCALES))}"
            )
        if self.batch_rows < 1:
            raise ConfigError(f"batch_rows is {self.batch_rows}: use 1 or more")
        _ = self.correction

    @property
    def correction(self) -> Correction:
        return Correction(self.rate, self.top_k, self.temperature, self.seed, self.replica)

    @property
    def tokenizer_id(self) -> str:
        """Names the meaning of every code: weights and settings."""
        return checkpoint.identity(self.checkpoint)

    @property
    def vocabulary_id(self) -> str:
        """Names the meaning of every text id."""
        return text.identity(self.vocabulary)

    @property
    def identity(self) -> str:
        return digest(self.tokenizer_id, self.vocabulary_id)

    @property
    def facts(self) -> dict[str, Any]:
        """What must stand beside the tokens for them to be read."""
        settings = checkpoint.read_settings(self.checkpoint)
        return {
            "tokenizer_id": self.tokenizer_id,
            "vocabulary_id": self.vocabulary_id,
            "num_codes": settings.num_codes,
            "text_vocab_size": self.text_size,
            "level": self.level,
        }

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = checkpoint.load(self.checkpoint)
        layout.Vocabulary(tokenizer.settings.num_codes)  # refuses codebooks beyond uint16
        return tokenizer

    @cached_property
    def _text(self) -> text.TextTokenizer:
        tokenizer = text.load(self.vocabulary)
        if tokenizer.size > self.text_size:
            raise ConfigError(
                f"text_size is {self.text_size}: the vocabulary has {tokenizer.size} ids"
            )
        return tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = batch["error"].to_pylist()
        documents: list[list[dict[str, Any]] | None] = [None] * len(batch)
        buckets: dict[int, list[_Place]] = defaultdict(list)
        for row, doc_id in enumerate(batch["doc_id"].to_pylist()):
            if errors[row] is not None:
                continue
            try:
                stored = batch["segments"][row].as_py()
                documents[row] = self._segments(stored, doc_id, row, buckets)
            except DecodeError as error:
                errors[row] = {"stage": STAGE, "type": error.type, "message": str(error)}
        for schedule in sorted(buckets):
            self._encode(schedule, buckets[schedule], documents)
        counts = [None if d is None else layout.count(map(_as_layout, d)) for d in documents]
        place = batch.column_names.index("segments")
        field = self.writes.field("segments")
        batch = batch.set_column(place, field, pa.array(documents, field.type))
        place = batch.column_names.index("error")
        batch = batch.set_column(
            place, DOCUMENTS.field("error"), pa.array(errors, DOCUMENTS.field("error").type)
        )
        for name in ("num_tokens", "num_loss", "num_pairs"):
            values = [None if c is None else getattr(c, name) for c in counts]
            field = self.writes.field(name)
            batch = batch.append_column(field, pa.array(values, field.type))
        return batch

    def _segments(
        self,
        stored: Sequence[dict[str, Any]] | None,
        doc_id: str,
        row: int,
        buckets: dict[int, list[_Place]],
    ) -> list[dict[str, Any]]:
        """Token segments of one document, its pictures still without codes but in ``buckets``."""
        if not stored:
            raise DecodeError("empty", "the document has no segments")
        segments: list[dict[str, Any]] = []
        places: list[tuple[int, _Place]] = []
        for index, segment in enumerate(stored):
            loss = segment["loss"] is not False
            if segment["kind"] == "text":
                words, role = segment["text"] or "", segment["role"]
                if role is None:
                    ids = self._text.encode(words)
                    segments.append(_text_segment(ids, loss, segment["sample_id"]))
                elif role in ROLES:
                    self._add_turn(segments, role, words, loss, segment["sample_id"])
                else:
                    raise DecodeError("bad_segment", f"text {index} has the role {role!r}")
                continue
            if segment["kind"] != "image":
                raise DecodeError("bad_segment", f"segment {index} is of kind {segment['kind']!r}")
            if segment["role"] not in ("target", "condition"):
                raise DecodeError("bad_segment", f"image {index} has the role {segment['role']!r}")
            schedule, rgb = self._picture(segment["image"] or b"")
            name = segment["sample_id"] or f"{doc_id}/{index}"
            # Not `index`: a message before it may have become several segments, or part of one.
            places.append((schedule.index, _Place(row, len(segments), rgb, name)))
            segments.append(
                {
                    "kind": "image",
                    "role": segment["role"],
                    "loss": loss,
                    "schedule": schedule.index,
                    "num_scales": NUM_SCALES[self.level],
                    "sample_id": segment["sample_id"],
                }
            )
        for schedule_index, place in places:  # only now: a later segment may have been bad
            buckets[schedule_index].append(place)
        is_chat = stored[-1]["kind"] == "text" and stored[-1]["role"] is not None
        if segments[-1]["kind"] == "text" and (segments[-1]["loss"] or is_chat):
            segments[-1]["text_ids"].append(self._text.end_of_text)
        else:
            segments.append(_text_segment([self._text.end_of_text], True, None))
        return segments

    def _add_turn(
        self,
        segments: list[dict[str, Any]],
        role: str,
        words: str,
        loss: bool,
        sample_id: str | None,
    ) -> None:
        """Append a message to ``segments``; neighbours of one sample with equal loss are one."""
        if self._text.marks is None:
            raise DecodeError(
                "no_turn_marks", "the vocabulary has no marks for the turns of a chat"
            )
        header, content, line_end = self._text.encode_turn(role, words)
        for ids, counts in ((header, False), (content, loss), (line_end, False)):
            last = segments[-1] if segments else None
            same = ("text", counts, sample_id)
            if last and (last["kind"], last["loss"], last["sample_id"]) == same:
                last["text_ids"] += ids
            else:
                segments.append(_text_segment(ids, counts, sample_id))

    def _picture(self, data: bytes) -> tuple[Schedule, Pixels]:
        """Decode a stored picture and reduce it to this level."""
        rgb = pixels.decode(data).rgb
        height, width = rgb.shape[:2]
        schedule = nearest(height, width)
        wanted = schedule.image_size(self.level)
        stored = {schedule.image_size(level): level for level in NUM_SCALES}.get((height, width))
        if stored is None:
            raise DecodeError("wrong_size", f"{width}x{height} is the size of no schedule's level")
        if stored < self.level:
            raise DecodeError(
                "too_small_for_level",
                f"{width}x{height} of level {stored} is below {wanted[1]}x{wanted[0]}",
            )
        return schedule, reduce_by_area(rgb, height // wanted[0])

    def _encode(
        self,
        schedule: int,
        places: Sequence[_Place],
        documents: list[list[dict[str, Any]] | None],
    ) -> None:
        """Fill in the codes of all pictures of one schedule."""
        encoded = extract(
            self._tokenizer,
            [place.rgb for place in places],
            [place.sample_id for place in places],
            schedules.SCHEDULES[schedule],
            NUM_SCALES[self.level],
            self.correction,
            self.batch_rows,
        )
        for at, place in enumerate(places):
            document = documents[place.row]
            assert document is not None
            document[place.segment] |= {
                "input_codes": encoded.input_codes[at].astype(np.uint16),
                "target_codes": encoded.target_codes[at].astype(np.uint16),
            }


def _text_segment(ids: list[int], loss: bool, sample_id: str | None) -> dict[str, Any]:
    return {
        "kind": "text",
        "loss": loss,
        "text_ids": ids,
        "schedule": -1,
        "num_scales": 0,
        "sample_id": sample_id,
    }


def _as_layout(segment: dict[str, Any]) -> layout.Segment:
    if segment["kind"] == "text":
        return layout.Text(np.array(segment["text_ids"], np.int32), segment["loss"])
    return layout.Image(
        segment["schedule"],
        segment["num_scales"],
        segment["input_codes"],
        segment["target_codes"],
        segment["role"],
        segment["loss"],
    )
