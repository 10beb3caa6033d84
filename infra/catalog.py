"""DuckDB over the workspace: one view per table, joined scores, and the ledger of every sample.

    connect(storage) -> a connection with all views
    write_catalog(storage) -> catalog.sql, for the plain `duckdb` program, run from the workspace

Views list the files of completion records and never glob, so half-written tables stay invisible.
"""

import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

import duckdb

from infra.runs import TableRecord, load_record
from infra.schema import REJECTIONS
from infra.storage import Storage

DEPTH = {
    "videos": 1,
    "shots": 1,
    "samples": 1,
    "scores": 2,
    "duplicates": 2,
    "decisions": 1,
    "frames": 1,
    "caption_decisions": 1,
    "captions": 1,
    "documents": 1,
    "tokens": 1,
    "packs": 1,
}


_TOKENS = re.compile(r"(.+-[0-9]+)(?:-r([0-9]+))?")


@dataclass(frozen=True)
class View:
    name: str
    sql: str

    @property
    def statement(self) -> str:
        return f"CREATE OR REPLACE VIEW {quote(self.name)} AS\n{self.sql};\n"


def connect(
    storage: Storage,
    memory_limit: str = "2GB",
    threads: int = 2,
    views: bool = True,
    database: str = ":memory:",
) -> duckdb.DuckDBPyConnection:
    """A connection that reads nothing but the workspace, with its views; settings are locked.

    Its own tables are in memory, or in the file ``database``; what does not fit into the memory
    goes beside that.
    """
    # Else to a folder of the machine, not into the one the user stands in.
    beside = tempfile.gettempdir() if database == ":memory:" else os.path.dirname(database)
    spill = f"{beside}/nextscale-{os.getpid()}"
    con = duckdb.connect(
        database,
        config={"memory_limit": memory_limit, "threads": threads, "temp_directory": spill},
    )
    if not storage.is_local:
        con.register_filesystem(storage.fs)
    con.execute("SET allowed_directories = ?", [[storage.path() + "/"]])
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")
    if views:
        for view in make_views(storage, absolute=True):
            con.execute(view.statement)
    return con


def records(storage: Storage) -> list[TableRecord]:
    """The records of all complete tables, by name."""
    tables: list[str] = []
    for kind, depth in DEPTH.items():
        level = [kind]
        for _ in range(depth):
            level = [f"{table}/{name}" for table in level for name in storage.names(table)]
        tables += level
    found = (load_record(storage, table) for table in tables)
    return [record for record in found if record is not None]


def scan(storage: Storage, record: TableRecord, absolute: bool = True) -> str:
    """A ``read_parquet([...])`` of exactly the record's files."""
    return scan_files(storage, [record.path(n) for n in range(len(record.parts))], absolute)


def scan_files(storage: Storage, paths: Iterable[str], absolute: bool = True) -> str:
    """A ``read_parquet([...])`` of these files of the workspace, one or more."""
    files = ", ".join(literal(storage.path(p) if absolute else p) for p in paths)
    return f"read_parquet([{files}])"


def make_views(storage: Storage, absolute: bool) -> list[View]:
    """Views over every complete table; paths are relative to the workspace unless ``absolute``."""
    # On an object store there is no current folder to be relative to.
    absolute = absolute or not storage.is_local
    by_kind: dict[str, list[TableRecord]] = {}
    for record in records(storage):
        kind, _, name = record.table.partition("/")
        if kind == "tokens" and tokens_name(name)[1]:
            kind = "token_replicas"  # the same documents again, which must be counted once
        if record.parts:
            by_kind.setdefault(kind, []).append(record)

    def union(kind: str, tables: Iterable[TableRecord], label: str | None) -> str:
        selects = []
        for record in tables:
            name = record.table.split("/")[1]
            extra = f"{literal(name)} AS {label}, " if label else ""
            selects.append(f"SELECT {extra}* FROM {scan(storage, record, absolute)}")
        return "\nUNION ALL BY NAME\n".join(selects)

    views = []
    labels = {"videos": None, "shots": "source", "samples": None, "packs": "pack_set"}
    plain = (
        "videos shots samples decisions frames captions caption_decisions documents tokens packs"
    ).split()
    for kind in plain:
        if kind in by_kind:
            views.append(View(kind, union(kind, by_kind[kind], labels.get(kind, "dataset"))))
    if "frames" in by_kind:
        views.append(View("candidates", _CANDIDATES))
    if "token_replicas" in by_kind:
        views.append(
            View("token_replicas", _replicas(storage, by_kind["token_replicas"], absolute))
        )
    copies: dict[str, list[TableRecord]] = {}
    for record in by_kind.get("duplicates", []):
        copies.setdefault(record.table.split("/")[2], []).append(record)
    for kind, tables in sorted(copies.items()):
        views.append(View(f"duplicates_{kind}", union("duplicates", tables, "dataset")))
    groups: dict[str, list[TableRecord]] = {}
    for record in by_kind.get("scores", []):
        groups.setdefault(record.table.split("/")[2], []).append(record)
    for group, tables in sorted(groups.items()):
        views.append(View(f"scores_{group}", union("scores", tables, "source")))
    groups.pop("embeddings", None)  # vectors are no scores to look at, nor to fail a sample for
    if groups and "samples" in by_kind:
        views.append(View("scores", _joined_scores(sorted(groups))))
    if "decisions" in by_kind:
        views.append(View("ledger", _ledger(by_kind, groups)))
    plans = [
        f"SELECT {literal(record.table.split('/')[1])} AS pack_set, * "
        f"FROM {scan_files(storage, record.facts['plan'], absolute)}"
        for record in by_kind.get("packs", [])
        if isinstance(record.facts["plan"], list)  # older packs have a plan without counts
    ]
    if plans:
        views.append(View("pack_plan", "\nUNION ALL BY NAME\n".join(plans)))
    if storage.names("runs"):
        runs = literal(storage.path("runs/*.json") if absolute else "runs/*.json")
        views.append(View("runs", f"SELECT * FROM read_json_auto({runs}, union_by_name = true)"))
    return views


