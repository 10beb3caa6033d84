"""Replicas: tables of tokens of the same documents, each with noise of its own.

Self-correction draws the codes that the model reads (`tokenize_offline.correction`). A document
that is packed several times, by balancing, by ``pack.copies`` or in several epochs, should not show
the same wrong codes each time: its copy c is taken from replica c modulo their number. Text,
schedules and so lengths are equal in all replicas, which makes one plan hold for all of them.
"""

from collections.abc import Sequence

import pyarrow as pa

from infra.config import ConfigError
from infra.runs import TableRecord
from infra.storage import Storage

SHARED = ("tokenizer_id", "vocabulary_id", "num_codes", "text_vocab_size", "level")
"""Facts of tokens that replicas have in common."""

COUNTS = ("num_tokens", "num_loss", "num_pairs")
LIGHT = ["doc_id", "task", *COUNTS, "error"]
"""The columns of a tokens table that say which documents there are, and how long."""


def replica_table(name: str, replica: int = 0) -> str:
    """The table of a replica: ``tokens/<name>``, then ``tokens/<name>-r1`` and so on."""
    return f"tokens/{name}-r{replica}" if replica else f"tokens/{name}"


def check_tables(tables: Sequence[TableRecord]) -> None:
    """Raises ConfigError where a replica is of another tokenizer, vocabulary, level or size."""
    first, *others = tables
    for other in others:
        for name in SHARED:
            ours, theirs = first.facts[name], other.facts[name]
            if ours != theirs:
                raise ConfigError(
                    f"{other.table} has {name} {theirs}, {first.table} has {ours}: `nextscale "
                    "tokenize` makes replicas anew"
                )
        if len(first.parts) != len(other.parts):
            raise ConfigError(
                f"{other.table} has {len(other.parts)} parts, {first.table} has "
                f"{len(first.parts)}: they are of other documents, `nextscale tokenize` makes "
                "replicas anew"
            )


def read_light(storage: Storage, tables: Sequence[TableRecord], part: int) -> pa.Table:
    """Which documents a part of the first table holds (columns `LIGHT`); the others must agree.

    Raises ConfigError, with the document's id, where a replica is of other documents or lengths.
    """
    first, *others = tables
    rows = storage.read_table(first.path(part), LIGHT)
    ours = _documents(rows)
    for other in others:
        theirs = _documents(storage.read_table(other.path(part), LIGHT))
        if not ours.equals(theirs):
            raise ConfigError(
                f"document {_first_difference(ours, theirs)} is not the same in {first.table} and "
                f"{other.table}: one of them is of other documents or failed there, `nextscale "
                "tokenize` or `nextscale retry` mends it"
            )
    return rows


def _documents(rows: pa.Table) -> pa.Table:
    """What replicas have in common: the rows, and the documents and counts of those that are fine.

    A row that failed says nothing but its place.
    """
    fine = rows["error"].is_null()
    number = pa.array(range(len(rows)), pa.int64())
    named = rows.select(["doc_id", *COUNTS]).append_column("row", number)
    return named.filter(fine).combine_chunks()


def _first_difference(ours: pa.Table, theirs: pa.Table) -> str:
    """Rows are sorted by id: the lesser of the first two that differ stands in one table only, or
    is the same document with other counts."""
    pages = [list(zip(*table.to_pydict().values(), strict=True)) for table in (ours, theirs)]
    num_equal = next(
        (i for i, pair in enumerate(zip(*pages, strict=False)) if pair[0] != pair[1]),
        min(map(len, pages)),
    )
    return min(str(rows[num_equal][0]) for rows in pages if num_equal < len(rows))
