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


def thresholds(rule: Rule) -> list[Threshold]:
    """What to draw for a rule, which must have passed `rules.check_rule`.

    A quantile gives its score; where it cuts is for the data to say. A condition gives every
    comparison with constants that each kept row meets (those joined by AND), and after them the
    columns it names elsewhere, without a cut.
    """
    if rule.keep is None:
        return [Threshold(rule.expression, ())]
    con = duckdb.connect()
    [(serialized,)] = con.execute("SELECT json_serialize_sql(?)", [_query(rule.keep)]).fetchall()
    parsed = json.loads(serialized)
    root = parsed["statements"][0]["node"]["select_list"][0]

    def text(node: Node) -> str:
        parsed["statements"][0]["node"]["select_list"] = [node]
        query = [json.dumps(parsed)]
        [(sql,)] = con.execute("SELECT json_deserialize_sql(?::JSON)", query).fetchall()
        return str(sql).removeprefix("SELECT ")

    def value(node: Node) -> float | None:
        # The binder computes what is written as 2 * 128 or -0.5; text has no place on an axis.
        sql = f"SELECT try_cast(({text(node)}) AS DOUBLE)"
        [(number,)] = con.execute(sql).fetchall()
        return None if number is None else float(number)

    cuts: dict[str, set[Cut]] = {}
    drawn: list[str] = []
    named: list[str] = []
    for part in _conjuncts(root):
        scored, constants = _sides(part)
        found = [(value(constant), above) for constant, above in constants]
        numbers = {Cut(at, above) for at, above in found if at is not None}
        if scored is None or not numbers:
            named += map(text, _columns(part))
            continue
        cuts.setdefault(text(scored), set()).update(numbers)
        drawn += map(text, _columns(scored))
    for column in named:
        if column not in drawn:
            cuts.setdefault(column, set())
    return [Threshold(expression, tuple(sorted(at))) for expression, at in cuts.items()]


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
