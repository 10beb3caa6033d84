from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infra.config import ConfigError
from tokenize_offline.teacher import TEACHER_DIM, Teacher, load_teacher


def test_weights_round_trip_and_widen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = Teacher()
    path = tmp_path / "teacher.safetensors"
    save_file({name: value.half() for name, value in teacher.state_dict().items()}, path)
    loaded = load_teacher(path)
    pixels = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(loaded(pixels), teacher(pixels), atol=1e-2, rtol=1e-2)
    assert loaded(pixels).shape == (1, TEACHER_DIM, 4, 6)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.safetensors does not exist"):
        load_teacher(tmp_path / "nothing.safetensors")


def test_another_networks_weights_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"it has no `stem\.weight`"):
        load_teacher(tmp_path / "other.safetensors")
