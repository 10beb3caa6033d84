"""Settings are checked where they are read, by key and value."""

from pathlib import Path

import pytest
import yaml

from infra.config import ConfigError, build
from trainer.config import ModelConfig, TrainConfig

REQUIRED = {"packs": "packs", "output": "out", "steps": 3}


def test_a_recipe_section_becomes_a_config():
    config = build(TrainConfig, REQUIRED | {"model": {"num_layers": 2}, "betas": [0.9, 0.99]})
    assert config == TrainConfig("packs", "out", 3, model=ModelConfig(num_layers=2),
                                 betas=(0.9, 0.99))  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps is 0: use at least 1"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0: use a positive"),
        ({"scale_alpha": -0.5}, "scale_alpha is -0.5: use 0 or more"),
        ({"betas": [0.9, 1.0]}, r"betas are \(0.9, 1.0\)"),
        ({"output": "s3://bucket/run"}, "output is s3://bucket/run: use a local"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: use a positive"),
        ({"weight_decay": float("inf")}, "weight_decay is inf"),
        ({"warmup_steps": 3}, "warmup_steps is 3: use less than the steps, 3"),
        ({"zero_stage": 4}, "zero_stage` is 4: choose one of 0, 1, 2, 3"),
        ({"compile": True, "zero_stage": 3}, "compile is true: use zero_stage 0 to 2"),
        ({"peak_tflops": 0}, "peak_tflops is 0"),
        ({"model": {"num_heads": 5}}, "`model`: num_kv_heads is 2: it must divide num_heads 5"),
        ({"model": {"head_dim": 64}}, r"`model`: mrope_sections \(4, 6, 6\) must"),
        ({"model": {"hidden_size": 7}}, "`model`: hidden_size is 7: use an even"),
        ({"model": {"num_layers": 0}}, "`model`: num_layers is 0"),
        ({"model": {"rope_theta": 0.0}}, "`model`: rope_theta is 0.0"),
        ({"lerning_rate": 1.0}, "did you mean `learning_rate`"),
    ],
)
def test_impossible_values_name_key_value_and_remedy(wrong, message):
    with pytest.raises(ConfigError, match=message):
        build(TrainConfig, REQUIRED | wrong)


def test_the_demo_recipe_is_valid():
    recipe = Path(__file__).parents[2] / "pipelines/recipes/demo.yaml"
    section = yaml.safe_load(recipe.read_text())["train"]
    assert build(TrainConfig, REQUIRED | section).learning_rate == 2e-3
