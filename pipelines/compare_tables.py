"""``nextscale verify A B``: what differs between two tables, or two sets of packs.

For what was made twice, on another class of device or by another version: rows that only one has,
columns that differ in rows that both have, and of tokens how many text ids and codes these are.
DuckDB joins 64 bits of each value, and looks again at the rows that differ; neither table is held.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb

from infra import catalog, runs
from infra.catalog import quote
from infra.config import ConfigError
from infra.runs import TableRecord
from infra.storage import Storage

DEPTHS = (3, 2, 1)  # of a table's name: scores/<source>/<group> has three words
VALUES = ("text_ids", "input_codes", "target_codes")
BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Table:
    """A table of a workspace, by the name that the user gave; ``files`` if not its record's."""

    name: str
    storage: Storage
    record: TableRecord
    key: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """What two tables do not have in common.

    ``columns``: name and rows that differ, of those that both have; ``values``: name, differing
    values and all of them, in these rows, with those of lists of other lengths.
    """

    num_rows: tuple[int, int]
    num_only: tuple[int, int]
    first_only: tuple[str, str]  # a key of each; "" for none
    columns: tuple[tuple[str, int], ...]
    only_columns: tuple[tuple[str, ...], tuple[str, ...]]
    values: tuple[tuple[str, int, int], ...]

    @property
    def is_none(self) -> bool:
        return not (any(self.num_only) or self.columns or any(self.only_columns))


def main(first: str, second: str, workspace: str) -> int:
    """Compare, print, and return the exit status: 0, or 1 where something differs.

    Raises ConfigError for a table that is not there, and for two of different kinds.
    """
    ours, theirs = (find_table(name, workspace) for name in (first, second))
    if ours.record.key != theirs.record.key:
        raise ConfigError(
            f"{first} has the key {ours.record.key}, {second} {theirs.record.key}: name two tables "
            "of one kind"
        )
    pairs = [("rows", ours, theirs)]
    if all("plan" in of.record.facts for of in (ours, theirs)):
        pairs = [("packs", ours, theirs), ("plan", _plan(ours), _plan(theirs))]
    print(f"{first} and {second}")
    facts = [*_facts(ours.record, theirs.record)]
    for line in facts:
        print(line)
    same = not facts
    for what, left, right in pairs:
        found = compare(left, right)
        same = same and found.is_none
        for line in describe(what, found):
            print(line)
    return 0 if same else 1


def find_table(name: str, workspace: str) -> Table:
    """A table by its name in the workspace (of packs without ``packs/``), or by its path.

    Raises ConfigError, in one line, where it is not there.
    """
    words = name.rstrip("/").split("/")
    places = [(workspace, name), (workspace, f"packs/{name}")]
    places += [("/".join(words[:-n]), "/".join(words[-n:])) for n in DEPTHS if len(words) > n]
    for root, table in places:
        storage = Storage(root or os.sep)
        record = runs.load_record(storage, table)
        if record is not None and record.table == table:
            files = tuple(record.path(part) for part in range(len(record.parts)))
            return Table(name, storage, record, record.key, files)
    raise ConfigError(
        f"{name} is no table of the workspace {workspace}, and no path of a table in another one"
    )


def compare(ours: Table, theirs: Table) -> Difference:
    """What differs between two tables of one key."""
    with (
        catalog.connect(ours.storage, views=False) as con,
        catalog.connect(theirs.storage, views=False) as other,
    ):
        columns = [_columns(con, ours), _columns(other, theirs)]
        both = [name for name in columns[0] if name in columns[1] and name != ours.key]
        hashes = ", ".join(
            [f"{quote(ours.key)} AS key", *(f"hash({quote(c)}) AS {quote(c)}" for c in both)]
        )
        con.execute(f"CREATE TEMP TABLE a AS SELECT {hashes} FROM {_scan(ours)}")
        _take(con, "b", other, f"SELECT {hashes} FROM {_scan(theirs)}")
        differs = " OR ".join(f"a.{quote(c)} <> b.{quote(c)}" for c in both) or "false"
        con.execute(
            f"CREATE TEMP TABLE changed AS SELECT key FROM a JOIN b USING (key) WHERE {differs}"
        )
        counts = con.execute(
            "SELECT count(a.key), count(b.key), count(*) FILTER (b.key IS NULL), "
            "count(*) FILTER (a.key IS NULL), "
            "coalesce(min(a.key) FILTER (b.key IS NULL)::VARCHAR, ''), "
            "coalesce(min(b.key) FILTER (a.key IS NULL)::VARCHAR, '')"
            + "".join(f", count(*) FILTER (a.{quote(c)} <> b.{quote(c)})" for c in both)
            + " FROM a FULL JOIN b ON a.key = b.key"
        ).fetchall()[0]
        changed = [(name, n) for name, n in zip(both, counts[6:], strict=True) if n]
        values: tuple[tuple[str, int, int], ...] = ()
        if ours.record.table.startswith("tokens/") and "segments" in dict(changed):
            values = _values(con, other, ours, theirs)
    only = [
        tuple(name for name in of if name not in beside) for of, beside in (columns, columns[::-1])
    ]
    return Difference(
        counts[:2], counts[2:4], counts[4:6], tuple(changed), (only[0], only[1]), values
    )


