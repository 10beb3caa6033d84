"""Which documents are packed, how often, and what they cost: the pass before the manifest.

DuckDB reads the light columns of all tokens once, on disk where they do not fit into its memory,
and counts exactly (integers), so that the budget does not depend on threads or on the order of
rows. Everything that would make packs impossible is told here, before any work.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra import catalog
from infra.config import ConfigError
from infra.storage import Storage
from packing import strategies
from packing.cost import Coefficients, cost
from packing.plan import Packing
from pipelines.pack_phase import PackComponent, token_ranges
from pipelines.replicas import COUNTS

MAX_NAMED = 1_000  # hashes of ids that may repeat, looked at one by one
BATCH_ROWS = 1 << 16  # of a stream
GROUPED_ROWS = 1 << 21  # that DuckDB joins or groups at a time


@dataclass(frozen=True)
class Totals:
    """A component gone through once: documents, the most copies of one, sums over all copies.

    ``dearest`` is the cost of the dearest document within the token cap, 0 where there is none.
    """

    num_documents: int
    most_copies: int
    num_tokens: int
    num_loss: int
    num_pairs: int
    dearest: float


def select(
    con: duckdb.DuckDBPyConnection,
    storage: Storage,
    components: Sequence[PackComponent],
    packing: Packing,
    of: Coefficients,
) -> list[Totals]:
    """What there is to pack, per component; leaves the tables that `copies_of` reads in ``con``.

    Raises ConfigError for a component without documents or copies, and for an id that is there
    twice.
    """
    _check_unique(con, storage, components)
    found = []
    for number, component in enumerate(components):
        _count_copies(con, storage, component, number)
        totals = _add_up(con, storage, component, number, packing, of)
        if not totals.num_documents:
            tasks = f" of task {' or '.join(component.tasks)}" if component.tasks else ""
            raise ConfigError(
                f"{component.tokens.table} holds no document{tasks} to pack: see `nextscale stats`"
            )
        if not totals.most_copies:
            raise ConfigError(
                f"{component.name}: the decisions leave no document a copy: loosen `balance`"
            )
        found.append(totals)
    return found


def budget_of(
    components: Sequence[PackComponent],
    totals: Sequence[Totals],
    packing: Packing,
    of: Coefficients,
) -> float:
    """The most cost of a pack (`packing.strategies.budget_of`) at the mean cost of the mixture."""
    weight = math.fsum(component.share for component in components)
    per_token = [
        component.share
        * float(cost(one.num_tokens, one.num_loss, one.num_pairs, of))
        / one.num_tokens
        for component, one in zip(components, totals, strict=True)
    ]
    dearest = max(one.dearest for one in totals)
    return strategies.budget_of(math.fsum(per_token) / weight, dearest, packing)


def copies_of(
    con: duckdb.DuckDBPyConnection, component: PackComponent, number: int, parts: range
) -> list[NDArray[np.int64]] | None:
    """How often the documents of these parts of the tokens are packed, row by row.

    None where all are packed ``component.copies`` times.
    """
    if not component.decisions:
        return None
    found = [np.full(component.tokens.parts[part].num_rows, 1, np.int64) for part in parts]
    rows = con.sql(
        f"SELECT part, token_row, copies FROM copies_{number} "
        f"WHERE part BETWEEN {parts.start} AND {parts.stop - 1}"
    ).to_arrow_table()
    part, row, copies = (column.to_numpy() for column in rows.columns)
    for place, of_part in enumerate(found):
        here = part == parts.start + place
        of_part[row[here]] = copies[here]
        of_part *= component.copies
    return found


def _rows(storage: Storage, component: PackComponent, columns: str, parts: range) -> str:
    """A select of the component's documents in some parts of its tokens, with their place."""
    files = [component.tokens.path(part) for part in parts]
    return (
        f"SELECT file_index::INTEGER + {parts.start} AS part, file_row_number::INTEGER AS "
        f"token_row, {columns} FROM {catalog.scan_files(storage, files)} WHERE {component.chosen}"
    )


