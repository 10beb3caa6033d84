"""Replicas: tables of tokens of the same documents, each with noise of its own.

Self-correction draws the codes that the model reads (`tokenize_offline.correction`). A document
that is packed several times, by balancing or by ``pack.copies``, should not show the same wrong
codes each time: its copy c is taken from replica c modulo their number. Text, schedules and so
lengths are equal in all replicas, which makes one plan hold for all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.config import ConfigError
from infra.runs import TableRecord
from infra.storage import Storage

Ints = NDArray[np.int64]

SHARED = ("tokenizer_id", "vocabulary_id", "num_codes", "text_vocab_size", "level")
"""Facts of tokens that replicas have in common."""


@dataclass(frozen=True)
class Lengths:
    """All documents that have tokens: where each is, and its counts.

    ``part`` and ``row`` hold for every replica.
    """

    doc_ids: list[str]
    part: Ints
    row: Ints
    num_tokens: Ints
    num_loss: Ints
    num_pairs: Ints


def replica_table(name: str, replica: int = 0) -> str:
    """The table of a replica: ``tokens/<name>``, then ``tokens/<name>-r1`` and so on."""
    return f"tokens/{name}-r{replica}" if replica else f"tokens/{name}"


def read_lengths(storage: Storage, tables: Sequence[TableRecord]) -> Lengths:
    """Where the documents are, and how long, from the first table; the others must agree.

    Raises ConfigError, with the document's id, where a replica is of other documents, lengths,
    tokenizer, vocabulary or level.
    """
    first, *others = tables
    for other in others:
        _check_facts(first, other)
    parts = [_empty()]
    for number, lengths in enumerate(_read_parts(storage, first)):
        for other in others:
            _check_part(first, lengths, other, _read_part(storage, other, number))
        parts.append(lengths)
    ids = [doc_id for part in parts for doc_id in part.doc_ids]
    names = ("part", "row", "num_tokens", "num_loss", "num_pairs")
    return Lengths(ids, *(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def _read_parts(storage: Storage, tokens: TableRecord) -> Iterator[Lengths]:
    for number in range(len(tokens.parts)):
        yield _read_part(storage, tokens, number)


def _read_part(storage: Storage, tokens: TableRecord, number: int) -> Lengths:
    names = ["doc_id", "num_tokens", "num_loss", "num_pairs", "error"]
    table = storage.read_table(tokens.path(number), names)
    rows = np.flatnonzero(table["error"].is_null().to_numpy())
    table = table.take(pa.array(rows))
    counts = [table[name].to_numpy().astype(np.int64) for name in names[1:4]]
    return Lengths(table["doc_id"].to_pylist(), np.full_like(rows, number), rows, *counts)


def _empty() -> Lengths:
    return Lengths([], *(np.zeros(0, np.int64) for _ in range(5)))


def _check_facts(first: TableRecord, other: TableRecord) -> None:
    for name in SHARED:
        ours, theirs = first.facts[name], other.facts[name]
        if ours != theirs:
            raise ConfigError(
                f"{other.table} has {name} {theirs}, {first.table} has {ours}: `nextscale "
                "tokenize` makes replicas anew"
            )
    if len(first.parts) != len(other.parts):
        raise ConfigError(
            f"{other.table} has {len(other.parts)} parts, {first.table} has {len(first.parts)}: "
            "they are of other documents, `nextscale tokenize` makes replicas anew"
        )


def _check_part(first: TableRecord, ours: Lengths, other: TableRecord, theirs: Lengths) -> None:
    """Raises ConfigError unless both parts hold the same documents, as long, in the same rows."""
    places = [
        list(zip(of.doc_ids, of.row.tolist(), *_counts(of), strict=True)) for of in (ours, theirs)
    ]
    if places[0] == places[1]:
        return
    # Rows are sorted by id: the lesser of the first two that differ stands in one table only, or
    # is the same document with other counts.
    num_equal = next(
        (i for i, pair in enumerate(zip(*places, strict=False)) if pair[0] != pair[1]),
        min(map(len, places)),
    )
    doc_id = min(rows[num_equal][0] for rows in places if num_equal < len(rows))
    raise ConfigError(
        f"document {doc_id} is not the same in {first.table} and {other.table}: one of them is of "
        "other documents or failed there, `nextscale tokenize` or `nextscale retry` mends it"
    )


def _counts(of: Lengths) -> tuple[list[int], list[int], list[int]]:
    return of.num_tokens.tolist(), of.num_loss.tolist(), of.num_pairs.tolist()
