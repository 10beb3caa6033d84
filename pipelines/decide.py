"""Decisions: the recipe's rules over all score groups, in SQL, for every sample of a dataset.

Rules apply in order; a quantile is taken over the rows that passed all earlier ones. NULL fails a
rule as `<rule>:missing`. Then topics are balanced. One pass over the parts collects what quantiles
and quotas are taken from; with these as constants every part is decided by itself in a second one.
"""

import math
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from infra import catalog, runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.schema import DECISIONS
from infra.storage import Storage
from pipelines.balance import Balance, absent_topics, copies_sql, prepare_quota
from pipelines.progress import Progress, say
from pipelines.rules import Rule, check_expression, check_rule, failure_sql, value_sql
from pipelines.scored import ScoredPart, scores_sql

Stage = Literal["decisions", "caption_decisions"]


@dataclass(frozen=True, kw_only=True)
class Decide:
    """The rules of a dataset and how its topics are balanced."""

    rules: tuple[Rule, ...] = ()
    balance: Balance | None = None

    def __post_init__(self) -> None:
        names = [rule.name for rule in self.rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"rule name `{name}` stands twice: give every rule its own")

    def check(self, columns: pa.Schema) -> None:
        """Raises ConfigError before any work unless all rules may run over these columns."""
        for rule in self.rules:
            check_rule(rule, columns)
        if self.balance:
            kind = check_expression(self.balance.by, columns, "balance.by")
            if kind != "VARCHAR":
                raise ConfigError(f"balance.by: `{self.balance.by}` is {kind}, expected a name")


@dataclass(frozen=True)
class Decision:
    """The decisions of a dataset: what they are made from, and by which rules.

    ``stage`` is the table: every sample is judged by its scores, captioned ones once more by them.
    """

    dataset: str
    parts: tuple[ScoredPart, ...]
    config: Decide
    stage: Stage = "decisions"

    @property
    def table(self) -> str:
        return f"{self.stage}/{self.dataset}"

    @property
    def inputs(self) -> tuple[TableRecord, ...]:
        found = {record.table: record for part in self.parts for record in part.tables}
        return tuple(found.values())

    @property
    def row_spec(self) -> str:
        # Quantiles and caps look at all rows, so a decision depends on which rows there are.
        return runs.fingerprint(runs.row_spec({"decide": self.config}, []), self.inputs)

    @property
    def fingerprint(self) -> str:
        return self.row_spec


def decide(storage: Storage, decision: Decision) -> TableRecord:
    """Write ``decisions/<dataset>`` and return its record; skip if it is up to date."""
    table, parts, config = decision.table, decision.parts, decision.config
    old = runs.load_record(storage, table)
    if old is not None and old.fingerprint == decision.fingerprint:
        say(f"  {table:<28} up to date ({old.num_rows:,} rows)")
        return old
    started = time.time()
    folder = runs.version_of(decision.fingerprint)
    con = catalog.connect(storage, views=False)
    failures = prepare_cuts(con, storage, parts, config)
    for topic in absent_topics(con, config.balance) if config.balance else ():
        say(f"  note: balance names `{topic}`: no row that passed the rules of {table} has it")
    progress = Progress(table, sum(p.place.samples.parts[p.place.part].num_rows for p in parts))
    there = set(storage.names(f"{table}/{folder}"))
    written = []
    for number, part in enumerate(parts):
        file = f"{folder}/part-{number:05d}.parquet"
        if file.rpartition("/")[2] in there:
            rows = storage.read_table(f"{table}/{file}", ["status"])
        else:
            rows = con.sql(decisions_sql(storage, (part,), config, failures)).to_arrow_table()
            storage.write_part(f"{table}/{file}", rows, DECISIONS, "sample_id")
        num_failed = len(rows.filter(pc.equal(rows["status"], "failed")))
        written.append(Part(file, len(rows), num_failed))
        progress.add(len(rows))
    con.close()
    facts = {"inputs": [one.table for one in decision.inputs]}  # whose errors are its samples'
    record = TableRecord(
        table, decision.fingerprint, decision.row_spec, "sample_id", tuple(written), facts
    )
    runs.finish(storage, record, {"decide": config}, decision.inputs, started)
    progress.close()
    return record


