"""The operator from documents to tokens: pictures to codes, text to ids."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from infra import layout, schedules
from infra.config import ConfigError
from infra.pixels import DecodeError, Pixels
from infra.schedules import NUM_SCALES
from infra.schema import TOKENS, digest
from tokenize_offline import chats, checkpoint, text
from tokenize_offline.codes import extract, per_scale, read_stored
from tokenize_offline.correction import Correction
from tokenize_offline.model import Tokenizer

STAGE = "codes"


class _Place(NamedTuple):
    """A picture of the batch: where its codes belong, and what its noise is seeded by."""

    row: int
    segment: int
    rgb: Pixels
    sample_id: str
    correction: Correction


@dataclass(frozen=True)
class ExtractCodes:
    """Replace ``segments`` by token segments, and count them as `infra.layout` will lay them out.

    A stored picture has the size of its schedule at some level; at a lower ``level`` it is reduced
    by exact area means, a higher one fails with type ``too_small_for_level``. The input codes of a
    target are drawn at ``rate`` (see `Correction`), those of a condition at ``condition_rate``:
    nothing in it is predicted, and at inference it is encoded without noise.

    Pictures of one schedule run together, ``batch_rows`` at a time, the last batch filled up: 1 is
    fastest on a CPU, a GPU wants more, and a pool of larger batches still. ``device`` is the GPU if
    there is one for "". Both change a code only where two are as near as float32 can tell;
    bfloat16, which would change many, is used nowhere.

    Every document ends in ``<|endoftext|>`` (see `chats.add_end`). A text with a role (system,
    user, assistant) is a message of a chat: where it has loss, content and end mark have it, never
    the header. What ends a chat's last message is its mark, so the document's end has no loss
    after it. ``checkpoint`` and ``vocabulary`` are "" for the carried ones.
    """

    reads: ClassVar[tuple[str, ...]] = ("doc_id", "task", "source", "segments", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [TOKENS.field(name) for name in ("segments", "num_tokens", "num_loss", "num_pairs")],
    )
    version: ClassVar[int] = 2
    not_in_output: ClassVar[tuple[str, ...]] = ("device",)

    level: int = 256
    checkpoint: str = ""
    vocabulary: str = ""
    text_size: int = 152_064  # rows of the embedding table before <boi>
    rate: float = 0.6
    condition_rate: float = 0.0
    top_k: int = 8
    temperature: float = 0.1
    seed: int = 0
    replica: int = 0
    batch_rows: int = 1
    device: str = ""

    def __post_init__(self) -> None:
        if self.level not in NUM_SCALES:
            raise ConfigError(f"level is {self.level}: choose {', '.join(map(str, NUM_SCALES))}")
        if self.batch_rows < 1:
            raise ConfigError(f"batch_rows is {self.batch_rows}: use 1 or more")
        if self.device and not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device is {self.device!r}: use cpu, cuda, or '' for what is there")
        _ = self.corrections

    @cached_property
    def corrections(self) -> dict[str, Correction]:
        """The noise of a picture's role."""
        rates = {"target": self.rate, "condition": self.condition_rate}
        more = self.top_k, self.temperature, self.seed, self.replica
        return {role: Correction(rate, *more) for role, rate in rates.items()}

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
        num_codes = checkpoint.read_settings(self.checkpoint).num_codes
        vocabulary = layout.Vocabulary(num_codes, self.text_size)  # refuses sizes beyond int32
        return {
            "tokenizer_id": self.tokenizer_id,
            "vocabulary_id": self.vocabulary_id,
            "num_codes": vocabulary.num_codes,
            "text_vocab_size": vocabulary.text_size,
            "level": self.level,
        }

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        there = torch.cuda.is_available()
        if self.device.startswith("cuda") and not there:
            raise ConfigError(f"device is {self.device}, but there is no GPU: set pool.num_gpus")
        return checkpoint.load(self.checkpoint, self.device or ("cuda" if there else "cpu"))

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
        columns: dict[str, list[Any]] = {"segments": documents, "error": errors}
        for name in layout.Counts._fields:
            columns[name] = [None if c is None else getattr(c, name) for c in counts]
        batch = batch.drop_columns(["segments", "error"])
        for name, values in columns.items():
            field = TOKENS.field(name)
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
            loss, role = segment["loss"] is not False, segment["role"]
            if segment["kind"] == "text":
                if role not in chats.ROLES:
                    raise DecodeError("bad_segment", f"text {index} has the role {role!r}")
                words, sample_id = segment["text"] or "", segment["sample_id"]
                chats.add_text(segments, self._text, words, role, loss, sample_id)
                continue
            if segment["kind"] != "image":
                raise DecodeError("bad_segment", f"segment {index} is of kind {segment['kind']!r}")
            if role not in ("target", "condition"):
                raise DecodeError("bad_segment", f"image {index} has the role {role!r}")
            schedule, rgb = read_stored(segment["image"] or b"", self.level)
            name, correction = segment["sample_id"] or doc_id, self.corrections[role]
            if any(p.sample_id == name and p.correction is correction for _, p in places):
                name = f"{name}/{index}"  # frames of one clip draw noise of their own
            # Not `index`: a message before it may have become several segments, or part of one.
            place = _Place(row, len(segments), rgb, name, correction)
            places.append((schedule.index, place))
            segments.append(
                {
                    "kind": "image",
                    "role": role,
                    "loss": loss,
                    "schedule": schedule.index,
                    "num_scales": NUM_SCALES[self.level],
                    "sample_id": segment["sample_id"],
                }
            )
        for at, place in places:  # only now: a later segment may have been bad
            buckets[at].append(place)
        is_chat = stored[-1]["kind"] == "text" and stored[-1]["role"] is not None
        chats.add_end(segments, self._text, is_chat)
        return segments

    def _encode(
        self,
        schedule: int,
        places: Sequence[_Place],
        documents: list[list[dict[str, Any]] | None],
    ) -> None:
        """Fill in the codes of all pictures of one schedule."""
        # A batch with both roles goes through the quantiser twice: so ordered, one has at most.
        places = sorted(places, key=lambda place: place.correction.rate)
        of, num_scales = schedules.SCHEDULES[schedule], NUM_SCALES[self.level]
        encoded = extract(
            self._tokenizer,
            [place.rgb for place in places],
            [place.sample_id for place in places],
            of,
            num_scales,
            [place.correction for place in places],
            self.batch_rows,
        )
        flips = encoded.input_codes != encoded.target_codes
        columns = {
            "input_codes": encoded.input_codes.astype(np.uint32),
            "target_codes": encoded.target_codes.astype(np.uint32),
            "sampled": per_scale(encoded.sampled, of, num_scales),
            "flipped": per_scale(flips, of, num_scales),
        }
        for at, place in enumerate(places):
            document = documents[place.row]
            assert document is not None
            document[place.segment] |= {name: values[at] for name, values in columns.items()}


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
