"""FLOPs of Qwen2.5-7B against numbers worked out by hand, and the rules of training."""

import numpy as np
import pytest

from infra.layout import Image, Segment, Text, count
from infra.schedules import SCHEDULES
from packing.cost import (
    PRESETS,
    Coefficients,
    ModelShape,
    Size,
    coefficients,
    cost,
    flops,
    qwen2_5,
    qwen2_5_7b,
)

SHAPE = qwen2_5_7b()


def text_to_image(level_scales: int) -> tuple[int, int, int]:
    codes = np.zeros(SCHEDULES[20].num_codes(level_scales), np.int32)
    document: list[Segment] = [
        Text(np.zeros(100, np.int32)),
        Image(20, level_scales, codes, codes),
    ]
    return count(document)


def test_qwen2_5_7b_coefficients() -> None:
    assert SHAPE.vocabulary == 168_450
    assert SHAPE.layer_flops_per_token == 466_092_032
    assert SHAPE.num_layers * SHAPE.layer_flops_per_pair == 401_408
    assert SHAPE.head_flops_per_loss == pytest.approx(1.207e9, rel=1e-3)
    forward = coefficients(SHAPE, work="forward")
    assert forward.per_token == pytest.approx(13.051e9, rel=1e-4)


@pytest.mark.parametrize(
    ("size", "all_billions", "without_embeddings", "tied"),
    [
        ("0.5b", 0.494, 0.358, True),
        ("1.5b", 1.544, 1.31, True),
        ("3b", 3.086, 2.77, True),
        ("7b", 7.616, 6.53, False),
        ("14b", 14.77, 13.2, False),
        ("32b", 32.76, 31.2, False),
        ("72b", 72.71, 70.2, False),
    ],
)
def test_shapes_have_the_published_number_of_parameters(
    size: Size, all_billions: float, without_embeddings: float, tied: bool
) -> None:
    shape = qwen2_5(size, num_codes=64)
    embedding = (shape.vocabulary - 66) * shape.hidden
    biases = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    # A product with a matrix takes two operations per weight.
    layer = shape.layer_flops_per_token // 2 + biases + 2 * shape.hidden
    layers = shape.num_layers * layer + shape.hidden
    assert layers / 1e9 == pytest.approx(without_embeddings, rel=0.003)
    total = layers + embedding * (1 if tied else 2)
    assert total / 1e9 == pytest.approx(all_billions, rel=0.0005)
    assert PRESETS[f"qwen2.5-{size}"] == size


@pytest.mark.parametrize(
    ("num_tokens", "linear", "head", "attention"),
    [(1_024, 13.4, 1.2, 0.2), (4_096, 53.5, 4.9, 3.4), (8_192, 106.9, 9.9, 13.5)],
)
def test_forward_teraflops_of_text(
    num_tokens: int, linear: float, head: float, attention: float
) -> None:
    pairs = num_tokens * (num_tokens + 1) // 2
    parts = [
        flops(num_tokens, 0, 0, SHAPE, work="forward"),
        flops(0, num_tokens, 0, SHAPE, work="forward"),
        flops(0, 0, pairs, SHAPE, work="forward"),
    ]
    assert [float(part) / 1e12 for part in parts] == pytest.approx(
        [linear, head, attention], abs=0.05
    )
    total = flops(num_tokens, num_tokens, pairs, SHAPE, work="forward")
    assert float(total) == pytest.approx(sum(map(float, parts)))


@pytest.mark.parametrize(
    ("num_scales", "teraflops_per_1k"), [(12, 14.49), (16, 15.14), (18, 16.78)]
)
def test_forward_teraflops_of_text_to_image(num_scales: int, teraflops_per_1k: float) -> None:
    num_tokens, _, num_pairs = text_to_image(num_scales)
    total = float(flops(num_tokens, num_tokens, num_pairs, SHAPE, work="forward"))
    assert total / num_tokens / 1e9 == pytest.approx(teraflops_per_1k, abs=0.01)


def test_training_and_checkpointing_multiply_what_they_repeat() -> None:
    forward = coefficients(SHAPE, work="forward")
    train = coefficients(SHAPE)
    checkpointed = coefficients(SHAPE, checkpointing=True)
    for of, layers, attention in ((train, 3.0, 3.5), (checkpointed, 4.0, 4.5)):
        assert of.per_token == layers * forward.per_token
        assert of.per_pair == attention * forward.per_pair
        assert of.per_loss == 3.0 * forward.per_loss
        backward = coefficients(SHAPE, work="backward", checkpointing=of is checkpointed)
        for part in ("per_token", "per_pair", "per_loss"):
            both = getattr(forward, part) + getattr(backward, part)
            assert both == pytest.approx(getattr(of, part))


def test_cost_is_taken_per_row() -> None:
    of = Coefficients(per_token=2.0, per_pair=0.5, per_loss=10.0)
    assert cost([1, 2], [0, 1], [4, 8], of).tolist() == [4.0, 18.0]
    assert cost([], [], [], of).shape == (0,)


def test_an_impossible_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="num_heads is 0"):
        ModelShape(8, 1, 0, 1, 8, 8, 100)
