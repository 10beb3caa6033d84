"""Decisions are explained by the rules that made them, whatever the recipe says now."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from infra import catalog
from infra.config import ConfigError
from pipelines.decide import Decide
from pipelines.decided import decided, rules
from pipelines.recipe import Recipe
from pipelines.rules import Rule


def test_rules_are_those_of_the_run(curated: Recipe) -> None:
    assert rules(curated.storage, curated.dataset) == curated.decide.rules
    other = replace(curated, decide=Decide(rules=(Rule(name="other", keep="width > 1"),)))
    made = decided(other.storage, other.dataset, other.sources)
    assert made.config == curated.decide
    assert not made.stale


def test_each_rule_sees_what_passed_the_earlier_ones(curated: Recipe) -> None:
    made = decided(curated.storage, curated.dataset, curated.sources)
    with catalog.connect(curated.storage) as con:
        seen = []
        for at in made.arrivals(con):
            [(arrived, passed)] = con.sql(
                f"SELECT count(*), count(*) FILTER (({at.failure}) IS NULL) FROM ({at.rows})"
            ).fetchall()
            seen.append((arrived, passed))
        [(reasons,)] = con.sql(
            "SELECT map_from_entries(list((reason, n))) FROM (SELECT reason, count(*) AS n "
            "FROM decisions WHERE status = 'rejected' GROUP BY reason)"
        ).fetchall()
    assert [left for _, left in seen[:-1]] == [arrived for arrived, _ in seen[1:]]
    for rule, (arrived, passed) in zip(curated.decide.rules, seen, strict=True):
        assert arrived - passed == reasons[rule.name]


def test_changed_scores_make_decisions_stale(
    curated: Recipe, score_here: Callable[[Recipe], None]
) -> None:
    cheap = replace(curated.cheap, clarity=replace(curated.cheap.clarity, short_side=256))
    score_here(replace(curated, cheap=cheap))
    assert decided(curated.storage, curated.dataset, curated.sources).stale


def test_rules_of_a_foreign_workspace_are_checked(curated: Recipe) -> None:
    made = decided(curated.storage, curated.dataset, curated.sources)
    bad = Rule(name="bad", keep="(SELECT true)")
    with (
        catalog.connect(curated.storage) as con,
        pytest.raises(ConfigError, match="rule `bad`"),
    ):
        replace(made, config=Decide(rules=(bad,))).arrivals(con)


def test_without_a_run_record_the_rules_are_unknown(curated: Recipe) -> None:
    curated.storage.remove("runs")
    with pytest.raises(ConfigError, match="does not say how decisions/mixed was made"):
        decided(curated.storage, curated.dataset, curated.sources)


def test_missing_scores_are_told(curated: Recipe) -> None:
    curated.storage.remove("scores/some/cheap")
    with pytest.raises(ConfigError, match="scores/some/cheap is not there: run `nextscale curate`"):
        decided(curated.storage, curated.dataset, curated.sources)
