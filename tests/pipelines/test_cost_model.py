"""Which cost model a recipe may name, and what each comes to."""

import pytest

from infra.config import ConfigError, build
from packing.calibration import Calibration, Fitted, write_calibration
from packing.cost import PRESETS, Coefficients, ModelShape, coefficients, qwen2_5
from pipelines.cost_model import check_cost_model, cost_coefficients
from pipelines.sections import Pack

SHAPE = ModelShape(64, 2, 4, 2, 16, 128, 300)
MEASURED = Coefficients(1e-6, 2e-9, 3e-7, 0.01, "s")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_shapes_with_the_tokenizers_codes(name):
    found = cost_coefficients(name, 64, checkpointing=True)
    assert found == coefficients(qwen2_5(PRESETS[name], 64), checkpointing=True)
    assert build(Pack, {"cost_model": name}).cost_model == name


def test_a_calibration_is_taken_as_it_was_measured(tmp_path):
    path = str(tmp_path / "calibration.json")
    measured = Calibration(Fitted(MEASURED, 8, 0.01, 2.0), SHAPE, "cpu", "float32", 1, 1, 1, False)
    write_calibration(path, measured)
    assert cost_coefficients(path, 64, checkpointing=True) == MEASURED
    assert build(Pack, {"cost_model": path}).cost_model == path


def test_the_trained_model_must_be_given():
    assert cost_coefficients("trained", 64, False, SHAPE) == coefficients(SHAPE)
    with pytest.raises(ValueError, match="name a preset"):
        cost_coefficients("trained", 64, False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen2.5-8b", r"cost_model is 'qwen2\.5-8b': choose one of qwen2\.5-0\.5b, "),
        ("none.json", "calibration none.json does not exist"),
        ("", "cost_model is ''"),
    ],
)
def test_others_are_refused_in_one_line(name, message):
    with pytest.raises(ValueError, match=message):
        check_cost_model(name)
    with pytest.raises(ConfigError, match=message) as told:
        build(Pack, {"cost_model": name}, "pack")
    assert "\n" not in str(told.value)
