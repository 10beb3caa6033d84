"""What a pack is inside a shard: documents to and from four plain members.

``text.npy`` holds the text ids of all documents one after another (int32), ``input.npy`` and
``target.npy`` the codes of all their images (uint16, or uint32 for a tokenizer of more codes),
``layout.json`` says how to cut them up.
Ids and codes are raw: only `infra.layout` adds vocabulary offsets. Nothing is pickled, and no
array is made larger than the bytes that are there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.layout import Image, Segment, Text
from infra.schedules import MAX_SCALES, SCHEDULES
from packing.npy import read_npy, to_npy

T = TypeVar("T")

TEXT, INPUT, TARGET, LAYOUT = MEMBERS = ("text.npy", "input.npy", "target.npy", "layout.json")
TEXT_DTYPE, SMALL_CODE_DTYPE, CODE_DTYPE = np.dtype("<i4"), np.dtype("<u2"), np.dtype("<u4")
SMALL_CODES = 65_536  # a tokenizer of up to so many has its codes stored as uint16


@dataclass(frozen=True, eq=False)
class Document:
    """A document with its codes, or a slice of one (`packing.slices`): ``copy`` c of it, from 0,
    whose ``segments`` start at ``first_segment`` of the whole."""

    doc_id: str
    copy: int
    task: str
    source: str
    segments: tuple[Segment, ...]
    first_segment: int = 0


def from_tokens(
    tokens: pa.Table,
    copies: Sequence[int] | None = None,
    first_segments: Sequence[int] | None = None,
    num_segments: Sequence[int] | None = None,
) -> list[Document]:
    """The documents of a tokens table, row by row; ``copies`` names the copy of each row.

    Of each row the segments from ``first_segments`` on are taken, ``num_segments`` of them; by
    default from the first, and all that follow. Raises ValueError for a row that has no segments
    (it failed and belongs in no pack), and for a range that is empty or reaches beyond the row's.
    """
    segments = tokens["segments"].combine_chunks()
    columns = dict(
        zip(segments.type.value_type.names, segments.values.flatten(), strict=True)
    )  # flatten, unlike field, heeds offsets
    lists = {name: _rows(columns[name]) for name in ("text_ids", "input_codes", "target_codes")}
    plain = {
        name: columns[name].to_pylist()
        for name in ("kind", "role", "loss", "schedule", "num_scales")
    }

    def segment(i: int) -> Segment:
        if plain["kind"][i] == "text":
            return Text(lists["text_ids"][i], plain["loss"][i])
        return Image(
            plain["schedule"][i],
            plain["num_scales"][i],
            lists["input_codes"][i],
            lists["target_codes"][i],
            plain["role"][i],
            plain["loss"][i],
        )

    ids, tasks, sources = (tokens[name].to_pylist() for name in ("doc_id", "task", "source"))
    offsets, failed = segments.offsets.to_numpy(), segments.is_null().to_pylist()
    documents = []
    for row, doc_id in enumerate(ids):
        if failed[row]:
            raise ValueError(f"document {doc_id} has no tokens: it failed and cannot be packed")
        size = int(offsets[row + 1] - offsets[row])
        first = int(first_segments[row]) if first_segments is not None else 0
        length = int(num_segments[row]) if num_segments is not None else size - first
        whole = first_segments is None and num_segments is None
        if not whole and not (first >= 0 and length >= 1 and first + length <= size):
            what = f"{length} from segment {first} on are no slice of it"
            raise ValueError(f"document {doc_id} has {size} segments: {what}")
        start = int(offsets[row]) + first
        parts = tuple(segment(i) for i in range(start, start + length))
        copy = int(copies[row]) if copies is not None else 0
        documents.append(Document(doc_id, copy, tasks[row], sources[row], parts, first))
    return documents


def encode(documents: Sequence[Document], num_codes: int = SMALL_CODES) -> dict[str, bytes]:
    """The members of a pack, by name; the bytes are a function of the arguments alone.

    ``num_codes`` of the tokenizer, not the codes met, says how wide codes are. Raises ValueError
    for a code that it does not have.
    """
    segments = [segment for document in documents for segment in document.segments]
    images = [segment for segment in segments if isinstance(segment, Image)]
    layout = {
        "documents": [
            {
                "doc_id": document.doc_id,
                "copy": document.copy,
                "task": document.task,
                "source": document.source,
                "first_segment": document.first_segment,
                "segments": [_describe(segment) for segment in document.segments],
            }
            for document in documents
        ],
    }
    texts = [segment.ids for segment in segments if isinstance(segment, Text)]
    codes = {
        INPUT: _joined([image.input_codes for image in images]),
        TARGET: _joined([image.target_codes for image in images]),
    }
    for name, values in codes.items():
        if values.size and (values.min() < 0 or values.max() >= num_codes):
            raise ValueError(
                f"{name}: codes reach from {values.min()} to {values.max()}, the tokenizer has "
                f"{num_codes}"
            )
    dtype = SMALL_CODE_DTYPE if num_codes <= SMALL_CODES else CODE_DTYPE
    return {
        TEXT: to_npy(_joined(texts), TEXT_DTYPE),
        INPUT: to_npy(codes[INPUT], dtype),
        TARGET: to_npy(codes[TARGET], dtype),
        LAYOUT: json.dumps(layout, sort_keys=True, separators=(",", ":")).encode(),
    }


def decode(members: Mapping[str, bytes]) -> tuple[Document, ...]:
    """The documents of a pack. Raises ValueError if the members contradict each other."""
    text = read_npy(members[TEXT], TEXT, TEXT_DTYPE)
    inputs = read_npy(members[INPUT], INPUT, SMALL_CODE_DTYPE, CODE_DTYPE)
    targets = read_npy(members[TARGET], TARGET, SMALL_CODE_DTYPE, CODE_DTYPE)
    text_at = code_at = 0
    documents = []
    for record in _list(json.loads(members[LAYOUT]), "documents"):
        segments: list[Segment] = []
        for part in _list(record, "segments"):
            loss = _field(part, "loss", bool)
            kind = _field(part, "kind", str)
            if kind == "text":
                end = text_at + _field(part, "length", int)
                if not text_at <= end <= len(text):
                    raise ValueError(f"{LAYOUT} cuts text at {end} of {len(text)} ids")
                segments.append(Text(text[text_at:end], loss))
                text_at = end
            elif kind == "image":
                schedule, num_scales = (_field(part, k, int) for k in ("schedule", "num_scales"))
                end = code_at + _num_codes(schedule, num_scales, _field(part, "length", int))
                codes = inputs[code_at:end], targets[code_at:end]
                segments.append(Image(schedule, num_scales, *codes, part.get("role"), loss))
                code_at = end
            else:
                raise ValueError(f"{LAYOUT}: `kind` is {kind!r}, expected text or image")
        doc_id, task, source = (_field(record, k, str) for k in ("doc_id", "task", "source"))
        copy, first = (_natural(record, k) for k in ("copy", "first_segment"))
        documents.append(Document(doc_id, copy, task, source, tuple(segments), first))
    if (text_at, code_at, code_at) != (len(text), len(inputs), len(targets)):
        raise ValueError(
            f"{LAYOUT} describes {text_at} text ids and {code_at} codes, the arrays hold "
            f"{len(text)} and {len(inputs)} inputs, {len(targets)} targets"
        )
    return tuple(documents)


def _describe(segment: Segment) -> dict[str, Any]:
    if isinstance(segment, Text):
        return {"kind": "text", "loss": segment.loss, "length": len(segment.ids)}
    return {
        "kind": "image",
        "role": segment.role,
        "loss": segment.loss,
        "schedule": segment.schedule,
        "num_scales": segment.num_scales,
        "length": segment.num_codes,
    }


def _rows(lists: pa.ListArray) -> list[NDArray[np.int32]]:
    """The rows of a list column as int32 arrays; null is empty."""
    offsets = lists.offsets.to_numpy()
    values = lists.values.to_numpy(zero_copy_only=False).astype(np.int32)
    return np.split(values[: offsets[-1]], offsets[1:-1]) if len(lists) else []


def _joined(parts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _num_codes(schedule: int, num_scales: int, length: int) -> int:
    if not (0 <= schedule < len(SCHEDULES) and 1 <= num_scales <= MAX_SCALES):
        raise ValueError(f"{LAYOUT} names schedule {schedule} with {num_scales} scales")
    expected = SCHEDULES[schedule].num_codes(num_scales)
    if length != expected:
        raise ValueError(f"{LAYOUT} says {length} codes where the schedule has {expected}")
    return expected


def _field(record: Any, name: str, type_: type[T]) -> T:
    value = record.get(name) if isinstance(record, dict) else None
    if type(value) is not type_:  # exact: a bool is no length
        raise ValueError(f"{LAYOUT}: `{name}` is {value!r}, expected {type_.__name__}")
    return value


def _natural(record: Any, name: str) -> int:
    value = _field(record, name, int)
    if not 0 <= value < 2**31:
        raise ValueError(f"{LAYOUT}: `{name}` is {value}, expected 0 to {2**31 - 1}")
    return value


def _list(record: Any, name: str) -> list[Any]:
    return _field(record, name, list)
