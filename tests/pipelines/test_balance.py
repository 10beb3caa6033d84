"""Balancing: what a configuration may say, and the exact shares of a target distribution."""

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.config import ConfigError
from pipelines.balance import Balance, check_topics, quotas, target_copies

TOPICS = ("human", "landscape", "food", "o'hare")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep_rates": {"a": 1.5}}, "keep_rates: a is 1.5"),
        ({"keep_rates": {"a": float("nan")}}, "keep_rates: a is nan"),
        ({"temperature": 0.5}, "temperature is 0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"cap": 0}, "cap is 0"),
        ({"target": {"a": -0.1}}, "target: a is -0.1"),
        ({"target": {"a": 0.8, "b": 0.3}}, "target: the shares sum to 1.1"),
        ({"target": {"a": 0.8}, "max_copies": 0}, "max_copies is 0"),
        ({"target": {"a": 0.8}, "total": 0}, "total is 0"),
        ({"target": {"a": 0.8}, "cap": 5}, "target and cap exclude each other"),
        ({"target": {"a": 0.8}, "temperature": 2.0}, "target and temperature exclude each other"),
        ({"target": {"a": 0.8}, "keep_rates": {"b": 0.5}}, "target and keep_rates exclude"),
        ({"max_copies": 2}, "max_copies is 2 without a `target`"),
        ({"total": 10, "cap": 2}, "total is 10 without a `target`"),
    ],
)
def test_impossible_balances(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Balance(**values)


def test_shares_are_summed_as_written() -> None:
    """In binary fractions 0.1 + 0.2 + 0.7 is not 1, and three of these are above it."""
    Balance(target={"a": 0.1, "b": 0.2, "c": 0.7})
    Balance(target={"a": 0.3, "b": 0.3, "c": 0.4, "d": 0.0})


@given(
    counts=st.dictionaries(st.sampled_from(TOPICS), st.integers(1, 1000), min_size=1),
    target=st.dictionaries(st.sampled_from(TOPICS), st.integers(0, 25), min_size=1),
    max_copies=st.integers(1, 5),
    total=st.none() | st.integers(1, 2000),
)
def test_a_target_is_met_to_less_than_one_row(
    counts: dict[str, int], target: dict[str, int], max_copies: int, total: int | None
) -> None:
    shares = {topic: share / 100 for topic, share in target.items()}
    balance = Balance(target=shares, max_copies=max_copies, total=total)
    copies = target_copies(balance, counts)
    assert copies.keys() == counts.keys()
    assert all(0 <= copies[t] <= max_copies * n for t, n in counts.items())
    made = sum(copies.values())
    assert total is None or made <= total
    wanted = {t: Fraction(target[t], 100) for t in counts if t in target}
    others = Counter({t: n for t, n in counts.items() if t not in target})
    rest = 1 - Fraction(sum(target.values()), 100)
    wanted |= {t: rest * n / others.total() for t, n in others.items()}
    whole = sum(wanted.values())
    if not whole:
        assert not made
        return
    assert all(abs(copies[t] - wanted[t] / whole * made) < 1 for t in counts)
    # One more could not be had: a topic is used up, or the wanted size is reached.
    used_up = any(wanted[t] / whole * (made + 1) > max_copies * n for t, n in counts.items())
    assert used_up or made == total
    for topic, quota in quotas(balance, counts).items():
        assert quota.copies * counts[topic] + (quota.num_more or 0) == copies[topic]
        assert quota.num_more is not None
        assert (quota.num_more > 0) == (quota.rate > 0)


def test_a_target_in_numbers() -> None:
    counts = {"human": 600, "landscape": 100, "food": 200, "o'hare": 100}
    half = Balance(target={"landscape": 0.5})
    # The named topic is the scarce one; the others share the other half as 6 : 2 : 1.
    assert target_copies(half, counts) == {"human": 67, "landscape": 100, "food": 22, "o'hare": 11}
    twice = Balance(target={"landscape": 0.5}, max_copies=2)
    assert target_copies(twice, counts)["landscape"] == 200
    alone = Balance(target={"landscape": 0.75, "human": 0.25})
    assert target_copies(alone, counts) == {"human": 33, "landscape": 100, "food": 0, "o'hare": 0}
    absent = Balance(target={"cars": 0.5, "landscape": 0.25, "human": 0.25})
    assert target_copies(absent, counts) == {"human": 100, "landscape": 100, "food": 0, "o'hare": 0}


def test_topics_that_cannot_be_are_told_before_any_work() -> None:
    check_topics(None, TOPICS)
    check_topics(Balance(target={"food": 0.5}), TOPICS)
    check_topics(Balance(by="format", cap=1, keep_rates={"PNG": 0.5}), TOPICS)
    with pytest.raises(ConfigError, match="topic `foods`: choose among food, human, "):
        check_topics(Balance(target={"foods": 0.5}), TOPICS)
    with pytest.raises(ConfigError, match="topic `person`"):
        check_topics(Balance(by="topic", keep_rates={"person": 0.5}), TOPICS)
