"""``nextscale stats RECIPE --what-if RULE``: the funnel under other rules, from the stored scores.

    --what-if "aesthetic > 5"            in place of what the rules say of ``aesthetic``
    --what-if "blurred: clarity > 0.5"   in place of the rule `blurred`
    --what-if "blurred:"                 without the rule `blurred`; "balance:" without balancing
    --what-if "top 0.3 by clarity"       in place of the quantile of ``clarity``

What is in place of nothing comes last. The rules to start from are those that made the decisions.
No table is touched: the SQL of the decisions themselves is counted instead of written, part by
part, so that the numbers are those which `nextscale curate` with these rules would give.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import duckdb
import pyarrow as pa

from infra import catalog, runs
from infra.catalog import literal
from infra.config import ConfigError
from pipelines import stats
from pipelines.decide import Decide, decisions_sql, prepare_cuts
from pipelines.decided import Decided, decided
from pipelines.recipe import Recipe
from pipelines.rules import Rule, check_rule, value_sql
from pipelines.scored import ScoredPart, scores_sql
from pipelines.thresholds import conditions

MAX_TOPICS = 100
_NAMED = re.compile(r"([\w .-]+):(?!:)(.*)", re.DOTALL)  # `width::INTEGER > 5` has no name
_TOP = re.compile(r"top\s+(\S+)\s+by\s+(.+)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """What becomes of the samples under some rules.

    ``ends`` counts (status, reason), all that balancing rejects under one reason; ``passed``,
    ``kept`` and ``copies`` count by topic what passes all rules, what is left after balancing, and
    how often that is used. ``None`` among the topics are samples without one.
    """

    ends: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    passed: Counter[str | None] = field(default_factory=Counter)
    kept: Counter[str | None] = field(default_factory=Counter)
    copies: Counter[str | None] = field(default_factory=Counter)

    def steps(self, rules: Sequence[Rule]) -> list[tuple[str, int]]:
        """(step, count) as in `stats.funnel`, up to what is kept."""
        ends = sorted(self.ends.items(), key=lambda end: (-end[1], end[0][1] or ""))
        found = stats.steps_of(
            [rule.name for rule in rules], [(*end, count) for end, count in ends]
        )
        total, kept = self.copies.total(), self.kept.total()
        return found if total == kept else [*found, ("with copies", total)]


def changed(config: Decide, changes: Sequence[str], columns: pa.Schema) -> Decide:
    """``config`` with every change made, in order; raises ConfigError for one that cannot be."""
    for change in changes:
        config = _change(config, change.strip(), columns)
    return config


def _change(config: Decide, change: str, columns: pa.Schema) -> Decide:
    names = [rule.name for rule in config.rules]
    # Names of rules may hold anything but a colon; new ones should look like names.
    first, colon, rest = change.partition(":")
    named = _NAMED.fullmatch(change)
    if colon and first.strip() in [*names, "balance"] and not rest.startswith(":"):
        name, text = first.strip(), rest.strip()
    elif named is not None:
        name, text = named[1].strip(), named[2].strip()
    else:
        return _replace_conditions(config, change, columns)
    if name == "balance" and not text:
        return replace(config, balance=None)
    if not text:
        if name not in names:
            raise ConfigError(
                f"--what-if `{change}`: no rule `{name}`: there are {', '.join(names) or 'none'}"
            )
        return replace(config, rules=tuple(r for r in config.rules if r.name != name))
    rule = _rule(name, text, change)
    check_rule(rule, columns)
    if name not in names:
        return replace(config, rules=(*config.rules, rule))
    return replace(config, rules=tuple(rule if r.name == name else r for r in config.rules))


def _rule(name: str, text: str, change: str) -> Rule:
    top = _TOP.fullmatch(text)
    try:
        if top is None:
            return Rule(name=name, keep=text)
        return Rule(name=name, top=float(top[1]), by=top[2].strip())
    except ValueError as error:
        raise ConfigError(f"--what-if `{change}`: {error}") from None


def _replace_conditions(config: Decide, change: str, columns: pa.Schema) -> Decide:
    """Put a change without a name in the place of what the rules say of the same expressions."""
    new = _rule("what_if", change, change)
    check_rule(new, columns)
    if new.top is not None:
        mine = _folded(new.expression)
        same = [r for r in config.rules if r.top is not None and _folded(r.expression) == mine]
        if not same:
            return _append(config, new)
        rules = [r for r in config.rules if r not in same[1:]]
        rules[rules.index(same[0])] = replace(new, name=same[0].name)
        return replace(config, rules=tuple(rules))
    parts = conditions(change)
    texts: dict[str, list[str]] = {}
    for number, part in enumerate(parts):
        # What compares nothing with a number stands for itself.
        key = part.expression.lower() if part.expression is not None else f"#{number}"
        texts.setdefault(key, []).append(part.text)
    for expression, conjuncts in texts.items():
        text = " AND ".join(conjuncts)
        config = _replace_one(config, expression, text, text if len(parts) > 1 else change)
    return config


def _replace_one(config: Decide, expression: str, text: str, alone: str) -> Decide:
    """``text`` in the place of the conditions on ``expression``, wherever these stand.

    Where a rule holds nothing else, it is written as ``alone``.
    """
    rules: list[Rule] = []
    placed = False
    for rule in config.rules:
        parts = conditions(rule.keep) if rule.keep is not None else []
        same = [part for part in parts if (part.expression or "").lower() == expression]
        if not same:
            rules.append(rule)
            continue
        left = [part.text for part in parts if part not in same]
        if not placed:
            left.insert(parts.index(same[0]), text if left else alone)
        if left:
            rules.append(replace(rule, keep=" AND ".join(left)))
        placed = True
    made = replace(config, rules=tuple(rules))
    return made if placed else _append(made, Rule(name="what_if", keep=alone))


def _append(config: Decide, rule: Rule) -> Decide:
    names = {rule.name for rule in config.rules}
    free = (f"{rule.name}_{n}" for n in range(2, len(names) + 3))
    name = rule.name if rule.name not in names else next(n for n in free if n not in names)
    return replace(config, rules=(*config.rules, replace(rule, name=name)))


def _folded(expression: str) -> str:
    [part] = conditions(expression)
    return part.text.lower()


def topic_sql(config: Decide, columns: pa.Schema) -> str:
    """SQL of a sample's topic: what balancing goes by, else the score of that name."""
    if config.balance is not None:
        return f"{value_sql(config.balance.by)}::VARCHAR"
    return "topic::VARCHAR" if "topic" in columns.names else "NULL::VARCHAR"


