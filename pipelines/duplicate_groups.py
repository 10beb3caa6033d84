"""From pairs of near rows to groups with one row to keep, in the order of preference.

Groups are not connected components: a chain A ~ B ~ C would merge pictures that are unlike. Rows
are taken best first, and a row is a duplicate iff a better row that is kept is near it. So every
duplicate has a kept row near it, and no two kept rows are near each other. DuckDB does it on disk:

    members   sample_id, part, key, place: rows in order of preference; equal keys are duplicates
    nodes     key, place, num_rows: the best row of each key
    links     place, best: keys whose best row is a duplicate, and the row that it is one of
    copies    sample_id, part, group: the duplicates
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra import catalog
from infra.storage import Storage
from pipelines.rules import value_sql

BATCH_PAIRS = 1 << 17
BYTES_PER_THREAD = 1 << 28
LARGEST = 20  # groups that a record names


def open_database(storage: Storage, folder: str, memory_bytes: int) -> duckdb.DuckDBPyConnection:
    """A database on disk in ``folder`` that reads nothing but the workspace; settings are locked.

    What does not fit into ``memory_bytes`` goes to the same folder.
    """
    # A thread of DuckDB needs some memory of its own, whatever the rows.
    threads = max(1, min(os.cpu_count() or 1, memory_bytes // BYTES_PER_THREAD))
    memory = f"{memory_bytes >> 20}MiB"
    return catalog.connect(storage, memory, threads, False, str(Path(folder) / "groups.duckdb"))


def members_sql(rows: str, key: str, gate: str | None, preferences: Sequence[str]) -> str:
    """The rows of a select that may stand in groups: sample_id, key, p0, p1, ...

    Failed rows may not, nor those without a key or that the gate (checked) does not let through.
    """
    # NaN sorts highest in DuckDB, and is nothing to prefer.
    ranks = [
        f"nullif({value_sql(expression)}::DOUBLE, 'NaN'::DOUBLE) AS p{i}"
        for i, expression in enumerate(preferences)
    ]
    return (
        f"SELECT {', '.join(['sample_id', f'{key} AS key', *ranks])} FROM ({rows}) "
        f"WHERE error IS NULL AND {key} IS NOT NULL AND {value_sql(gate or 'true')}"
    )


def gather(con: duckdb.DuckDBPyConnection, parts: Sequence[str], num_preferences: int) -> None:
    """Make ``members`` and ``nodes`` of the selects (sample_id, key, p0, p1, ...) of all parts.

    A larger p0 is preferred, then a larger p1, ...; NULL comes last, then the lower id wins.
    """
    for number, sql in enumerate(parts):
        verb = "INSERT INTO gathered" if number else "CREATE TEMP TABLE gathered AS"
        con.execute(f"{verb} SELECT {number} AS part, * FROM ({sql})")
    order = [f"p{i} DESC NULLS LAST" for i in range(num_preferences)]
    con.execute(
        "CREATE TABLE members AS SELECT sample_id, part, key, "
        f"row_number() OVER (ORDER BY {', '.join([*order, 'sample_id'])}) AS place FROM gathered"
    )
    con.execute("DROP TABLE gathered")
    con.execute(
        "CREATE TABLE nodes AS SELECT key, min(place) AS place, count(*) AS num_rows "
        "FROM members GROUP BY key"
    )
    con.execute("CREATE TABLE links (place BIGINT, best BIGINT)")


def link(con: duckdb.DuckDBPyConnection, pairs: str) -> None:
    """Fill ``links`` from a select of pairs (a, b: keys); a pair may stand there twice.

    Pairs with a key that no member has are left out.

    One pass over the pairs in the order of the worse row: when a row's turn comes, all better ones
    are decided. Rounds over all pairs would be as many as the longest chain. Holds a byte a row.
    """
    [(num_places,)] = con.execute("SELECT count(*) FROM members").fetchall()
    kept = bytearray(b"\1") * (num_places + 1)
    # A second connection: the first one is busy with the pairs.
    with con.cursor() as output:
        output.execute("BEGIN")
        ordered = con.sql(
            "SELECT least(x.place, y.place) AS better, greatest(x.place, y.place) AS worse "
            f"FROM ({pairs}) AS pair JOIN nodes AS x ON x.key = a JOIN nodes AS y ON y.key = b "
            "ORDER BY worse, better"
        )
        for batch in ordered.to_arrow_reader(BATCH_PAIRS):
            better, worse = (
                batch[name].to_numpy().astype(np.int64) for name in ("better", "worse")
            )
            found = pa.table(dict(zip(("place", "best"), _drop(kept, better, worse), strict=True)))
            output.register("found", found)
            output.execute("INSERT INTO links FROM found")
            output.unregister("found")
        output.execute("COMMIT")


def _drop(
    kept: bytearray, better: NDArray[np.int64], worse: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Go through pairs in order; returns (dropped places, the best kept row near each).

    ``kept`` is 1 for every place that is kept so far, and is brought up to date.
    """
    view = np.frombuffer(kept, np.uint8)
    # Rows before this batch are decided: their pairs go at once. Of a row's pairs they come first.
    decided = better < worse[0]
    final = decided & (view[better] == 1) & (view[worse] == 1)
    places, first = np.unique(worse[final], return_index=True)
    view[places] = 0
    dropped, best = [places], [better[final][first]]
    later: list[tuple[int, int]] = []
    for a, b in zip(better[~decided].tolist(), worse[~decided].tolist(), strict=True):
        if kept[a] and kept[b]:
            kept[b] = 0
            later.append((b, a))
    if later:
        pairs = np.array(later, np.int64)
        dropped.append(pairs[:, 0])
        best.append(pairs[:, 1])
    return np.concatenate(dropped), np.concatenate(best)


