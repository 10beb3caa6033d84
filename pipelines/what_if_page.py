"""``<report>-what-if.html``, beside a report: sliders over its rules, computed in the browser.

The page carries what the rules ask of each sample (their scores, and whether it meets what cannot
be slid), of all samples or of a seeded share of them, and small pictures spread over every score.
templates/what_if.js applies the rules to them as `pipelines.decide` does, up to balancing.
"""

import base64
import itertools
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra import catalog, html
from infra.html import clean
from infra.schema import uniform_sql
from pipelines import stats
from pipelines.contact_sheets import Choice, pictures
from pipelines.decide import prepare_cuts
from pipelines.decided import Decided
from pipelines.recipe import Recipe
from pipelines.rules import Rule, value_sql
from pipelines.scored import scores_sql
from pipelines.thresholds import Condition, conditions
from pipelines.what_if import topic_sql

TEMPLATES = Path(__file__).parent / "templates"
MAX_ROWS = 20_000  # about so many, where there are more
SAMPLE_SEED = 20_000  # apart from the seeds that balance topics
MAX_PICTURES = 240
PICTURE_CHARACTERS = 5_000_000  # of all pictures together
MAX_TOPICS = 100
OTHER_TOPICS, NO_TOPIC = 65_534, 65_535  # beside the places of topics in their list

Columns = dict[str, pa.DataType]
"""What the rules go by: SQL of scores and of conditions that are not slid, with their types."""


def write_what_if(recipe: Recipe, made: Decided, path: str) -> str:
    """Write the page of decided samples to ``path`` and return where it is. Raises ConfigError."""
    with catalog.connect(recipe.storage) as con:
        made.config.check(made.columns(con))  # the workspace may be somebody else's
        data = page_data(con, recipe, made)
    page = html.render(
        TEMPLATES,
        "what_if.html",
        script="what_if.js",
        dataset=recipe.dataset,
        workspace=recipe.storage.path(),
        stale=stats.STALE if made.stale else None,
        balanced=made.config.balance is not None,
        data=data,
    )
    return html.write_page(path, page)


def page_data(con: duckdb.DuckDBPyConnection, recipe: Recipe, made: Decided) -> dict[str, Any]:
    """What the script of the page reads; ``con`` is fresh and has the catalog's views."""
    columns: Columns = {}
    rules = [_rule(con, made, rule, columns) for rule in made.config.rules]
    total = sum(p.place.samples.parts[p.place.part].num_rows for p in made.parts)
    rows = _rows(con, made, columns, min(1.0, MAX_ROWS / max(total, 1)))
    chosen = _spread(rows, rules)
    ids = rows["sample_id"].to_pylist()
    choices = [Choice(ids[row]) for row in chosen]
    shown = []
    room = PICTURE_CHARACTERS
    for row, picture in zip(
        chosen, pictures(con, recipe.sources, made.dataset, choices), strict=True
    ):
        room -= len(picture.uri or "")
        if room < 0:
            break
        texts = {
            "problem": clean(picture.excerpt or picture.problem or "", 60),
            "excerpt": clean(picture.excerpt or "", 400),
            "key": clean(picture.key, 60),
            "caption": clean(picture.caption, 160),
            "credit": clean(picture.credit, 80),
        }
        shown.append({"row": row, "uri": picture.uri, **texts})
    topics, codes = _topics(rows["topic"])
    return {
        "total": total,
        "num_rows": len(rows),
        "rules": rules,
        "columns": [_encoded(rows[f"v{number}"]) for number in range(len(columns))],
        "failed": _base64(rows["failed"].to_numpy().astype("u1")),
        "topics": topics,
        "topic_codes": _base64(codes),
        "pictures": shown,
    }


def _rule(
    con: duckdb.DuckDBPyConnection, made: Decided, rule: Rule, columns: Columns
) -> dict[str, Any]:
    """A rule as the script applies it; adds to ``columns`` what it goes by."""
    if rule.top is not None:
        place = _place(con, made, rule.expression, columns)
        top = {"id": rule.name, "text": _plain(rule.top)}
        return {"name": rule.name, "by": rule.by, "column": place, "top": top}
    terms = [_term(con, made, condition, columns) for condition in conditions(rule.expression)]
    sides = [side for term in terms for side in term.get("sides", ())]
    for number, side in enumerate(sides, start=1):
        side["id"] = rule.name if len(sides) == 1 else f"{rule.name}.{number}"
    return {"name": rule.name, "keep": " ".join(rule.expression.split()), "terms": terms}


def _term(
    con: duckdb.DuckDBPyConnection, made: Decided, condition: Condition, columns: Columns
) -> dict[str, Any]:
    """A condition: an expression with sides to slide, or what every row says to it once for all."""
    if condition.expression is None or not _slides(_kind(con, made, condition.expression)):
        fixed = f"({condition.text})::BOOLEAN"
        return {"text": condition.text, "column": _place(con, made, fixed, columns)}
    place = _place(con, made, condition.expression, columns)
    kind = columns[condition.expression]
    single = pa.types.is_float32(kind)

    def seen(at: float) -> float:
        # Beside 32 bits DuckDB compares in 32 bits, unless the constant is written as 1e-3.
        return float(np.float32(at)) if single and not condition.doubles else at

    return {
        "text": condition.text,
        "expression": condition.expression,
        "column": place,
        "single": single,
        "whole": pa.types.is_integer(kind),
        "sides": [
            {
                "text": _plain(side.at),
                "at": seen(side.at),
                "above": side.above,
                "inclusive": side.inclusive,
            }
            for side in condition.sides
        ],
    }


