"""TransNetV2: each frame gets one probability, however the frames come."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from operators.transnet import Transitions, load, probabilities


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network of the right shapes that has learned nothing."""
    generator = torch.Generator().manual_seed(0)
    made: dict[str, torch.Tensor] = {}

    def draw(name: str, *shape: int) -> None:
        fan_in = math.prod(shape[1:])  # keeps activations near 1
        made[name] = torch.randn(shape, generator=generator) / fan_in**0.5

    width = 3
    for block, filters in enumerate((16, 32, 64)):
        for cell in range(2):
            name = f"SDDCNN.{block}.DDCNN.{cell}"
            for dilation in (1, 2, 4, 8):
                draw(f"{name}.Conv3D_{dilation}.layers.0.weight", 2 * filters, width, 1, 3, 3)
                draw(f"{name}.Conv3D_{dilation}.layers.1.weight", filters, 2 * filters, 3, 1, 1)
            width = 4 * filters
            for part in ("weight", "bias", "running_mean"):
                draw(f"{name}.bn.{part}", width)
            made[f"{name}.bn.running_var"] = torch.ones(width)
    layers = {
        "frame_sim_layer.projection": (128, 448),
        "frame_sim_layer.fc": (128, 101),
        "color_hist_layer.fc": (128, 101),
        "fc1": (1024, 4864),
        "cls_layer1": (1, 1024),
    }
    for name, shape in layers.items():
        draw(f"{name}.weight", *shape)
        draw(f"{name}.bias", shape[0])
    path = tmp_path_factory.mktemp("weights") / "transnet.safetensors"
    save_file(made, path)
    return str(path)


@pytest.mark.parametrize("num", [1, 51])
def test_every_frame_gets_a_probability(weights: str, num: int) -> None:
    frames = np.random.default_rng(num).integers(0, 256, (num, 27, 48, 3), np.uint8)
    whole = Transitions(weights)
    once = np.concatenate([whole.feed(frames), whole.finish()])
    assert once.shape == (num,)
    assert ((once > 0) & (once < 1)).all()
    assert np.ptp(once) > 0 or num == 1
    # As the paper's code does: padded with the ends, 100 frames at a time, the middle told.
    padded = np.concatenate([np.repeat(frames[:1], 25, 0), frames, np.repeat(frames[-1:], 100, 0)])
    windows = [
        probabilities(load(weights), padded[start : start + 100])[25:75]
        for start in range(0, num, 50)
    ]
    np.testing.assert_array_equal(once, np.concatenate(windows)[:num])


def test_portions_do_not_matter(weights: str) -> None:
    frames = np.random.default_rng(7).integers(0, 256, (49, 27, 48, 3), np.uint8)
    told = []
    for cuts in ([], [25, 26, 26]):
        parts = np.split(frames, cuts)
        network = Transitions(weights)
        told.append(np.concatenate([*(network.feed(part) for part in parts), network.finish()]))
    for other in told[1:]:
        np.testing.assert_array_equal(told[0], other)
    assert Transitions(weights).finish().shape == (0,)


def test_what_is_no_transnet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no file"):
        load(str(tmp_path / "none"))
    (tmp_path / "text").write_text("weights")
    with pytest.raises(ValueError, match="is no safetensors file"):
        load(str(tmp_path / "text"))
    save_file({"a": torch.zeros(3)}, tmp_path / "other")
    with pytest.raises(ValueError, match="holds no TransNetV2"):
        load(str(tmp_path / "other"))
