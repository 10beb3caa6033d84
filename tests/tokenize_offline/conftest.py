"""Photographs that come with scikit-image, and the carried tokenizer, loaded once."""

from pathlib import Path

import pytest
import torch

from tokenize_offline import checkpoint
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Photograph, read_photographs

torch.set_num_threads(1)

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


@pytest.fixture(scope="session")
def photographs() -> list[Photograph]:
    folder = Path(pytest.importorskip("skimage").__file__).parent / "data"
    return read_photographs([folder / name for name in NAMES], short_side=640)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return checkpoint.load()
