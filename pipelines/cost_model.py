"""For which model a document's cost is counted: ``cost_model`` of a recipe, as coefficients.

qwen2.5-7b                 FLOPs of a shape, one of `packing.cost.PRESETS`
trained                    FLOPs of the model in the recipe's own `train` section
workspace/calibration.json seconds, measured by `nextscale calibrate`
"""

from packing.calibration import read_calibration
from packing.cost import PRESETS, Coefficients, ModelShape, coefficients, qwen2_5

TRAINED = "trained"


def check_cost_model(name: str) -> None:
    """Raises ValueError, in one line, for a ``cost_model`` that there is not."""
    if name == TRAINED or name in PRESETS:
        return
    if not name.endswith(".json"):
        raise ValueError(
            f"cost_model is {name!r}: choose one of {', '.join(PRESETS)}, {TRAINED}, or the .json "
            "file that `nextscale calibrate` wrote"
        )
    read_calibration(name)


def cost_coefficients(
    name: str, num_codes: int, checkpointing: bool, trained: ModelShape | None = None
) -> Coefficients:
    """The coefficients of a ``cost_model``; ``trained`` is the shape of the recipe's own model.

    A calibration was measured with its own ``checkpointing``. Raises ValueError for what
    `check_cost_model` refuses, and for a trained model that is not given.
    """
    check_cost_model(name)
    if name in PRESETS:
        return coefficients(qwen2_5(PRESETS[name], num_codes), checkpointing=checkpointing)
    if name != TRAINED:
        return read_calibration(name)
    if trained is None:
        raise ValueError(f"cost_model is {TRAINED}, but nothing is trained here: name a preset")
    return coefficients(trained, checkpointing=checkpointing)
