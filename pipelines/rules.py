"""Rules of a recipe: SQL conditions over score columns, checked before they are run.

Rules are data, not trust. An expression is parsed by DuckDB into a tree, the tree is walked against
what a condition may hold (columns, constants, comparisons, a list of pure functions), and it is
bound against the typed columns, so that no sub-query, table function, second statement or unknown
column ever reaches the data.
"""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from infra.catalog import quote
from infra.config import ConfigError

NODES = frozenset(
    "COLUMN_REF CONSTANT COMPARISON CONJUNCTION OPERATOR FUNCTION CAST CASE BETWEEN TYPE".split()
)
FUNCTIONS = frozenset(
    """+ - * / // % ** ^ abs sign least greatest sqrt ln log log2 log10 exp pow power round floor
    ceil ceiling trunc isnan isfinite lower upper trim length strlen contains prefix suffix
    starts_with ends_with substr substring left right replace concat || ~~ !~~ ~~* !~~* like_escape
    not_like_escape regexp_matches regexp_full_match list_contains list_has len array_length
    json_extract_string ->> if nullif ifnull levenshtein bit_count hamming xor
    """.split()
)


MAX_EXPRESSION_CHARACTERS = 2_000


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A condition that kept rows meet (``keep``), or the best share of a score (``top``, ``by``).

    A quantile is taken over the rows that passed all earlier rules; ties go to the lower sample_id.
    """

    name: str
    keep: str | None = None
    top: float | None = None
    by: str | None = None

    def __post_init__(self) -> None:
        if not self.name or ":" in self.name or self.name == "balance":
            raise ValueError(
                f"rule name {self.name!r}: must not be empty, hold `:` or be `balance`"
            )
        if (self.keep is None) == (self.top is None) or (self.top is None) != (self.by is None):
            raise ValueError(f"rule `{self.name}`: give either `keep`, or `top` and `by`")
        if self.top is not None and not 0 < self.top <= 1:
            raise ValueError(f"rule `{self.name}`: top is {self.top}, expected a share in (0, 1]")

    @property
    def expression(self) -> str:
        expression = self.keep if self.keep is not None else self.by
        assert expression is not None
        return expression


def check_rule(rule: Rule, columns: pa.Schema) -> None:
    """Raises ConfigError naming rule and cause unless the rule may run over these columns."""
    kind = check_expression(rule.expression, columns, f"rule `{rule.name}`")
    if rule.keep is not None and kind != "BOOLEAN":
        raise ConfigError(
            f"rule `{rule.name}`: `{rule.expression}` is {kind}, expected a condition (true/false)"
        )
    if rule.top is not None and kind not in _NUMBERS:
        raise ConfigError(f"rule `{rule.name}`: `{rule.expression}` is {kind}, expected a number")


_NUMBERS = frozenset(
    "FLOAT DOUBLE TINYINT SMALLINT INTEGER BIGINT UTINYINT USMALLINT UINTEGER UBIGINT".split()
)


def check_expression(expression: str, columns: pa.Schema, place: str) -> str:
    """The SQL type of an expression over ``columns``; raises ConfigError unless it is harmless."""
    _check_text(expression, place)
    # The tree is read back by recursion, here and in the json module: it must not be deep.
    con = duckdb.connect(config={"max_expression_depth": 100})
    [(serialized,)] = con.execute(
        "SELECT json_serialize_sql(?)", [f"SELECT {expression}\n"]
    ).fetchall()
    parsed = json.loads(serialized)
    if parsed["error"]:
        raise ConfigError(
            f"{place}: `{expression}` is no SQL expression ({_one_line(parsed['error_message'])})"
        )
    if len(parsed["statements"]) != 1:
        raise ConfigError(
            f"{place}: `{expression}` holds more than one statement: give one condition"
        )
    node = parsed["statements"][0]["node"]
    extras = [
        name
        for name in (
            "where_clause",
            "having",
            "qualify",
            "sample",
            "group_expressions",
            "modifiers",
        )
        if node.get(name)
    ]
    plain = (
        node["type"] == "SELECT_NODE"
        and node["from_table"]["type"] == "EMPTY"
        and len(node["select_list"]) == 1
        and not node["cte_map"]["map"]
        and not extras
    )
    if not plain:
        raise ConfigError(
            f"{place}: `{expression}` is a query: give one condition over the columns"
        )
    for part in _walk(node["select_list"][0]):
        _check_node(part, columns, expression, place)
    return _bind(con, expression, columns, place)


def _check_text(expression: str, place: str) -> None:
    if len(expression) > MAX_EXPRESSION_CHARACTERS:
        raise ConfigError(
            f"{place}: `{expression[:60]}…` has {len(expression):,} characters: write several rules"
        )
    try:
        expression.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{place}: {expression!r} is no text ({error.reason})") from None


def _walk(tree: Any) -> Iterator[dict[str, Any]]:
    """All expression nodes of a serialized tree."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _walk(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _walk(value)


def _check_node(node: dict[str, Any], columns: pa.Schema, expression: str, place: str) -> None:
    kind = node["class"]
    if kind not in NODES:
        raise ConfigError(f"{place}: `{expression}` holds a {kind.lower()}, which rules may not")
    if kind == "COLUMN_REF":
        name = ".".join(node["column_names"])
        known = {column.lower(): column for column in columns.names}
        if name.lower() not in known:
            near = difflib.get_close_matches(name, columns.names, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(columns.names)}"
            raise ConfigError(f"{place}: unknown column `{name}`: {hint}")
    if kind == "FUNCTION" and (node["function_name"].lower() not in FUNCTIONS or node["schema"]):
        raise ConfigError(
            f"{place}: function `{node['function_name']}` is not among those that rules may call: "
            f"{', '.join(sorted(f for f in FUNCTIONS if f.isidentifier()))}"
        )


def _bind(con: duckdb.DuckDBPyConnection, expression: str, columns: pa.Schema, place: str) -> str:
    # One row of nulls: constants that do not fit their column fail now, not at row 10 million.
    con.register("typed", pa.Table.from_pylist([{}], schema=columns))
    try:
        con.execute(f"SELECT ({expression}\n) AS value FROM typed").fetchall()
    except duckdb.Error as error:
        raise ConfigError(f"{place}: `{expression}`: {_one_line(str(error))}") from None
    return str(con.description[0][1]) if con.description else ""


def _one_line(message: str) -> str:
    # What DuckDB adds below is a drawing of the place.
    return message.strip().splitlines()[0]


def value_sql(expression: str) -> str:
    """SQL of a checked expression's value; NULL for a row on which it fails (overflow, cast)."""
    return f"TRY(({expression}\n))"


def failure_sql(rule: Rule, cut: str | None) -> str:
    """SQL of a rule's failure: NULL where it passes, else the reason.

    ``cut`` is the name of a one-row table (score, sample_id) with the last kept row of a quantile.
    """
    name = rule.name.replace("'", "''")
    value = value_sql(rule.expression)
    if cut is None:
        passes = value
    else:
        score, id_ = f"(SELECT score FROM {quote(cut)})", f"(SELECT sample_id FROM {quote(cut)})"
        passes = f"({value} > {score} OR ({value} = {score} AND sample_id <= {id_}))"
    return (
        f"CASE WHEN {value} IS NULL THEN '{name}:missing' WHEN {passes} THEN NULL ELSE '{name}' END"
    )
