"""Settings of the training: sizes per level, and defaults that leave the options off."""

import pytest

from infra.config import ConfigError, build
from tokenize_offline.learning import Learning


def test_the_options_are_off() -> None:
    learning = Learning()
    assert learning.perceptual.weight == learning.adversarial.weight == 0
    assert learning.level_1024_share == 0
    assert learning.semantic_learning_rate_scale == 1


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(4, (4, 1, 1)), (1, (1, 1, 1)), (32, (32, 8, 2)), (30, (30, 7, 1))]
)
def test_levels_cost_alike(batch_size: int, sizes: tuple[int, int, int]) -> None:
    learning = Learning(batch_size=batch_size)
    assert tuple(map(learning.pictures_at, (256, 512, 1024))) == sizes


def test_steps_of_the_stages() -> None:
    learning = Learning(branch_steps=1, joint_steps=2, decoder_steps=3)
    assert [learning.steps_of(stage) for stage in ("branches", "joint", "decoders")] == [1, 2, 3]


def test_options_mistakes_name_their_section() -> None:
    with pytest.raises(ConfigError, match=r"learning.*adversarial"):
        build(Learning, {"adversarial": {"weight": -1.0}}, "learning")


@pytest.mark.parametrize("name", ["batch_size", "gradient_accumulation"])
def test_a_mistyped_size_is_refused_and_not_tried(name: str) -> None:
    with pytest.raises(ConfigError, match=f"learning.{name} is 1000000000: use 4096 or less"):
        build(Learning, {name: 10**9})


def test_shares_of_the_levels_are_the_whole() -> None:
    learning = Learning(level_512_share=0.3, level_1024_share=0.1)
    shares = [learning.share_of(level) for level in (256, 512, 1024)]
    assert shares == pytest.approx([0.6, 0.3, 0.1])
