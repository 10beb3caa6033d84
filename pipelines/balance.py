"""Balancing: how often each topic occurs among the rows that pass all rules (paper, 5.2 and 5.4).

    rows (topic, sample_id)  ->  table quota: one row per topic  ->  copies of every row

The quota is made of counts and ranks over all rows, so that every part is balanced by itself and
the result does not depend on how rows are cut into parts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import duckdb

from infra.config import ConfigError
from infra.schema import uniform_sql


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Bound how often topics occur among the kept rows; seeded by row, whatever the engine.

    Either thin out, in this order:
    ``keep_rates``: share of a topic's rows to keep (a row stays if its u is below it).
    ``temperature`` T: topics get shares proportional to count^(1/T), the rarest topic kept whole.
    ``cap``: at most so many rows a topic, those with the lowest u.

    Or set a distribution: ``target`` gives topics their shares of the result; topics that it does
    not name share what is left to 1 by their counts (at a sum of 1 they are dropped), and where a
    share finds no rows the others grow in proportion. The result is as large as it can be with no
    row used more than ``max_copies`` times, or ``total`` if that is less. Counts are exact: all
    rows of a topic get the same number of copies, those with the lowest u one more.

    Rows without a topic are not balanced. Raises ValueError for impossible values.
    """

    by: str = "topic"
    keep_rates: dict[str, float] = field(default_factory=dict)
    temperature: float | None = None
    cap: int | None = None
    target: dict[str, float] = field(default_factory=dict)
    max_copies: int = 1
    total: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("keep_rates", "target"):
            for topic, share in getattr(self, name).items():
                if not 0 <= share <= 1:
                    raise ValueError(f"{name}: {topic} is {share}, expected a share in [0, 1]")
        if self.temperature is not None and not self.temperature >= 1:
            raise ValueError(f"temperature is {self.temperature}: 1 keeps all, more evens out")
        for name in ("cap", "max_copies", "total"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: at least 1")
        if self.target:
            self._check_target()
        elif self.max_copies > 1 or self.total is not None:
            name = "total" if self.total is not None else "max_copies"
            raise ValueError(f"{name} is {getattr(self, name)} without a `target`: add one")

    def _check_target(self) -> None:
        shares = sum(map(_exact, self.target.values()))
        if shares > 1:
            raise ValueError(f"target: the shares sum to {float(shares):g}: at most 1")
        for name in ("keep_rates", "temperature", "cap"):
            if getattr(self, name):
                raise ValueError(f"target and {name} exclude each other: a target sets all shares")

    @property
    def named_topics(self) -> list[str]:
        return sorted({*self.keep_rates, *self.target})

    @property
    def u(self) -> str:
        """SQL of the row's uniform number."""
        return uniform_sql("sample_id", self.seed)


@dataclass(frozen=True)
class Quota:
    """A topic's rows all get ``copies``; those with u < ``rate`` one more.

    With ``num_more`` only so many of them, by (u, sample_id).
    """

    copies: int
    rate: float
    num_more: int | None = None


def check_topics(balance: Balance | None, known: Collection[str]) -> None:
    """Raises ConfigError for a topic that balancing names and ``topic`` never is."""
    if balance is None or balance.by.strip() != "topic":
        return
    unknown = [topic for topic in balance.named_topics if topic not in known]
    if unknown:
        raise ConfigError(
            f"balance: no row can have the topic `{unknown[0]}`: choose among "
            f"{', '.join(sorted(known))}"
        )


def quotas(balance: Balance, counts: Mapping[str, int]) -> dict[str, Quota]:
    """The quota of every topic, from the number of its rows (at least 1)."""
    if balance.target:
        copies = target_copies(balance, counts)
        return {
            topic: Quota(copies[topic] // n, float(copies[topic] % n > 0), copies[topic] % n)
            for topic, n in counts.items()
        }
    rates = {topic: balance.keep_rates.get(topic, 1.0) for topic in counts}
    if balance.temperature is not None:
        left = {topic: n * rates[topic] for topic, n in counts.items() if rates[topic] > 0}
        share = {topic: n ** (1 / balance.temperature) / n for topic, n in left.items()}
        most = max(share.values(), default=1.0)
        rates |= {topic: rates[topic] * share[topic] / most for topic in share}
    return {topic: Quota(0, rate, balance.cap) for topic, rate in rates.items()}


def target_copies(balance: Balance, counts: Mapping[str, int]) -> dict[str, int]:
    """How many copies each topic gets in all: the target's shares, by largest remainder."""
    rest = 1 - sum(map(_exact, balance.target.values()))
    others = sum(n for topic, n in counts.items() if topic not in balance.target)
    shares = {
        topic: _exact(balance.target[topic]) if topic in balance.target else rest * n / others
        for topic, n in counts.items()
    }
    found = sum(shares.values())
    if not found:
        return dict.fromkeys(counts, 0)
    shares = {topic: share / found for topic, share in shares.items()}
    limits = [balance.max_copies * counts[topic] / s for topic, s in shares.items() if s]
    total = int(min(limits)) if balance.total is None else min(int(min(limits)), balance.total)
    copies = {topic: int(share * total) for topic, share in shares.items()}
    by_remainder = sorted(shares, key=lambda topic: (copies[topic] - shares[topic] * total, topic))
    for topic in by_remainder[: total - sum(copies.values())]:
        copies[topic] += 1
    return copies


def prepare_quota(con: duckdb.DuckDBPyConnection, rows: str, balance: Balance) -> None:
    """Make table ``quota`` from ``rows``, SQL of (topic, sample_id) of all rows that passed."""
    rows = f"SELECT topic, sample_id FROM ({rows}) WHERE topic IS NOT NULL"
    counts = con.execute(f"SELECT topic, count(*) FROM ({rows}) GROUP BY topic").fetchall()
    con.execute(
        "CREATE OR REPLACE TEMP TABLE wanted "
        "(topic VARCHAR, copies INTEGER, rate DOUBLE, num_more BIGINT)"
    )
    for topic, quota in sorted(quotas(balance, dict(counts)).items()):
        values = [topic, quota.copies, quota.rate, quota.num_more]
        con.execute("INSERT INTO wanted VALUES (?, ?, ?, ?)", values)
    # The last row that gets one more; none where fewer rows are there.
    con.execute(
        "CREATE OR REPLACE TEMP TABLE quota AS "
        "SELECT w.topic, w.copies, w.rate, r.u AS last_u, r.sample_id AS last_id "
        "FROM wanted AS w LEFT JOIN ("
        f"SELECT topic, {balance.u} AS u, sample_id FROM ({rows}) "
        "JOIN wanted USING (topic) WHERE num_more > 0 "
        "QUALIFY row_number() OVER (PARTITION BY topic ORDER BY u, sample_id) = num_more"
        ") AS r USING (topic)"
    )


def copies_sql(balance: Balance) -> str:
    """SQL of a row's copies, over its columns and those of its topic's row of ``quota``."""
    upto_last = f"{balance.u} < last_u OR ({balance.u} = last_u AND sample_id <= last_id)"
    more = f"({balance.u} < rate AND (last_u IS NULL OR {upto_last}))::INTEGER"
    return f"coalesce(copies + {more}, 1)"


def absent_topics(con: duckdb.DuckDBPyConnection, balance: Balance) -> list[str]:
    """Topics that balancing names and no row that passed has, given table ``quota``."""
    there = {topic for (topic,) in con.execute("SELECT topic FROM quota").fetchall()}
    return [topic for topic in balance.named_topics if topic not in there]


def _exact(share: float) -> Fraction:
    # As written: three shares of 0.1, 0.2 and 0.7 sum to 1.
    return Fraction(str(share))
