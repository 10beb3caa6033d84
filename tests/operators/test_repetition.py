"""Gopher's repetition measures against their definitions, spelt out."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.repetition import REPEATED, TOP, line_shares, ngram_shares

WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "ee"]), min_size=1, max_size=40)


def covered(words: list[str], n: int, chosen: set[tuple[str, ...]]) -> float:
    inside = set()
    for i in range(len(words) - n + 1):
        if tuple(words[i : i + n]) in chosen:
            inside |= set(range(i, i + n))
    return sum(len(words[i]) for i in inside) / sum(map(len, words))


def expected(words: list[str]) -> dict[str, float]:
    shares = {}
    for n in (*TOP, *REPEATED):
        counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        most = max(counts.values(), default=0)
        repeated = {run for run, count in counts.items() if count > 1}
        if n in REPEATED:
            shares[f"repeated_{n}gram_share"] = covered(words, n, repeated)
            continue
        top = [run for run in repeated if counts[run] == most]
        longest = max((sum(map(len, run)) for run in top), default=0)
        of = [covered(words, n, {run}) for run in top if sum(map(len, run)) == longest]
        shares[f"top_{n}gram_share"] = max(of, default=0.0), min(of, default=0.0)
    return shares


@settings(max_examples=300, deadline=None)
@given(words=WORDS)
def test_ngrams_are_those_of_the_definition(words: list[str]) -> None:
    wanted = expected(words)
    for name, share in ngram_shares(words).items():
        if isinstance(wanted[name], tuple):  # of equally frequent and long runs any may be taken
            high, low = wanted[name]
            assert low - 1e-12 <= share <= high + 1e-12, name
        else:
            assert share == pytest.approx(wanted[name]), name


def test_known_texts() -> None:
    assert set(ngram_shares("all of these words stand here just once".split()).values()) == {0.0}
    assert set(ngram_shares(["spam"] * 30).values()) == {1.0}
    assert ngram_shares([]) == ngram_shares(["one"]) == dict.fromkeys(ngram_shares([]), 0.0)
    ten = [f"w{i}" for i in range(10)]
    twice = ngram_shares([*ten, "x", *ten])
    assert twice["repeated_10gram_share"] == twice["repeated_5gram_share"] == pytest.approx(40 / 41)


def test_lines() -> None:
    assert line_shares(["a", "bb", "a", "a"]) == (0.5, pytest.approx(2 / 5))
    assert line_shares(["a", "b"]) == (0.0, 0.0)
    assert line_shares([]) == (0.0, 0.0)
