"""What the report shows of captions, tokens, packs and training, where they are there."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from infra import catalog
from infra.runs import TableRecord
from infra.storage import Storage
from pipelines.charts import BarChart, bar_chart
from pipelines.histograms import Histogram, histogram


@dataclass(frozen=True)
class StyleCount:
    """Answers in a style: how many were drawn, stand as the text, failed, do not pass a check.

    Tokens are sums, as far as the engine counted; latencies, in seconds, are approximate quantiles.
    """

    style: str
    drawn: int
    taken: int
    failed: int
    unchecked: int
    prompt_tokens: int
    tokens: int
    median_s: float | None
    slow_s: float | None  # the 95th percentile


@dataclass(frozen=True)
class CaptionSection:
    """Captions by their makers (engine, model, captions, failed, failing a check), and lengths.

    ``checks`` and ``failures``: name and number of captions.
    """

    makers: list[tuple[str, str, int, int, int]]
    styles: list[StyleCount]
    checks: list[tuple[str, int]]
    failures: list[tuple[str, int]]
    lengths: BarChart | None


@dataclass(frozen=True)
class TokenSection:
    """Documents of a table of tokens, positions by task, and positions per document."""

    table: str
    documents: int
    tokens: int
    tasks: list[tuple[str, int, int]]  # task, documents, positions
    lengths: BarChart | None


@dataclass(frozen=True)
class PackSection:
    """Packs of a set, and what their plan says of fill and balance, in words."""

    table: str
    packs: int
    documents: int
    tokens: int
    facts: list[tuple[str, str]]
    cost: BarChart | None
    cost_label: str
    lengths: BarChart | None


def caption_section(
    con: duckdb.DuckDBPyConnection, storage: Storage, record: TableRecord
) -> CaptionSection:
    scan = catalog.scan(storage, record)
    makers = con.execute(
        "SELECT coalesce(engine, 'none'), coalesce(model, ''), count(*), count(error), "
        f"count(*) FILTER (len(checks) > 0) FROM {scan} GROUP BY ALL ORDER BY 3 DESC, 1, 2 LIMIT 20"
    ).fetchall()
    checks = con.execute(
        f"SELECT unnest(checks) AS name, count(*) AS n FROM {scan} "
        "GROUP BY name ORDER BY n DESC, name LIMIT 20"
    ).fetchall()
    failures = con.execute(
        f"SELECT error.type, count(*) AS n FROM {scan} WHERE error IS NOT NULL "
        "GROUP BY ALL ORDER BY n DESC, 1 LIMIT 20"
    ).fetchall()
    rows = f"SELECT length(text) AS characters FROM {scan} WHERE error IS NULL"
    lengths = histogram(con, rows, "characters")
    return CaptionSection(makers, _styles(con, scan), checks, failures, _chart(lengths))


def _styles(con: duckdb.DuckDBPyConnection, scan: str) -> list[StyleCount]:
    """The styles of a table of captions; none where it is older than they are."""
    names = {name for name, *_ in con.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()}
    if "variants" not in names:
        return []
    columns = "style, checks, num_prompt_tokens, num_tokens, latency_s, error"
    several = ", ".join(f"v.{name}" for name in columns.split(", "))
    found = con.execute(
        "SELECT coalesce(style, 'the prompt'), count(*) AS drawn, count(*) FILTER (taken), "
        "count(error), count(*) FILTER (len(checks) > 0), "
        "coalesce(sum(num_prompt_tokens), 0)::BIGINT, coalesce(sum(num_tokens), 0)::BIGINT, "
        "approx_quantile(latency_s, 0.5), approx_quantile(latency_s, 0.95) FROM ("
        f"SELECT {columns}, true AS taken FROM {scan} WHERE variants IS NULL AND error IS NULL "
        f"UNION ALL SELECT {several}, v.style IS NOT DISTINCT FROM chosen AS taken FROM ("
        f"SELECT if(error IS NULL, style, NULL) AS chosen, unnest(variants) AS v FROM {scan})"
        ") GROUP BY style ORDER BY drawn DESC, style LIMIT 20"
    ).fetchall()
    return [StyleCount(*row) for row in found]


def token_section(
    con: duckdb.DuckDBPyConnection, storage: Storage, record: TableRecord
) -> TokenSection:
    rows = (
        f"SELECT task, num_tokens FROM {catalog.scan(storage, record)} "
        "WHERE error IS NULL AND num_tokens IS NOT NULL"
    )
    tasks = con.execute(
        f"SELECT task, count(*), sum(num_tokens)::BIGINT FROM ({rows}) "
        "GROUP BY task ORDER BY 2 DESC, 1"
    ).fetchall()
    lengths = histogram(con, rows, "num_tokens")
    return TokenSection(
        record.table,
        sum(documents for _, documents, _ in tasks),
        sum(tokens for *_, tokens in tasks),
        tasks,
        _chart(lengths),
    )


def pack_section(
    con: duckdb.DuckDBPyConnection, storage: Storage, record: TableRecord
) -> PackSection:
    rows = f"SELECT * FROM {catalog.scan(storage, record)}"
    [(documents, tokens, mean, most)] = con.execute(
        "SELECT coalesce(sum(num_documents), 0)::BIGINT, coalesce(sum(num_tokens), 0)::BIGINT, "
        f"avg(cost), max(cost) FROM ({rows})"
    ).fetchall()
    said = record.facts
    cap, budget = said.get("token_cap"), said.get("budget")
    facts: list[tuple[str, str]] = []
    if mean:
        facts.append(("balance: largest over mean cost", f"{most / mean:.4f}"))
    if mean and budget:
        facts.append(("fill: mean cost over the budget", f"{mean / budget:.1%}"))
    if cap and record.num_rows:
        facts.append(("mean positions over the cap", f"{tokens / record.num_rows / cap:.1%}"))
    if "lower_bound" in said:
        facts.append(("packs that any plan needs", f"{said['lower_bound']:,}"))
    rejected = [f"{count:,} {reason}" for reason, count in sorted(said.get("rejected", {}).items())]
    facts.append(("documents left out", ", ".join(rejected) or "none"))
    facts += [
        (name, f"{said[key]:,}")
        for name, key in (("prompts dropped", "dropped_captions"), ("documents cut", "cut"))
        if said.get(key)
    ]
    components = said.get("components", [])
    for one in components if len(components) > 1 else ():
        text = f"{one['share']:.2%} of the tokens, quota {one['quota']:.2%}"
        if one["left_out_documents"]:
            text += f", {one['left_out_documents']:,} documents beyond it"
        facts.append((one["name"], text))
    facts += [
        (name.replace("_", " "), str(said[name]))
        for name in ("strategy", "token_cap", "level", "seed")
        if name in said
    ]
    relative = f"SELECT cost / {float(budget)!r} AS share FROM ({rows})" if budget else rows
    cost = histogram(con, relative, "share" if budget else "cost", marks=[1.0] if budget else [])
    marks = [float(cap)] if cap else []
    lengths = histogram(con, rows, "num_tokens", marks=marks)
    return PackSection(
        table=record.table,
        packs=record.num_rows,
        documents=documents,
        tokens=tokens,
        facts=facts,
        cost=_chart(cost, [1.0] if budget else []),
        cost_label="cost per pack, of the budget" if budget else "cost per pack",
        lengths=_chart(lengths, marks),
    )


def _chart(of: Histogram | None, marks: Sequence[float] = ()) -> BarChart | None:
    return None if of is None else bar_chart(of, marks)