def _count_copies(
    con: duckdb.DuckDBPyConnection, storage: Storage, component: PackComponent, number: int
) -> None:
    """Make the table ``copies_<number>`` of (part, token_row, copies), where copies are not 1.

    A document has as many as the least of its samples; a sample has the product over the stages
    that judged it, 1 where none did. DuckDB sorts on disk, but joins and groups so many rows in
    memory: both sides are sorted into buckets by the sample's hash, which are joined one by one.
    """
    if not component.decisions or not component.tokens.parts:
        return
    sizes = (record.num_rows for record in (component.tokens, *component.decisions))
    buckets = max(1, sum(sizes) // GROUPED_ROWS)
    bucket = f"(hash(sample_id) % {buckets})::INTEGER AS bucket"
    every = range(len(component.tokens.parts))
    samples = _rows(storage, component, "unnest(sample_ids) AS sample_id", every)
    stages = " UNION ALL ".join(
        f"SELECT sample_id, copies FROM {catalog.scan(storage, record)}"
        for record in component.decisions
    )
    for name, rows in (("samples", samples), ("judged", stages)):
        con.execute(f"CREATE TABLE {name} AS SELECT *, {bucket} FROM ({rows}) ORDER BY bucket")
    con.execute("CREATE TABLE unsorted (part INTEGER, token_row INTEGER, copies BIGINT)")
    for one in range(buckets):
        con.execute(
            "INSERT INTO unsorted SELECT part, token_row, coalesce(copies, 1) "
            f"FROM (FROM samples WHERE bucket = {one}) LEFT JOIN (SELECT sample_id, "
            f"product(copies)::BIGINT AS copies FROM judged WHERE bucket = {one} "
            "GROUP BY sample_id) USING (sample_id)"
        )
    con.execute("CREATE TABLE used AS FROM unsorted ORDER BY part, token_row")
    con.execute(f"CREATE TABLE copies_{number} (part INTEGER, token_row INTEGER, copies BIGINT)")
    for parts in token_ranges(component.tokens, GROUPED_ROWS):
        con.execute(
            f"INSERT INTO copies_{number} SELECT part, token_row, min(copies) FROM used "
            f"WHERE part BETWEEN {parts.start} AND {parts.stop - 1} "
            "GROUP BY part, token_row HAVING min(copies) <> 1 ORDER BY part, token_row"
        )
    for name in ("samples", "judged", "unsorted", "used"):
        con.execute(f"DROP TABLE {name}")


def _add_up(
    con: duckdb.DuckDBPyConnection,
    storage: Storage,
    component: PackComponent,
    number: int,
    packing: Packing,
    of: Coefficients,
) -> Totals:
    copies = "coalesce(copies, 1)" if component.decisions else "1"
    sums = ", ".join(f"coalesce(sum({name}::HUGEINT * {copies}), 0)" for name in COUNTS)
    # In the order of `packing.cost.cost`, so that the same floating-point number comes out.
    each = "num_tokens * $token + num_pairs * $pair + num_loss * $loss"
    given = {"token": of.per_token, "pair": of.per_pair, "loss": of.per_loss}
    documents = most = tokens = loss = pairs = 0
    dearest = 0.0
    for parts in token_ranges(component.tokens, GROUPED_ROWS):
        rows = f"({_rows(storage, component, ', '.join(COUNTS), parts)})"
        if component.decisions:
            rows += (
                f" LEFT JOIN (FROM copies_{number} WHERE part BETWEEN {parts.start} AND "
                f"{parts.stop - 1}) USING (part, token_row)"
            )
        [found] = con.execute(
            f"SELECT count(*), coalesce(max({copies}), 0), {sums}, coalesce(max({each}) "
            f"FILTER (num_tokens <= $cap AND {copies} > 0), 0) FROM {rows}",
            given | {"cap": packing.token_cap},
        ).fetchall()
        documents, most = documents + int(found[0]), max(most, int(found[1]))
        tokens, loss, pairs = tokens + int(found[2]), loss + int(found[3]), pairs + int(found[4])
        dearest = max(dearest, float(found[5]))
    times = component.copies
    return Totals(documents, most * times, tokens * times, loss * times, pairs * times, dearest)


def _check_unique(
    con: duckdb.DuckDBPyConnection, storage: Storage, components: Sequence[PackComponent]
) -> None:
    """Raises ConfigError for a document that is given more than once, naming it and its tables."""
    given = " UNION ALL ".join(
        f"SELECT doc_id, {number} AS component FROM {catalog.scan(storage, component.tokens)} "
        f"WHERE {component.chosen}"
        for number, component in enumerate(components)
        if component.tokens.parts
    )
    if not given:
        return
    # By 64 bits of the id, sorted: DuckDB sorts on disk, but groups so many in memory. Then by the
    # whole ids of those that are equal in these.
    with con.cursor() as cursor:
        hashes = cursor.sql(f"SELECT hash(doc_id) AS h FROM ({given}) ORDER BY h")
        found = _repeated(hashes.to_arrow_reader(BATCH_ROWS))
    if found:
        twice = con.execute(
            "SELECT doc_id, min(component), max(component) "
            f"FROM ({given}) WHERE hash(doc_id) IN ({', '.join(map(str, found))}) "
            "GROUP BY doc_id HAVING count(*) > 1 ORDER BY doc_id LIMIT 1"
        ).fetchall()
        for doc_id, first, last in twice:
            tables = [components[number].tokens.table for number in (first, last)]
            raise ConfigError(
                f"document {doc_id} is in {tables[0]} and again in {tables[1]}: ids must be "
                "unique, name tables or `tasks` that have no document in common"
            )


def _repeated(batches: Iterable[pa.RecordBatch]) -> list[int]:
    """The first values, at most `MAX_NAMED`, that a sorted stream of one column holds again."""
    found: list[int] = []
    last = np.zeros(0, np.uint64)
    for batch in batches:
        values = np.concatenate([last, batch.column(0).to_numpy()])
        found += np.unique(values[1:][values[1:] == values[:-1]]).tolist()
        last = values[-1:]
        if len(found) >= MAX_NAMED:
            break
    return found[:MAX_NAMED]
