"""Near pairs against brute force, on clustered data, crowds and odd vectors."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.config import ConfigError
from pipelines import near_vectors
from pipelines.near_vectors import (
    Flags,
    Vectors,
    members,
    near_pairs,
    reach_of,
    train,
    unit,
    visits,
)

Pairs = set[tuple[int, int]]


def clustered(rows: int, width: int, seed: int) -> Vectors:
    """Topics, pictures around them, copies around those: many pairs at every cosine above 0.8."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(12, width))
    pictures = topics[rng.integers(0, 12, rows // 4 + 1)]
    pictures = pictures + 0.7 * rng.normal(size=pictures.shape)
    copies = pictures[rng.integers(0, len(pictures), rows)]
    return unit(copies + rng.uniform(0.05, 0.6, (rows, 1)) * rng.normal(size=(rows, width)))


def brute(vectors: Vectors, is_home: Flags, threshold: float) -> Pairs:
    wide = vectors.astype(np.float64)
    near = np.triu(wide @ wide.T >= threshold, 1) & (is_home[:, None] | is_home)
    return {(int(a), int(b)) for a, b in np.argwhere(near)}


def found(vectors: Vectors, is_home: Flags, threshold: float, probes: int = 8) -> Pairs:
    """The pairs as a set; each must come once, lower row first."""
    told: list[tuple[int, int]] = []
    for a, b in near_pairs(vectors, is_home, threshold, probes, seed=0):
        assert (a < b).all()
        told += zip(a.tolist(), b.tolist(), strict=True)
    assert len(told) == len(set(told))
    return set(told)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 400),
    seed=st.integers(0, 1000),
    threshold=st.floats(0.8, 1.0),
    share_at_home=st.floats(0.1, 1.0),
)
def test_few_vectors_are_compared_exactly(
    rows: int, seed: int, threshold: float, share_at_home: float
) -> None:
    vectors = clustered(rows, 24, seed)
    is_home = np.random.default_rng(seed).random(rows) < share_at_home
    assert found(vectors, is_home, threshold) == brute(vectors, is_home, threshold)


@pytest.mark.parametrize("threshold", [0.85, 0.95])
def test_many_vectors_are_clustered_again(
    monkeypatch: pytest.MonkeyPatch, threshold: float
) -> None:
    monkeypatch.setattr(near_vectors, "MOST_COMPARED", 256)
    vectors = clustered(2_000, 32, 1)
    for share in (1.0, 0.5):
        is_home = np.random.default_rng(2).random(len(vectors)) < share
        truth = brute(vectors, is_home, threshold)
        pairs = found(vectors, is_home, threshold)
        assert len(truth) > 500
        assert pairs <= truth
        assert len(pairs) >= 0.99 * len(truth)
        assert found(vectors, is_home, threshold, probes=1) <= truth


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), threshold=st.floats(0.6, 0.99), count=st.integers(2, 20))
def test_visiting_every_cluster_in_reach_finds_every_pair(
    seed: int, threshold: float, count: int
) -> None:
    """The geometry that the search rests on: no pair is missed for another reason than probes."""
    vectors = clustered(300, 8, seed)
    clusters = visits(vectors, train(vectors, count, seed), reach_of(threshold), probes=count)
    lives_or_visits = (clusters[:, :, None] == np.arange(count)).any(1)
    homes = clusters[:, 0]
    for a, b in brute(vectors, np.ones(300, bool), threshold):
        assert lives_or_visits[a, homes[b]] or lives_or_visits[b, homes[a]]


def test_a_tighter_threshold_visits_less() -> None:
    vectors = clustered(500, 16, 3)
    centroids = train(vectors, 20, 0)
    counts = [
        (visits(vectors, centroids, reach_of(threshold), 8) >= 0).sum()
        for threshold in (0.8, 0.9, 0.99, 1.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < 1.1 * len(vectors)
    assert (visits(vectors, centroids, 0.0, 8)[:, 0] == (vectors @ centroids.T).argmax(1)).all()


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_crowds_cost_linearly(monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    monkeypatch.setattr(near_vectors, "MOST_COMPARED", 512)
    monkeypatch.setattr(near_vectors, "MOST_PAIRS", 64)
    rng = np.random.default_rng(0)
    crowd = np.ones((3_000, 16)) + noise * rng.normal(size=(3_000, 16))
    others = clustered(1_000, 16, 5)
    vectors = unit(np.concatenate([crowd, others]))
    everyone = np.ones(len(vectors), bool)
    pairs = found(vectors, everyone, 0.95)
    of_crowd = {pair for pair in pairs if pair[1] < 3_000}
    assert 3_000 < len(of_crowd) <= 64 * 3_000
    assert len({b for _, b in of_crowd}) >= 3_000 - 6  # all but the first of each run
    truth = brute(vectors[3_000:], everyone[3_000:], 0.95)
    of_others = {(a - 3_000, b - 3_000) for a, b in pairs if a >= 3_000}
    assert of_others <= truth
    assert len(of_others) >= 0.99 * len(truth)


def test_vectors_that_nothing_takes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_vectors, "MOST_COMPARED", 256)
    nothing = np.zeros((1_000, 8), np.float32)  # near to none, not even to each other
    assert found(nothing, np.ones(1_000, bool), 0.85) == set()


def test_a_cosine_at_the_threshold_counts() -> None:
    angle = np.arccos(0.9)
    vectors = np.array([[1, 0], [np.cos(angle), np.sin(angle)]], np.float32)
    exact = float(near_vectors.cosine_of(vectors[:1], vectors[1:])[0])
    assert found(vectors, np.ones(2, bool), exact) == {(0, 1)}
    assert found(vectors, np.ones(2, bool), np.nextafter(exact, 1)) == set()


def test_members_are_those_who_live_there_or_visit() -> None:
    clusters = np.array([[2, 0, -1], [0, -1, -1], [2, 5, 0]])
    told = {name: rows.tolist() for name, rows in members(clusters)}
    assert told == {0: [0, 1, 2], 2: [0, 2], 5: [2]}
    assert list(members(np.empty((0, 3), np.int64))) == []


def test_training_is_repeatable() -> None:
    vectors = clustered(400, 16, 7)
    first = train(vectors, 10, 3)
    np.testing.assert_array_equal(first, train(vectors, 10, 3))
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    assert len(train(vectors[:4], 10, 3)) == 4
    assert not np.array_equal(first, train(vectors, 10, 4))


def test_without_faiss_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"need faiss: pip install 'nextscale\[semantic\]'"):
        near_vectors.library()