def _place(con: duckdb.DuckDBPyConnection, made: Decided, expression: str, columns: Columns) -> int:
    if expression not in columns:
        columns[expression] = _kind(con, made, expression)
    return list(columns).index(expression)


def _kind(con: duckdb.DuckDBPyConnection, made: Decided, expression: str) -> pa.DataType:
    bare = f"SELECT ({expression}\n) AS v FROM ({scores_sql(made.storage, made.parts[:1])}) LIMIT 0"
    return con.sql(bare).to_arrow_table().schema.field("v").type


def _slides(kind: pa.DataType) -> bool:
    # 64 unsigned bits are a hash, and no number of JavaScript.
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return number and kind != pa.uint64()


def _rows(
    con: duckdb.DuckDBPyConnection, made: Decided, columns: Columns, share: float
) -> pa.Table:
    """A seeded ``share`` of the samples by id, with ``v0`` … and the place of their first failure.

    ``first`` is the number of rules for a sample that passes them all, -1 for a failed one. Parts
    are read one at a time.
    """
    failures = prepare_cuts(con, made.storage, made.parts, made.config)
    cases = " ".join(
        f"WHEN ({failure}) IS NOT NULL THEN {number}" for number, failure in enumerate(failures)
    )
    values = "".join(f", {value_sql(sql)} AS v{number}" for number, sql in enumerate(columns))
    topic = topic_sql(made.config, made.columns(con))
    select = (
        f"SELECT sample_id, error IS NOT NULL AS failed, {topic} AS topic, "
        f"CASE WHEN error IS NOT NULL THEN -1 {cases} ELSE {len(failures)} END AS first{values}"
    )
    drawn = f"{uniform_sql('sample_id', SAMPLE_SEED)} < {share!r}"
    tables = [
        con.sql(f"{select} FROM ({scores_sql(made.storage, (part,))}) WHERE {drawn}")
        for part in made.parts
    ]
    return pa.concat_tables(table.to_arrow_table() for table in tables).sort_by("sample_id")


def _spread(rows: pa.Table, rules: Sequence[dict[str, Any]]) -> list[int]:
    """Rows to picture: of every score, half of them nearest to its cuts, half over all its values.

    In turns from every score, so that a page that is full shows some of each.
    """
    first = rows["first"].to_numpy()
    queues: list[list[int]] = []
    for number, rule in enumerate(rules):
        for term in [rule] if "top" in rule else rule["terms"]:
            if "top" not in term and "sides" not in term:
                continue
            column = rows[f"v{term['column']}"].cast(pa.float64(), safe=False)
            values = column.fill_null(np.nan).to_numpy()
            there = np.flatnonzero(np.isfinite(values) & (first >= 0))
            arrived = there[first[there] >= number]
            if "top" in term:
                best = arrived[first[arrived] > number]
                cuts = [values[best].min()] if len(best) else []
            else:
                cuts = [side["at"] for side in term["sides"]]
            for cut in cuts:
                nearest = arrived[np.argsort(np.abs(values[arrived] - cut), kind="stable")]
                queues.append([int(row) for row in nearest[values[nearest] >= cut]])
                queues.append([int(row) for row in nearest[values[nearest] < cut]])
            ranked = there[np.argsort(values[there], kind="stable")]
            evenly = np.linspace(0, max(len(ranked) - 1, 0), min(len(ranked), MAX_PICTURES))
            # Any beginning of a shuffled queue is spread, too.
            mixed = np.random.default_rng(0).permutation(ranked[np.unique(evenly.astype(int))])
            queues += [[int(row) for row in mixed[turn::2]] for turn in range(2)]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    found = dict.fromkeys(row for row in turns if row is not None)
    return list(itertools.islice(found, MAX_PICTURES))


def _topics(topics: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.uint16]]:
    """The names of the most frequent topics, and each row's place among them."""
    counts = Counter(topic for topic in topics.to_pylist() if topic is not None)
    names = sorted(counts, key=lambda topic: (-counts[topic], topic))[:MAX_TOPICS]
    places = pc.index_in(topics, pa.array(names, pa.string())).fill_null(OTHER_TOPICS)
    codes = pc.if_else(topics.is_null(), NO_TOPIC, places).to_numpy().astype("<u2")
    return [clean(name, 60) for name in names], codes


def _encoded(column: pa.ChunkedArray) -> dict[str, Any]:
    """Little-endian values in base64 for a typed array; ``missing`` is 1 where there is none."""
    kind = column.type
    if pa.types.is_boolean(kind):
        column, code = column.cast(pa.uint8()), "u1"
    elif pa.types.is_float32(kind):
        code = "f4"
    elif pa.types.is_integer(kind) and kind.bit_width < 64 and kind != pa.uint32():
        code = "i4"
    else:
        code = "f8"
    values = column.fill_null(0).to_numpy().astype(f"<{code}")
    missing = _base64(column.is_null().to_numpy().astype("u1")) if column.null_count else None
    return {"type": code, "data": _base64(values), "missing": missing}


def _plain(number: float) -> str:
    """A number as SQL reads an exact decimal: 256, 0.00001."""
    return format(Decimal(repr(number)).normalize(), "f")


def _base64(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")