def prepare_cuts(
    con: duckdb.DuckDBPyConnection,
    storage: Storage,
    parts: tuple[ScoredPart, ...],
    config: Decide,
) -> list[str]:
    """Make the one-row tables of quantiles (``cut_0`` ..) and the quota of topics in ``con``.

    Returns each rule's failure expression over `scores_sql`. What is there of an earlier call is
    replaced.
    """
    cuts = {n: f"cut_{n}" for n, rule in enumerate(config.rules) if rule.top is not None}
    if cuts or config.balance:
        _collect(con, storage, parts, config)
    passed = "true"
    for number, cut in cuts.items():
        rule = config.rules[number]
        scored = (
            f"SELECT score_{number} AS score, sample_id FROM judged "
            f"WHERE {passed} AND first_failed > {number} AND score IS NOT NULL"
        )
        total = _scalar(con, f"SELECT count(*) FROM ({scored})")
        # The rank of the last kept row: ties are ordered by sample_id, so it is exact.
        # 0.07 of 100 rows is 7 of them, not the 8 that binary fractions round up to.
        last = max(math.ceil(Fraction(str(rule.top)) * total), 1) - 1
        # Scores alone are sorted, then the ids of those that equal the one at this rank.
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE {cut} AS "
            f"WITH scored AS NOT MATERIALIZED ({scored}), "
            f"bound AS (SELECT score FROM scored ORDER BY score DESC LIMIT 1 OFFSET {last}), "
            "above AS (SELECT count(*) FROM scored WHERE score > (FROM bound)) "
            "SELECT score, sample_id FROM scored WHERE score = (FROM bound) "
            f"ORDER BY sample_id LIMIT 1 OFFSET ({last} - (FROM above))"
        )
        passed += f" AND ({failure_sql(replace(rule, by=f'score_{number}'), cut)}) IS NULL"
    if config.balance:
        rows = f"SELECT topic, sample_id FROM judged WHERE {passed}"
        whole = f"{rows} AND first_failed = {len(config.rules)}"
        prepare_quota(con, whole, config.balance)
    con.execute("DROP TABLE IF EXISTS judged")
    return [failure_sql(rule, cuts.get(number)) for number, rule in enumerate(config.rules)]


def _collect(
    con: duckdb.DuckDBPyConnection,
    storage: Storage,
    parts: tuple[ScoredPart, ...],
    config: Decide,
) -> None:
    """Table ``judged``: what quantiles and the quota ask of the rows that may reach them.

    Columns: sample_id; ``score_<n>`` of each quantile; ``first_failed``, the number of the first
    condition that the row fails, or of rules if none; topic. Rows that fail before the first
    quantile are left out. Tables are read once and joined part by part, which takes the memory of
    one part; what is collected may spill.
    """
    rules = config.rules
    quantiles = [n for n, rule in enumerate(rules) if rule.top is not None]
    conditions = {n: failure_sql(r, None) for n, r in enumerate(rules) if r.top is None}
    first = min(quantiles, default=len(rules))
    fails = [f"WHEN ({f}) IS NOT NULL THEN {n}" for n, f in conditions.items() if n > first]
    failed = f"CASE {' '.join(fails)} ELSE {len(rules)} END" if fails else str(len(rules))
    columns = ["sample_id", f"{failed} AS first_failed"]
    columns += [f"{value_sql(rules[n].expression)} AS score_{n}" for n in quantiles]
    if config.balance:
        columns.append(f"{value_sql(config.balance.by)}::VARCHAR AS topic")
    fine = ["error IS NULL", *(f"({f}) IS NULL" for n, f in conditions.items() if n < first)]
    for number, part in enumerate(parts):
        into = "INSERT INTO judged" if number else "CREATE OR REPLACE TEMP TABLE judged AS"
        base = scores_sql(storage, (part,))
        con.execute(f"{into} SELECT {', '.join(columns)} FROM ({base}) WHERE {' AND '.join(fine)}")


def decisions_sql(
    storage: Storage, parts: tuple[ScoredPart, ...], config: Decide, failures: list[str]
) -> str:
    """The rows of DECISIONS for these parts, given the tables that `prepare_cuts` made."""
    base = scores_sql(storage, parts)
    failed = f"list_filter([{', '.join(failures)}]::VARCHAR[], lambda x: x IS NOT NULL)"
    topic = f"{value_sql(config.balance.by)}::VARCHAR" if config.balance else "NULL::VARCHAR"
    judged = f"SELECT sample_id, error, {topic} AS topic, {failed} AS failed_rules FROM ({base})"
    share = "1"
    if config.balance:
        judged = f"SELECT * FROM ({judged}) LEFT JOIN quota USING (topic)"
        # Only rows that passed need their u, an MD5 each.
        passed = "error IS NULL AND len(failed_rules) = 0"
        share = f"CASE WHEN {passed} THEN {copies_sql(config.balance)} END"
    return f"""
        SELECT sample_id,
          CASE WHEN error IS NOT NULL THEN 'failed'
               WHEN len(failed_rules) > 0 OR share = 0 THEN 'rejected' ELSE 'kept' END AS status,
          CASE WHEN error IS NOT NULL THEN error.stage || ':' || error.type
               WHEN len(failed_rules) > 0 THEN failed_rules[1]
               WHEN share = 0 THEN 'balance:' || topic END AS reason,
          CASE WHEN error IS NOT NULL THEN []::VARCHAR[] ELSE failed_rules END AS failed_rules,
          topic, if(status = 'kept', share, 0)::INTEGER AS copies
        FROM (SELECT *, {share} AS share FROM ({judged}))
    """


def _scalar(con: duckdb.DuckDBPyConnection, sql: str) -> int:
    [(value,)] = con.execute(sql).fetchall()
    return int(value)