def tokens_name(name: str) -> tuple[str, int]:
    """The name ``<dataset>-<level>`` of a table of tokens and its replica, 0 for the table itself.

    Replicas are named ``<dataset>-<level>-r<replica>``: the same documents with other noise.
    """
    found = _TOKENS.fullmatch(name)
    return (found[1], int(found[2] or 0)) if found else (name, 0)


def is_rejection(error: str) -> str:
    """The condition that an error is one of REJECTIONS and no failure; null where there is none."""
    return f"{error}.type IN ({', '.join(map(literal, REJECTIONS))})"


def _replicas(storage: Storage, tables: Iterable[TableRecord], absolute: bool) -> str:
    named = [(tokens_name(record.table.partition("/")[2]), record) for record in tables]
    return "\nUNION ALL BY NAME\n".join(
        f"SELECT {literal(name)} AS dataset, {replica} AS replica, * "
        f"FROM {scan(storage, record, absolute)}"
        for (name, replica), record in named
    )


def _joined_scores(groups: list[str]) -> str:
    columns = ", ".join(
        f"{quote(g)}.* EXCLUDE (sample_id, source, error), "
        f"{quote(g)}.error AS {quote(g + '_error')}"
        for g in groups
    )
    joins = "\n".join(
        f"LEFT JOIN {quote('scores_' + g)} AS {quote(g)} USING (sample_id)" for g in groups
    )
    return f"SELECT s.sample_id, s.source, s.key, s.caption, {columns}\nFROM samples AS s\n{joins}"


def _ledger(by_kind: dict[str, list[TableRecord]], groups: dict[str, list[TableRecord]]) -> str:
    """One row per dataset and sample: where it ended, and if it failed, where and why."""
    used = {g: _asks_sql(by_kind["decisions"], g) for g in sorted(groups)}
    asked = {g: asks for g, asks in used.items() if asks}
    errors = ["s.error"]
    errors += [f"CASE WHEN {asks} THEN {quote('e_' + g)}.error END" for g, asks in asked.items()]
    joins = [
        f"LEFT JOIN {quote('scores_' + g)} AS {quote('e_' + g)} USING (sample_id)" for g in asked
    ]
    columns = []
    if "frames" in by_kind:
        joins.append(_join("frames"))
        # A document carries the failures of its own level's frames; there may be other levels.
        errors.append(
            "CASE WHEN documents_of.doc_id IS NULL THEN frames_of.error END"
            if "documents" in by_kind
            else "frames_of.error"
        )
        columns.append("frames_of.num_kept")
    if "captions" in by_kind:
        joins.append(
            "LEFT JOIN captions AS c ON c.dataset = d.dataset AND c.sample_id = d.sample_id"
        )
        # A document may be made of other text than the caption that is missing.
        errors.append(
            "CASE WHEN c.error.type = 'no_caption' AND documents_of.doc_id IS NOT NULL "
            "AND documents_of.error IS NULL THEN NULL ELSE c.error END"
            if "documents" in by_kind
            else "c.error"
        )
        columns.append("c.text AS caption")
    status, reason, copies, rules = "d.status", "d.reason", "d.copies", "d.failed_rules"
    if "caption_decisions" in by_kind:
        joins.append(
            "LEFT JOIN caption_decisions AS cd "
            "ON cd.dataset = d.dataset AND cd.sample_id = d.sample_id"
        )
        # The second judgement is of what the first keeps now, whatever it has kept before.
        kept = "CASE WHEN d.status = 'kept' THEN {} ELSE {} END".format
        status = kept("coalesce(cd.status, d.status)", "d.status")
        reason = kept("cd.reason", "d.reason")
        rules = kept("list_concat(d.failed_rules, cd.failed_rules)", "d.failed_rules")
        copies = "d.copies * coalesce(cd.copies, 1)"  # as often as it is packed
    for kind, column in (("documents", "doc_id"), ("tokens", "num_tokens")):
        if kind in by_kind:
            joins.append(_join(kind))
            errors.append(f"{kind}_of.error")
            columns.append(f"{kind}_of.{column}")
    failure = f"coalesce({', '.join(errors)})"
    listed = "".join(f", {column}" for column in columns)
    return (
        "SELECT d.dataset, d.sample_id, s.source, s.key,\n"
        f"  CASE WHEN {is_rejection(failure)} THEN 'rejected'\n"
        f"    WHEN {failure} IS NOT NULL THEN 'failed' ELSE {status} END AS status,\n"
        f"  coalesce({reason}, {failure}.stage || ':' || {failure}.type) AS reason,\n"
        f"  {rules} AS failed_rules, d.topic, {copies} AS copies,\n"
        f"  {failure}.stage AS failed_stage, {failure}.type AS failed_type,\n"
        f"  {failure}.message AS failed_message{listed}\n"
        "FROM decisions AS d JOIN samples AS s USING (sample_id)\n" + "\n".join(joins)
    )


