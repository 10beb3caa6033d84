"""Photographs that come with scikit-image, and the carried tokenizer, loaded once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tokenize_offline import checkpoint
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Photograph, open_pictures
from tokenize_offline.teacher import EfficientNetTeacher

torch.set_num_threads(1)

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


@pytest.fixture(scope="session")
def photographs() -> list[Photograph]:
    folder = Path(pytest.importorskip("skimage").__file__).parent / "data"
    return list(open_pictures([folder / name for name in NAMES], short_side=640))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return checkpoint.load()


@pytest.fixture(scope="session")
def tiny_training(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe, but for its output, that trains tiny networks for seconds on real photographs."""
    teacher = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(0)
    save_file(EfficientNetTeacher().state_dict(), teacher)
    data = Path(pytest.importorskip("skimage").__file__).parent / "data"
    return {
        "images": [str(data / name) for name in ("coffee.png", "rocket.jpg", "chelsea.png")],
        "teacher": str(teacher),
        "held_out_share": 0.0,
        "short_side": 256,
        "device": "cpu",
        "log_every": 1,
        "save_every": 2,
        "tokenizer": {
            "num_codes": 64,
            "encoder_channels": [8, 8, 8],
            "decoder_channels": [8, 8, 8],
            "semantic_channels": [8, 8],
        },
        "learning": {
            "branch_steps": 5,
            "joint_steps": 6,
            "decoder_steps": 5,
            "batch_size": 2,
            "level_512_share": 0.0,
            "fit_batches": [2, 0, 0],
            "lloyd_rounds": 2,
            "restart_every": 2,
            "scale_dropout_share": 0.5,
            "bfloat16": False,
        },
    }