def mark_copies(con: duckdb.DuckDBPyConnection) -> None:
    """Make ``copies`` from ``members``, ``nodes`` and ``links``."""
    con.execute(
        "CREATE TABLE copies AS "
        "WITH chosen AS (SELECT key, coalesce(best, nodes.place) AS best "
        "FROM nodes LEFT JOIN links USING (place) WHERE num_rows > 1 OR best IS NOT NULL) "
        'SELECT m.sample_id, m.part, r.sample_id AS "group" FROM members AS m '
        "JOIN chosen USING (key) JOIN members AS r ON r.place = best "
        "WHERE m.place <> best ORDER BY m.part"
    )


def group_part(con: duckdb.DuckDBPyConnection, number: int, sql: str) -> pa.Table:
    """The rows of part ``number`` (select ``sql``, as in `gather`) as those of DUPLICATES."""
    return con.sql(
        'SELECT sample_id, coalesce(c."group", sample_id) AS "group", '
        'c."group" IS NULL AS representative '
        f"FROM ({sql}) LEFT JOIN (FROM copies WHERE part = {number}) AS c USING (sample_id)"
    ).to_arrow_table()


def group_facts(storage: Storage, files: Sequence[str]) -> dict[str, Any]:
    """Of all parts: ``groups`` of two rows and more, ``copies``, the ``largest`` as [id, rows]."""
    scans = ", ".join(catalog.literal(storage.path(file)) for file in files)
    con = catalog.connect(storage, views=False)
    con.execute(
        'CREATE TEMP TABLE sizes AS SELECT "group", count(*) AS copies '
        f'FROM read_parquet([{scans}]) WHERE NOT representative GROUP BY "group"'
    )
    [(groups, copies)] = con.execute(
        "SELECT count(*), coalesce(sum(copies), 0)::BIGINT FROM sizes"
    ).fetchall()
    largest = con.execute(
        f'SELECT "group", copies + 1 FROM sizes ORDER BY copies DESC, "group" LIMIT {LARGEST}'
    ).fetchall()
    con.close()
    return {"groups": groups, "copies": copies, "largest": [list(group) for group in largest]}
