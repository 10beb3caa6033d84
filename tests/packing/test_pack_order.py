"""Packs of a window in an order that spreads the mixture: a permutation, and even everywhere."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.pack_order import spread

documents = st.lists(
    st.tuples(st.integers(-1, 20), st.integers(1, 100), st.integers(0, 3)), max_size=80
)


@settings(max_examples=200, deadline=None)
@given(documents)
def test_packs_are_numbered_anew_and_stay_together(rows: list[tuple[int, int, int]]) -> None:
    given_, tokens, component = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    _, packs = np.unique(np.append(given_, -1), return_inverse=True)  # without gaps
    packs = packs[:-1] - 1
    found = spread(packs, tokens, component.astype(np.int16))
    pairs = set(zip(packs.tolist(), found.tolist(), strict=True))
    assert len(pairs) == len(set(packs.tolist())) == len(set(found.tolist()))
    assert np.array_equal(found < 0, packs < 0)
    assert set(found.tolist()) - {-1} == set(range(packs.max(initial=-1) + 1))


def test_any_run_of_packs_has_the_mixture_of_all() -> None:
    draw = np.random.default_rng(0)
    n, run = 2_000, 50
    # Packs of one component, of another, and of both in any proportion: sorted, the worst order.
    share = np.sort(np.concatenate([np.zeros(700), np.ones(600), draw.random(700)]))
    packs = np.repeat(np.arange(n), 2)
    tokens = np.stack([share * 10_000, (1 - share) * 10_000], axis=1).astype(np.int64).ravel() + 1
    component = np.tile(np.array([0, 1], np.int16), n)
    found = spread(packs, tokens, component)

    def worst(packs: np.ndarray) -> float:
        first = np.bincount(packs, np.where(component == 0, tokens, 0)) / 10_002
        sums = np.cumsum(np.append(0, first))
        return float(np.abs((sums[run:] - sums[:-run]) / run - first.mean()).max())

    assert worst(packs) > 0.4
    chance = max(worst(draw.permutation(n)[packs]) for _ in range(3))
    assert worst(found) < 0.05 < 0.1 < chance