def describe(what: str, found: Difference) -> Iterator[str]:
    """What differs, as lines."""
    if found.is_none:
        yield f"  {what}: {found.num_rows[0]:,}, all equal"
        return
    yield f"  {what}: {found.num_rows[0]:,} and {found.num_rows[1]:,}"
    for place, count, key, columns in zip(
        ("first", "second"), found.num_only, found.first_only, found.only_columns, strict=True
    ):
        if count:
            yield f"    only in the {place}: {count:,}, for example {key}"
        if columns:
            yield f"    only the {place} has the columns {', '.join(columns)}"
    common = found.num_rows[0] - found.num_only[0]
    for name, count in found.columns:
        yield f"    {name} differs in {count:,} of {common:,}"
    for name, count, total in found.values:
        yield f"    {name} in these: {count:,} of {total:,} differ ({count / max(total, 1):.4%})"


def _facts(ours: TableRecord, theirs: TableRecord) -> Iterator[str]:
    """Facts that say other things: plans and versions are names, and differ by themselves."""
    named = ("plan", "components", "tokens_version")
    for name in sorted(ours.facts.keys() | theirs.facts.keys()):
        left, right = ours.facts.get(name), theirs.facts.get(name)
        if left != right and name not in named:
            yield f"  {name}: {left} and {right}"


def _plan(packs: Table) -> Table:
    files: Sequence[str] = packs.record.facts["plan"]
    return Table(packs.name, packs.storage, packs.record, "row", tuple(files))


def _scan(table: Table) -> str:
    return catalog.scan_files(table.storage, table.files)


def _columns(con: duckdb.DuckDBPyConnection, table: Table) -> list[str]:
    return con.sql(f"SELECT * FROM {_scan(table)} LIMIT 0").columns


def _take(
    con: duckdb.DuckDBPyConnection, name: str, other: duckdb.DuckDBPyConnection, query: str
) -> None:
    """A query of the other workspace's connection as a table of ours, batch by batch."""
    reader = other.sql(query).to_arrow_reader(BATCH_ROWS)
    con.register("taken", reader)
    con.execute(f"CREATE TEMP TABLE {name} AS FROM taken")
    con.unregister("taken")


def _values(
    con: duckdb.DuckDBPyConnection, other: duckdb.DuckDBPyConnection, ours: Table, theirs: Table
) -> tuple[tuple[str, int, int], ...]:
    """Ids and codes of the rows that differ, compared one by one."""
    part = f"SELECT {quote(ours.key)} AS key, segments FROM "
    # Of the other workspace only the rows that differ are taken.
    _take(other, "wanted", con, "FROM changed")
    _take(con, "b_rows", other, f"{part}{_scan(theirs)} WHERE key IN (FROM wanted)")
    paired = (
        "SELECT unnest(list_zip(a.segments, b.segments)) AS pair FROM "
        f"({part}{_scan(ours)}) AS a JOIN b_rows AS b USING (key)"
    )
    found = []
    for name in VALUES:
        lists = f"coalesce(pair[1].{name}, []) AS x, coalesce(pair[2].{name}, []) AS y"
        [(count, total)] = con.execute(
            "SELECT coalesce(sum(len(list_filter(list_zip(x, y), "
            "lambda p: p[1] IS DISTINCT FROM p[2]))), 0)::BIGINT, "
            "coalesce(sum(greatest(len(x), len(y))), 0)::BIGINT "
            f"FROM (SELECT {lists} FROM ({paired}))"
        ).fetchall()
        found.append((name, count, total))
    return tuple(found)
