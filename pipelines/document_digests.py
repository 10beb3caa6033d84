"""Documents as digests, row by row: as the packs hold them, and as the tokens do.

Two tables that a join can compare without a code in memory. A segment is its form (a line of text:
kind, role, loss, schedule) and 64 bits of its ids or codes; the rows of tokens also say what each
segment counts alone, from which follow the counts of any range of them.
"""

import hashlib
import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.schedules import SCHEDULES
from infra.segments import Counts, Image, Role, Text, count
from packing.members import Document

PACKED = pa.schema(
    [
        ("pack", pa.int64()),
        ("position", pa.int32()),
        ("doc_id", pa.string()),
        ("copy", pa.int32()),
        ("first_segment", pa.int32()),
        ("num_segments", pa.int32()),
        ("task", pa.string()),
        ("source", pa.string()),
        ("num_tokens", pa.int64()),
        ("num_loss", pa.int64()),
        ("num_pairs", pa.int64()),
        ("forms", pa.list_(pa.string())),
        ("inputs", pa.list_(pa.uint64())),  # of text ids, or of input codes
        ("targets", pa.list_(pa.uint64())),
    ]
)
TOKENIZED = pa.schema(
    [
        ("component", pa.int16()),
        ("replica", pa.int16()),
        ("part", pa.int32()),
        ("token_row", pa.int32()),
        ("doc_id", pa.string()),
        ("task", pa.string()),
        ("source", pa.string()),
        ("failed", pa.bool_()),
        ("num_tokens", pa.int64()),
        ("num_loss", pa.int64()),
        ("num_pairs", pa.int64()),
        ("lengths", pa.list_(pa.int64())),  # of each segment alone: positions,
        ("predicted", pa.list_(pa.int64())),  # those that are predicted, its first included,
        ("pairs", pa.list_(pa.int64())),  # and pairs
        ("forms", pa.list_(pa.string())),
        ("inputs", pa.list_(pa.uint64())),
        ("targets", pa.list_(pa.uint64())),
    ]
)


class Place(NamedTuple):
    """A part of one of the tables of a component; replica 0 is the tokens themselves."""

    component: int
    replica: int
    part: int


def of_pack(pack: int, documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Rows of `PACKED`: the documents of a pack in their order."""
    rows = []
    for position, document in enumerate(documents):
        forms, inputs, targets = [], [], []
        for segment in document.segments:
            if isinstance(segment, Text):
                forms.append(_form("text", None, segment.loss, None, None))
                inputs.append(_digest(segment.ids))
                targets.append(0)
            else:
                of = segment.role, segment.loss, segment.schedule, segment.num_scales
                forms.append(_form("image", *of))
                inputs.append(_digest(segment.input_codes))
                targets.append(_digest(segment.target_codes))
        rows.append(
            {
                "pack": pack,
                "position": position,
                "doc_id": document.doc_id,
                "copy": document.copy,
                "first_segment": document.first_segment,
                "num_segments": len(document.segments),
                "task": document.task,
                "source": document.source,
                **count(document.segments)._asdict(),
                "forms": forms,
                "inputs": inputs,
                "targets": targets,
            }
        )
    return rows


def of_tokens(tokens: pa.Table, place: Place, first_row: int) -> pa.Table:
    """Rows of `TOKENIZED`: those of a part from ``first_row`` on.

    Read column by column and not as documents, as packing does: what it gets wrong shall not be
    wrong here in the same way.
    """
    plain = ("doc_id", "task", "source", "num_tokens", "num_loss", "num_pairs")
    columns: dict[str, Any] = {name: tokens[name].combine_chunks() for name in plain}
    columns |= {name: np.full(len(tokens), value) for name, value in place._asdict().items()}
    columns["token_row"] = np.arange(first_row, first_row + len(tokens))
    columns["failed"] = tokens["error"].is_valid()
    segments = tokens["segments"].combine_chunks()
    found = _segments(segments)
    # Of a slice of a table offsets do not start at 0; a failed row's list is null, and empty here.
    offsets = segments.offsets.to_numpy() - segments.offsets[0].as_py()
    for name, values in found.items():
        type_ = TOKENIZED.field(name).type
        flat = pa.array(values, type_.value_type)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    return pa.table({name: columns[name] for name in TOKENIZED.names}).cast(TOKENIZED)


def _segments(segments: pa.ListArray) -> dict[str, list[Any]]:
    """What `TOKENIZED` says of segments, of all rows one after another."""
    first, last = segments.offsets[0].as_py(), segments.offsets[-1].as_py()
    flat = segments.values.slice(first, last - first)
    parts = dict(zip(flat.type.names, flat.flatten(), strict=True))
    kinds, roles, losses, schedules, scales = (
        parts[name].to_pylist() for name in ("kind", "role", "loss", "schedule", "num_scales")
    )
    ids, inputs, targets = (
        _lists(parts[name]) for name in ("text_ids", "input_codes", "target_codes")
    )
    found: dict[str, list[Any]] = {
        name: [] for name in ("lengths", "predicted", "pairs", "forms", "inputs", "targets")
    }
    for i, kind in enumerate(kinds):
        if kind == "text":
            alone = _text_alone(len(ids[i]))
            predicted = alone.num_tokens if losses[i] else 0
            form = _form("text", None, losses[i], None, None)
            digests = _digest(ids[i]), 0
        else:
            alone, predicted = _image_alone(schedules[i], scales[i], roles[i], losses[i])
            form = _form(kind, roles[i], losses[i], schedules[i], scales[i])
            digests = _digest(inputs[i]), _digest(targets[i])
        values = (alone.num_tokens, predicted, alone.num_pairs, form, *digests)
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    return found


def _text_alone(length: int) -> Counts:
    return Counts(length, 0, length * (length + 1) // 2)


@lru_cache(maxsize=1024)
def _image_alone(schedule: int, num_scales: int, role: Role, loss: bool) -> tuple[Counts, int]:
    """Counts of an image that is a document, and how many of its tokens are predicted elsewhere."""
    # A text before it, which is not predicted, changes nothing but that <boi> has a predictor.
    codes = np.zeros(SCHEDULES[schedule].num_codes(num_scales), np.int32)
    image = Image(schedule, num_scales, codes, codes, role, loss)
    before = Text(np.zeros(1, np.int32), loss=False)
    return count([image]), count([before, image]).num_loss


def _form(
    kind: str, role: str | None, loss: bool, schedule: int | None, num_scales: int | None
) -> str:
    """A segment without its content, for people too: ``target image, loss, schedule 3 to 12``."""
    of = f"{role} image, schedule {schedule} to scale {num_scales}" if kind == "image" else kind
    return f"{of}, {'loss' if loss else 'no loss'}"


def _digest(values: NDArray[Any]) -> int:
    data = np.ascontiguousarray(values, "<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _lists(lists: pa.ListArray) -> list[NDArray[Any]]:
    """The rows of a list column; null is empty."""
    offsets = lists.offsets.to_numpy()
    values = lists.values.to_numpy(zero_copy_only=False)
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]
