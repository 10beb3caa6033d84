"""Where a rule cuts: the comparisons with constants that can be read off its parse tree.

keep: least(width, height) >= 256 AND clarity > 0.4
->  least(width, height) at 256, clarity at 0.4
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from pipelines.rules import Rule

Node = dict[str, Any]


@dataclass(frozen=True, order=True)
class Cut:
    """Rows pass above ``at`` if ``above``, else below it; the value itself may go either way."""

    at: float
    above: bool


@dataclass(frozen=True)
class Threshold:
    """An SQL expression over score columns, and where a rule cuts it; maybe nowhere to be seen."""

    expression: str
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class Side:
    """A constant that a comparison sets its expression against; itself passing if ``inclusive``."""

    at: float
    above: bool
    inclusive: bool


@dataclass(frozen=True)
class Condition:
    """One of the conditions that a rule joins by AND, as SQL.

    If it orders an ``expression`` against numbers, ``sides`` are these (two of a BETWEEN), else
    there are none. ``doubles``: a number is written as 1e-3, so DuckDB compares in 64 bits.
    """

    text: str
    expression: str | None = None
    sides: tuple[Side, ...] = ()
    doubles: bool = False


@dataclass(frozen=True)
class _Parsed:
    """A condition's tree, and the DuckDB that made it and turns its parts back into SQL."""

    con: duckdb.DuckDBPyConnection
    statements: Node

    @property
    def root(self) -> Node:
        node: Node = self.statements["statements"][0]["node"]["select_list"][0]
        return node

    def text(self, node: Node) -> str:
        [statement] = self.statements["statements"]
        query = {
            "error": False,
            "statements": [statement | {"node": statement["node"] | {"select_list": [node]}}],
        }
        [(sql,)] = self.con.execute(
            "SELECT json_deserialize_sql(?::JSON)", [json.dumps(query)]
        ).fetchall()
        return str(sql).removeprefix("SELECT ")

    def value(self, node: Node) -> float | None:
        # The binder computes what is written as 2 * 128 or -0.5; text has no place on an axis.
        sql = f"SELECT try_cast(({self.text(node)}) AS DOUBLE)"
        [(number,)] = self.con.execute(sql).fetchall()
        return None if number is None else float(number)

    def is_double(self, node: Node) -> bool:
        [(kind,)] = self.con.execute(f"SELECT typeof({self.text(node)})").fetchall()
        return bool(kind == "DOUBLE")


def _parse(keep: str) -> _Parsed:
    con = duckdb.connect()
    [(serialized,)] = con.execute("SELECT json_serialize_sql(?)", [_query(keep)]).fetchall()
    return _Parsed(con, json.loads(serialized))


def thresholds(rule: Rule) -> list[Threshold]:
    """What to draw for a rule, which must have passed `rules.check_rule`.

    A quantile gives its score; where it cuts is for the data to say. A condition gives every
    comparison with constants that each kept row meets (those joined by AND), and after them the
    columns it names elsewhere, without a cut.
    """
    if rule.keep is None:
        return [Threshold(rule.expression, ())]
    parsed = _parse(rule.keep)
    cuts: dict[str, set[Cut]] = {}
    drawn: list[str] = []
    named: list[str] = []
    for part in _conjuncts(parsed.root):
        scored, constants = _sides(part)
        found = [(parsed.value(constant), above) for constant, above in constants]
        numbers = {Cut(at, above) for at, above in found if at is not None}
        if scored is None or not numbers:
            named += map(parsed.text, _columns(part))
            continue
        cuts.setdefault(parsed.text(scored), set()).update(numbers)
        drawn += map(parsed.text, _columns(scored))
    for column in named:
        if column not in drawn:
            cuts.setdefault(column, set())
    return [Threshold(expression, tuple(sorted(at))) for expression, at in cuts.items()]


def conditions(keep: str) -> list[Condition]:
    """The conditions that ``keep`` joins by AND, in order; it must have been checked."""
    parsed = _parse(keep)
    found = []
    for part in _conjuncts(parsed.root):
        scored, constants = _sides(part)
        numbers = [parsed.value(constant) for constant, _ in constants]
        if scored is None or None in numbers:
            found.append(Condition(parsed.text(part)))
            continue
        inclusive = part["type"].endswith(("BETWEEN", "OREQUALTO"))
        sides = tuple(
            Side(at, above, inclusive)
            for at, (_, above) in zip(numbers, constants, strict=True)
            if at is not None
        )
        doubles = any(parsed.is_double(constant) for constant, _ in constants)
        found.append(Condition(parsed.text(part), parsed.text(scored), sides, doubles))
    return found


def _query(expression: str) -> str:
    return f"SELECT {expression}\n"


def _conjuncts(node: Node) -> Iterator[Node]:
    if node["type"] == "CONJUNCTION_AND":
        for child in node["children"]:
            yield from _conjuncts(child)
    else:
        yield node


def _sides(node: Node) -> tuple[Node | None, list[tuple[Node, bool]]]:
    """(scored expression, [(constant, do larger values pass?)]) of an ordering, else (None, [])."""
    if node["type"] == "COMPARE_BETWEEN":
        scored = node["input"]
        constants = [(node["lower"], True), (node["upper"], False)]
    elif node["type"].startswith(("COMPARE_GREATERTHAN", "COMPARE_LESSTHAN")):
        above = node["type"].startswith("COMPARE_GREATERTHAN")
        scored, constant = node["left"], node["right"]
        if not _columns(scored):
            scored, constant, above = constant, scored, not above
        constants = [(constant, above)]
    else:
        return None, []
    if not _columns(scored) or any(_columns(constant) for constant, _ in constants):
        return None, []
    return scored, constants


def _columns(tree: Any) -> list[Node]:
    """The column references in a tree, in order."""
    if isinstance(tree, list):
        return [column for item in tree for column in _columns(item)]
    if not isinstance(tree, dict):
        return []
    if tree.get("class") == "COLUMN_REF":
        return [tree]
    return [column for item in tree.values() for column in _columns(item)]