def _asks_sql(decisions: list[TableRecord], group: str) -> str:
    """Whether the dataset of ``d`` was decided by this score group of the source of ``s``.

    "" if no dataset was; of decisions whose record does not say, all that there are may have been.
    """
    silent, pairs = [], []
    for record in decisions:
        dataset = literal(record.table.split("/")[1])
        if "inputs" not in record.facts:
            silent.append(dataset)
            continue
        tables = [table.split("/") for table in record.facts["inputs"]]
        sources = [table[1] for table in tables if (table[0], table[-1]) == ("scores", group)]
        pairs += [f"({dataset}, {literal(source)})" for source in sources]
    found = [f"d.dataset IN ({', '.join(silent)})"] if silent else []
    found += [f"(d.dataset, s.source) IN ({', '.join(pairs)})"] if pairs else []
    return " OR ".join(found)


def _join(kind: str) -> str:
    """The rows of ``d`` beside what a later table says of them, as ``<kind>_of``."""
    return (
        f"LEFT JOIN ({_OF_SAMPLES[kind]}) AS {kind}_of "
        f"ON {kind}_of.dataset = d.dataset AND {kind}_of.sample_id = d.sample_id"
    )


# What later tables say of a sample, one row each. A sample may be in several documents: the first
# stands for all. Frames and tokens are named <dataset>-<level>; of several levels the most counts.
_OF_SAMPLES = {
    "frames": (
        "SELECT regexp_replace(dataset, '-[0-9]+$', '') AS dataset, sample_id, "
        "max(num_kept) AS num_kept, arg_min(error, dataset) FILTER (error IS NOT NULL) AS error "
        "FROM frames GROUP BY ALL"
    ),
    "documents": (
        "SELECT dataset, sample_id, min(doc_id) AS doc_id, "
        "arg_min(error, doc_id) FILTER (error IS NOT NULL) AS error "
        "FROM (SELECT *, unnest(sample_ids) AS sample_id FROM documents) GROUP BY ALL"
    ),
    "tokens": (
        "SELECT regexp_replace(named, '-[0-9]+$', '') AS dataset, sample_id, "
        "max(num_tokens)::BIGINT AS num_tokens, "
        "arg_min(error, named) FILTER (error IS NOT NULL) AS error "
        "FROM (SELECT dataset AS named, sample_id, sum(num_tokens) AS num_tokens, "
        "arg_min(error, doc_id) FILTER (error IS NOT NULL) AS error "
        "FROM (SELECT *, unnest(sample_ids) AS sample_id FROM tokens) GROUP BY ALL) GROUP BY ALL"
    ),
}

# One row per candidate; pictures stay in `frames`. Whatever statistics its table has are columns.
_CANDIDATES = (
    "SELECT * EXCLUDE (image) FROM (\n"
    "  SELECT dataset, sample_id, place - 1 AS candidate, unnest(told)\n"
    "  FROM (SELECT dataset, sample_id, generate_subscripts(candidates, 1) AS place, "
    "unnest(candidates) AS told FROM frames))"
)


def write_catalog(storage: Storage) -> str:
    """Write ``catalog.sql`` into the workspace and return its path."""
    note = (
        "-- All tables of this workspace as views. From this folder: duckdb -init catalog.sql\n"
        if storage.is_local
        else "-- All tables of this workspace as views. Needs DuckDB's httpfs: INSTALL httpfs;\n"
    )
    views = make_views(storage, absolute=False)
    storage.write("catalog.sql", (note + "\n".join(v.statement for v in views)).encode())
    return storage.path("catalog.sql")


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
