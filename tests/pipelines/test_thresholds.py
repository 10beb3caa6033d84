"""Cuts are read off rules, wherever a comparison with a constant binds every kept row."""

import pytest

from pipelines.rules import Rule
from pipelines.thresholds import Condition, Cut, Side, Threshold, conditions, thresholds


def found(keep: str) -> dict[str, list[tuple[float, bool]]]:
    return {
        threshold.expression: [(cut.at, cut.above) for cut in threshold.cuts]
        for threshold in thresholds(Rule(name="rule", keep=keep))
    }


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("clarity > 0.4", {"clarity": [(0.4, True)]}),
        ("0.4 < clarity", {"clarity": [(0.4, True)]}),
        ("clarity <= -0.5", {"clarity": [(-0.5, False)]}),
        ("least(width, height) >= 2 * 128", {"least(width, height)": [(256, True)]}),
        ("a BETWEEN 1 AND 2", {"a": [(1, True), (2, False)]}),
        ("a > 1 AND (b < 2 AND a < 3)", {"a": [(1, True), (3, False)], "b": [(2, False)]}),
        ("a > 1 AND (b < 2 OR c > 3)", {"a": [(1, True)], "b": [], "c": []}),
        ("NOT a > 1", {"a": []}),
        ("a > b", {"a": [], "b": []}),
        ("a BETWEEN b AND 2", {"a": [], "b": []}),
        ("caption > 'cat'", {"caption": []}),
        ("a > 1 AND a IS NOT NULL", {"a": [(1, True)]}),
        ('"odd name" > 1e3', {'"odd name"': [(1000, True)]}),
        ("3 < 4 AND a = 2", {"a": []}),
    ],
)
def test_conditions(keep: str, expected: dict[str, list[tuple[float, bool]]]) -> None:
    assert found(keep) == expected


def test_a_quantile_is_cut_where_the_data_say() -> None:
    assert thresholds(Rule(name="best", top=0.1, by="a * 2")) == [Threshold("a * 2", ())]


def test_cuts_are_ordered() -> None:
    assert sorted([Cut(2, False), Cut(1, True)]) == [Cut(1, True), Cut(2, False)]


def test_conditions_joined_by_and() -> None:
    keep = "a > 0.5 AND b BETWEEN 1 AND 2 AND (c < 1 OR d > 2) AND 1e-3 <= e AND f = 'x'"
    assert conditions(keep) == [
        Condition("(a > 0.5)", "a", (Side(0.5, above=True, inclusive=False),)),
        Condition("(b BETWEEN 1 AND 2)", "b", (Side(1, True, True), Side(2, False, True))),
        Condition("((c < 1) OR (d > 2))"),
        Condition("(1e-3 <= e)", "e", (Side(0.001, True, True),), doubles=True),
        Condition("(f = 'x')"),
    ]