def outcome(con: duckdb.DuckDBPyConnection, made: Decided, config: Decide) -> Outcome:
    """What ``config`` would decide over the scores of ``made``; one part is read at a time.

    ``con`` must be fresh: the cuts of quantiles become its tables. Raises ConfigError for rules
    that may not run over these scores.
    """
    columns = made.columns(con)
    config.check(columns)
    failures = prepare_cuts(con, made.storage, made.parts, config)
    found = Outcome()
    for part in made.parts:
        judged = decisions_sql(made.storage, (part,), config, failures)
        _count(con, _with_topic(judged, made, part, config, columns), found)
    return found


def outcome_now(con: duckdb.DuckDBPyConnection, made: Decided) -> Outcome:
    """What was decided; ``made`` must not be stale."""
    record = runs.load_record(made.storage, f"decisions/{made.dataset}")
    assert record is not None
    columns = made.columns(con)
    found = Outcome()
    for number, part in enumerate(made.parts):
        file = literal(made.storage.path(record.path(number)))
        judged = f"SELECT * FROM read_parquet([{file}])"
        _count(con, _with_topic(judged, made, part, made.config, columns), found)
    return found


def _with_topic(
    judged: str, made: Decided, part: ScoredPart, config: Decide, columns: pa.Schema
) -> str:
    """Rows of DECISIONS with a topic, even where nothing is balanced by it."""
    if config.balance is not None or "topic" not in columns.names:
        return judged
    topics = f"SELECT sample_id, {topic_sql(config, columns)} AS topic "
    topics += f"FROM ({scores_sql(made.storage, (part,))})"
    return (
        f"SELECT d.* EXCLUDE (topic), s.topic FROM ({judged}) AS d "
        f"JOIN ({topics}) AS s USING (sample_id)"
    )


