"""The spread of places on a line, against every choice there is."""

import itertools
from random import Random

import pytest

from operators.spread import importance, spread


def gaps(places: list[float], chosen: list[int] | tuple[int, ...]) -> list[float]:
    return sorted(places[b] - places[a] for a, b in itertools.pairwise(chosen))


@pytest.mark.parametrize("seed", range(60))
def test_no_choice_lies_farther_apart(seed: int) -> None:
    random = Random(seed)
    number = random.randrange(1, 10)
    # Whole numbers: many ties, which must be broken in one way.
    steps = [random.choice([0, 1, 1, 2, 5]) for _ in range(number)]
    places = list(itertools.accumulate(map(float, steps)))
    for count in range(1, number + 2):
        chosen = spread(places, count)
        assert len(chosen) == min(count, number)
        assert chosen[0] == 0
        every = [(0, *rest) for rest in itertools.combinations(range(1, number), len(chosen) - 1)]
        best = max(gaps(places, one) for one in every)
        assert gaps(places, chosen) == best
        assert tuple(chosen) == min(one for one in every if gaps(places, one) == best)


def test_covers_a_clip_whose_motion_comes_late() -> None:
    still_then_fast = [0.0, 0.1, 0.2, 0.3, 10.0, 20.0, 30.0]
    assert spread(still_then_fast, 3) == [0, 4, 6]
    assert spread(still_then_fast, 4) == [0, 4, 5, 6]


@pytest.mark.parametrize("seed", range(20))
def test_ranks_are_an_order_with_the_kept_first(seed: int) -> None:
    random = Random(seed)
    places = sorted(random.uniform(0, 100) for _ in range(random.randrange(1, 12)))
    count = random.randrange(1, len(places) + 1)
    chosen = spread(places, count)
    ranks = importance(places, chosen)
    assert sorted(ranks) == list(range(len(places)))
    assert ranks[0] == 0
    assert {i for i, rank in enumerate(ranks) if rank < count} == set(chosen)
    # Each is at least as far from those before it as the next one of its kind is.
    order = sorted(range(len(places)), key=ranks.__getitem__)
    for kind in (order[1:count], order[count:]):
        for one, after in itertools.pairwise(kind):
            before = order[: ranks[one]]
            assert min(abs(places[one] - places[j]) for j in before) >= min(
                abs(places[after] - places[j]) for j in before
            )


def test_nothing_is_ranked_of_nothing() -> None:
    assert importance([], []) == []
    assert spread([], 3) == []


def test_is_quick_for_the_longest_clips() -> None:
    """64 candidates, as many as a clip may have: milliseconds, not the 10^6 choices of five."""
    random = Random(0)
    places = list(itertools.accumulate(random.uniform(0, 9) for _ in range(64)))
    chosen = spread(places, 5)
    assert len(chosen) == 5
    assert chosen[-1] == 63
