"""What a step draws depends on seed, stage, step and picture alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.schedules import NUM_SCALES
from tokenize_offline.draws import StepDraws
from tokenize_offline.learning import Learning
from tokenize_offline.photographs import Pictures, open_pictures


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    data = Path(pytest.importorskip("skimage").__file__).parent / "data"
    return open_pictures([data / "coffee.png", data / "rocket.jpg"], short_side=256)


def test_two_parts_are_the_halves_of_one(pictures: Pictures) -> None:
    whole = StepDraws(Learning(batch_size=4), "joint", 7).batch(pictures, 0)
    halves = [StepDraws(Learning(batch_size=2), "joint", 7).batch(pictures, p) for p in (0, 1)]
    assert all(half.grids == whole.grids for half in halves)
    assert torch.equal(torch.cat([half.pixels for half in halves]), whole.pixels)
    assert torch.equal(torch.cat([half.noise(3) for half in halves]), whole.noise(3))
    assert whole.noise(3).shape == (4, 3, *whole.grids[-1])
    height, width = whole.grids[-1]
    assert whole.pixels.shape == (4, 3, 16 * height, 16 * width)


def test_every_step_stage_seed_and_picture_is_another(pictures: Pictures) -> None:
    draws = [
        StepDraws(Learning(seed=seed), stage, step)
        for seed in (0, 1)
        for stage in ("joint", "decoders")
        for step in (0, 1)
    ]
    assert len({d.rng("picture", n).random() for d in draws for n in range(50)}) == 400
    assert draws[0].rng("noise").random() != draws[0].rng("picture").random()
    again = StepDraws(Learning(), "joint", 0)
    assert again.rng("picture", 3).random() == draws[0].rng("picture", 3).random()
    first, second = (d.torch_generator("restart").initial_seed() for d in (again, draws[0]))
    assert first == second


def test_levels_have_their_shares() -> None:
    learning = Learning(level_512_share=0.3, level_1024_share=0.1)
    counts = Counter(StepDraws(learning, "joint", step).level() for step in range(3000))
    assert counts[1024] / 3000 == pytest.approx(0.1, abs=0.03)
    assert counts[512] / 3000 == pytest.approx(0.3, abs=0.03)
    only = Learning(level_512_share=0.0)
    assert {StepDraws(only, "joint", step).level() for step in range(100)} == {256}


@pytest.mark.parametrize(("level", "size"), [(256, 9), (512, 2), (1024, 1)])
def test_larger_pictures_are_fewer(pictures: Pictures, level: int, size: int) -> None:
    learning = Learning(batch_size=9)
    batch = StepDraws(learning, "codebooks", 0).batch(pictures, 0, level=level)
    assert len(batch.pixels) == len(batch.numbers) == learning.pictures_at(level) == size
    assert len(batch.grids) == NUM_SCALES[level]
    assert batch.keep is None


def test_scale_dropout_keeps_the_first_and_drops_half_of_the_others(pictures: Pictures) -> None:
    learning = Learning(batch_size=1, scale_dropout_share=0.5, level_512_share=0.0)
    keeps = [
        StepDraws(learning, "joint", step).batch(pictures, 0, dropout=True).keep
        for step in range(60)
    ]
    dropped = [keep for keep in keeps if keep is not None]
    assert 15 < len(dropped) < 45
    assert all(keep[0] and len(keep) == 12 for keep in dropped)
    assert np.mean([keep[1:] for keep in dropped]) == pytest.approx(0.5, abs=0.12)


def test_a_number_stays_near_for_16_steps_and_numbers_move_in_turn() -> None:
    def place(step: int, number: int, stage: str = "joint", seed: int = 0) -> float:
        return StepDraws(Learning(seed=seed), stage, step).near(number).random()

    for number in (0, 5, 40):
        places = [place(step, number) for step in range(64)]
        changes = [s for s in range(1, 64) if places[s] != places[s - 1]]
        assert changes == [s for s in range(1, 64) if (s + number) % 16 == 0]
    assert len({place(3, number) for number in range(64)}) == 64
    assert len({place(3, 3), place(3, 3, "decoders"), place(3, 3, seed=1)}) == 3


def test_halves_are_of_other_pictures_where_a_pass_takes_one_at_least() -> None:
    """Why the number of pictures at every level belongs to what a training is."""
    for size, halves, whole in ((8, 2, 1), (64, 4, 4)):
        assert 2 * Learning(batch_size=size // 2).pictures_at(1024) == halves
        assert Learning(batch_size=size).pictures_at(1024) == whole
