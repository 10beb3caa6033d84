"""Decisions: the recipe's rules over all score groups, in SQL, for every sample of a dataset.

Rules apply in order; a quantile is taken over the rows that passed all earlier ones. NULL fails a
rule as `<rule>:missing`. Then topics are balanced. Quantiles and caps become constants first (one
scan each), so that every part is decided by itself: the driver holds one part at a time.
"""

import math
import time
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import duckdb
import pyarrow as pa

from infra import catalog, runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.schema import DECISIONS, uniform_sql
from infra.storage import Storage
from pipelines.progress import Progress, say
from pipelines.rules import Rule, check_expression, check_rule, failure_sql, value_sql
from pipelines.scored import ScoredPart, scores_sql


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Bound how often topics occur among the kept rows (paper, 5.2 and 5.4); seeded by row.

    ``keep_rates``: share of a topic's rows to keep. ``temperature`` T: topics get shares
    proportional to count^(1/T), the rarest topic kept whole. ``cap``: at most so many rows a topic.
    Given together they apply in this order. Rows without a topic are not balanced.
    """

    by: str = "topic"
    keep_rates: dict[str, float] = field(default_factory=dict)
    temperature: float | None = None
    cap: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for topic, rate in self.keep_rates.items():
            if not 0 <= rate <= 1:
                raise ValueError(f"keep_rates: {topic} is {rate}, expected a share in [0, 1]")
        if self.temperature is not None and self.temperature < 1:
            raise ValueError(f"temperature is {self.temperature}: 1 keeps all, more evens out")
        if self.cap is not None and self.cap < 1:
            raise ValueError(f"cap is {self.cap}: at least 1")

    @property
    def sampled(self) -> str:
        return uniform_sql("sample_id", self.seed)


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
    stage: Literal["decisions", "caption_decisions"] = "decisions"

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
    progress = Progress(table, sum(p.place.samples.parts[p.place.part].num_rows for p in parts))
    there = set(storage.names(f"{table}/{folder}"))
    written = []
    for number, part in enumerate(parts):
        file = f"{folder}/part-{number:05d}.parquet"
        if file.rpartition("/")[2] not in there:
            rows = con.sql(decisions_sql(storage, (part,), config, failures)).to_arrow_table()
            storage.write_part(f"{table}/{file}", rows, DECISIONS, "sample_id")
        status = storage.read_table(f"{table}/{file}", ["status"])["status"].to_pylist()
        written.append(Part(file, len(status), status.count("failed")))
        progress.add(len(status))
    con.close()
    record = TableRecord(
        table, decision.fingerprint, decision.row_spec, "sample_id", tuple(written)
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
    """Turn quantiles and caps into one-row tables; returns each rule's failure expression."""
    base = scores_sql(storage, parts)
    failures: list[str] = []
    for number, rule in enumerate(config.rules):
        cut = None
        if rule.top is not None:
            cut = f"cut_{number}"
            passed = " AND ".join(["error IS NULL", *(f"({f}) IS NULL" for f in failures)])
            scored = (
                f"SELECT {value_sql(rule.expression)} AS score, sample_id FROM ({base}) "
                f"WHERE {passed} AND score IS NOT NULL"
            )
            total = _scalar(con, f"SELECT count(*) FROM ({scored})")
            # The rank of the last kept row: ties are ordered by sample_id, so it is exact.
            # 0.07 of 100 rows is 7 of them, not the 8 that binary fractions round up to.
            last = max(math.ceil(Fraction(str(rule.top)) * total), 1) - 1
            con.execute(
                f"CREATE TEMP TABLE {cut} AS SELECT score, sample_id FROM ({scored}) "
                f"ORDER BY score DESC, sample_id LIMIT 1 OFFSET {last}"
            )
        failures.append(failure_sql(rule, cut))
    if config.balance:
        _prepare_quota(con, base, failures, config.balance)
    return failures


def _prepare_quota(
    con: duckdb.DuckDBPyConnection, base: str, failures: list[str], balance: Balance
) -> None:
    """Table ``quota``: per topic the rate, and the last row under the cap."""
    passed = " AND ".join(["error IS NULL", *(f"({f}) IS NULL" for f in failures)])
    rows = f"SELECT {value_sql(balance.by)} AS topic, sample_id FROM ({base}) WHERE {passed}"
    counts = con.execute(
        f"SELECT topic, count(*) FROM ({rows}) WHERE topic IS NOT NULL GROUP BY topic"
    ).fetchall()
    rates = {topic: balance.keep_rates.get(topic, 1.0) for topic, _ in counts}
    if balance.temperature is not None and counts:
        left = {topic: count * rates[topic] for topic, count in counts if rates[topic] > 0}
        share = {topic: n ** (1 / balance.temperature) / n for topic, n in left.items()}
        most = max(share.values(), default=1.0)
        rates |= {topic: rates[topic] * share[topic] / most for topic in share}
    con.execute(
        "CREATE TEMP TABLE quota (topic VARCHAR, rate DOUBLE, last_u DOUBLE, last_id VARCHAR)"
    )
    for topic, rate in sorted(rates.items()):
        last: Any = (None, None)
        if balance.cap is not None:
            last = con.execute(
                f"SELECT {balance.sampled} AS u, sample_id FROM ({rows}) "
                f"WHERE topic = ? AND u < ? ORDER BY u, sample_id LIMIT 1 OFFSET {balance.cap - 1}",
                [topic, rate],
            ).fetchall()
            last = last[0] if last else (None, None)
        con.execute("INSERT INTO quota VALUES (?, ?, ?, ?)", [topic, rate, *last])


def decisions_sql(
    storage: Storage, parts: tuple[ScoredPart, ...], config: Decide, failures: list[str]
) -> str:
    """The rows of DECISIONS for these parts, given the tables that `prepare_cuts` made."""
    base = scores_sql(storage, parts)
    failed = f"list_filter([{', '.join(failures)}]::VARCHAR[], lambda x: x IS NOT NULL)"
    topic = f"{value_sql(config.balance.by)}::VARCHAR" if config.balance else "NULL::VARCHAR"
    judged = f"SELECT sample_id, error, {topic} AS topic, {failed} AS failed_rules FROM ({base})"
    over = "false"
    if config.balance:
        judged = (
            f"SELECT j.*, rate, last_u, last_id FROM ({judged}) AS j LEFT JOIN quota USING (topic)"
        )
        u = config.balance.sampled
        over = (
            f"({u} >= coalesce(rate, 1) OR {u} > last_u OR ({u} = last_u AND sample_id > last_id))"
        )
    return f"""
        SELECT sample_id,
          CASE WHEN error IS NOT NULL THEN 'failed'
               WHEN len(failed_rules) > 0 OR over_quota THEN 'rejected' ELSE 'kept' END AS status,
          CASE WHEN error IS NOT NULL THEN error.stage || ':' || error.type
               WHEN len(failed_rules) > 0 THEN failed_rules[1]
               WHEN over_quota THEN 'balance:' || topic END AS reason,
          CASE WHEN error IS NOT NULL THEN []::VARCHAR[] ELSE failed_rules END AS failed_rules,
          topic, (status = 'kept')::INTEGER AS copies
        FROM (SELECT *, coalesce({over}, false) AS over_quota FROM ({judged}))
    """


def _scalar(con: duckdb.DuckDBPyConnection, sql: str) -> int:
    [(value,)] = con.execute(sql).fetchall()
    return int(value)
