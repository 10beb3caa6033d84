"""Each thing is drawn by its weight, with groups and without."""

import numpy as np
import pytest

from tokenize_offline.weighted_draw import WeightedDraw

GROUPS = np.array([0, 0, 0, 1, 4, 4, 4, 4, 7, 7], np.int32)


@pytest.mark.parametrize("equal", [True, False])
def test_grouped_draws_keep_to_the_weights(equal: bool) -> None:
    weights = np.ones(10) if equal else np.array([1, 2, 0, 5, 1, 1, 3, 1, 0, 2], np.float64)
    draw = WeightedDraw(weights, GROUPS)
    rng, near = np.random.default_rng(0), np.random.default_rng(1)
    counts = np.bincount([draw.index(rng, near) for _ in range(30_000)], minlength=10)
    np.testing.assert_allclose(counts / 30_000, weights / weights.sum(), atol=0.015)
    assert not counts[weights == 0].any()


def test_equal_states_stay_in_one_group() -> None:
    draw = WeightedDraw(np.linspace(1, 2, 10), GROUPS)
    seen = set()
    for seed in range(40):
        drawn = {
            draw.index(np.random.default_rng(turn), np.random.default_rng(seed))
            for turn in range(60)
        }
        (group,) = {int(GROUPS[index]) for index in drawn}
        assert drawn == set(np.flatnonzero(group == GROUPS).tolist())
        seen.add(group)
    assert seen == {0, 1, 4, 7}


@pytest.mark.parametrize("weights", [np.ones(50), np.linspace(1, 2, 50)])
def test_one_group_is_drawn_from_as_without_groups(weights: np.ndarray) -> None:
    draw = WeightedDraw(weights, np.zeros(50, np.int32))
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    near = np.random.default_rng(9)
    assert [draw.index(one, near) for _ in range(99)] == [draw.index(other) for _ in range(99)]
    if np.ptp(weights) == 0:
        again = np.random.default_rng(3)
        drawn = [draw.index(np.random.default_rng(seed)) for seed in range(9)]
        assert drawn == [int(np.random.default_rng(seed).integers(50)) for seed in range(9)]
        assert draw.index(again) == int(np.random.default_rng(3).integers(50))