def _count(con: duckdb.DuckDBPyConnection, judged: str, into: Outcome) -> None:
    """Add the rows of ``judged``, of the columns of DECISIONS, to an outcome."""
    rows = con.execute(
        "SELECT status, CASE WHEN status = 'rejected' AND starts_with(reason, 'balance:') "
        "THEN 'balance:' ELSE reason END AS reason, topic, count(*), sum(copies)::BIGINT "
        f"FROM ({judged}) GROUP BY ALL"
    ).fetchall()
    for status, reason, of, count, copies in rows:
        into.ends[status, reason] += count
        if status == "kept" or (status == "rejected" and reason == "balance:"):
            into.passed[of] += count
        if status == "kept":
            into.kept[of] += count
            into.copies[of] += copies


def print_what_if(recipe: Recipe, changes: Sequence[str]) -> None:
    """Print what the recipe's dataset would be with these changes. Raises ConfigError."""
    for line in what_if_lines(recipe, changes):
        print(line)


def what_if_lines(recipe: Recipe, changes: Sequence[str]) -> Iterable[str]:
    """Rules, steps and topics that change, now and then."""
    made = decided(recipe.storage, recipe.dataset, recipe.sources)
    with catalog.connect(recipe.storage, views=False) as con:
        config = changed(made.config, changes, made.columns(con))
        config.check(made.columns(con))
        # Decisions of other scores would differ by these, too.
        before = outcome(con, made, made.config) if made.stale else outcome_now(con, made)
    with catalog.connect(recipe.storage, views=False) as con:
        after = outcome(con, made, config)
    yield f"dataset {recipe.dataset} in {recipe.storage.path()}"
    if made.stale:
        yield stats.STALE
    yield ""
    yield from stats.table(("rule", "now", "what if"), _rules(made.config, config), right=False)
    yield ""
    yield from _steps(before.steps(made.config.rules), after.steps(config.rules))
    yield from _topics(before, after)


def _rules(now: Decide, then: Decide) -> list[tuple[str, str, str]]:
    """(name, condition, what-if condition) of every rule that is not the same."""
    old, new = ({rule.name: told(rule) for rule in of.rules} for of in (now, then))
    names = _merged(list(old), list(new))
    rows = [(name, old.get(name, "-"), new.get(name, "-")) for name in names]
    rows = [row for row in rows if row[1] != row[2]]
    if now.balance != then.balance:
        rows.append(("balance", "as in the recipe", "-"))
    return rows


def told(rule: Rule) -> str:
    """A rule's condition as people write it."""
    return rule.expression if rule.top is None else f"top {rule.top:g} by {rule.by}"


def _steps(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> Iterable[str]:
    old, new = dict(before), dict(after)
    seen = max(new["seen"], 1)
    rows = []
    for step in _merged(list(old), list(new)):
        was, is_ = old.get(step), new.get(step)
        share = "" if is_ is None else f"{is_ / seen:.1%}"
        rows.append((step, _number(was), _number(is_), _difference(was, is_), share))
    return stats.table(("step", "now", "what if", "difference", "of seen"), rows)


def _topics(before: Outcome, after: Outcome) -> Iterable[str]:
    topics = {topic for of in (before, after) for topic in of.passed if topic is not None}
    if not topics:
        return
    shown = sorted(topics, key=lambda t: (-max(before.passed[t], after.passed[t]), t))[:MAX_TOPICS]
    heads = ["topic", "passed now", "what if", "kept now", "what if", "difference"]
    copied = any(of.copies != of.kept for of in (before, after))
    if copied:
        heads += ["with copies now", "what if"]
    rows = []
    for topic in shown:
        was, is_ = before.kept[topic], after.kept[topic]
        row = [topic, *map(_number, (before.passed[topic], after.passed[topic], was, is_))]
        row.append(_difference(was, is_))
        if copied:
            row += [_number(before.copies[topic]), _number(after.copies[topic])]
        rows.append(row)
    yield ""
    yield from stats.table(heads, rows)


def _merged(old: list[str], new: list[str]) -> list[str]:
    """Names in the order of ``new``; what is only in ``old`` precedes whom it preceded there."""
    found = list(new)
    following: str | None = None
    for name in reversed(old):
        if name not in found:
            found.insert(len(found) if following is None else found.index(following), name)
        following = name
    return found


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _difference(was: int | None, is_: int | None) -> str:
    difference = (is_ or 0) - (was or 0)
    return f"{difference:+,}" if difference else "0"
