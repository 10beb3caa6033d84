from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.schedules import nearest
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Photograph, whole
from tokenize_offline.sample_grid import write_sample_grid


@pytest.fixture(scope="module")
def odd(photographs: list[Photograph]) -> list[Photograph]:
    """A square, a very tall and a very wide picture."""
    rgb = photographs[0].rgb
    tall, wide = np.ascontiguousarray(rgb[:, 100:220]), np.ascontiguousarray(rgb[60:200])
    name = "a/name/in/日本語/and far too long for what is below one small picture, really.jpg"
    return [photographs[0], Photograph(name, tall), Photograph("wide", wide)]


def test_the_first_column_shows_the_photographs(
    tokenizer: Tokenizer, odd: list[Photograph], tmp_path: Path
) -> None:
    write_sample_grid(tokenizer, odd, 256, tmp_path / "grid")  # a PNG whatever the name
    with Image.open(tmp_path / "grid") as picture:
        assert picture.format == "PNG"
        sheet = np.asarray(picture)
    assert max(sheet.shape[:2]) < 6 * 330
    square = whole(odd[0], 256)[1]
    blocks = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], (1, 256))[:, :, 0]
    found = np.argwhere((blocks == square[0, :, 0]).all(axis=2))
    assert len(found) == 1
    top, left = found[0]
    assert (sheet[top : top + 256, left : left + 256] == square).all()


def test_same_bytes_and_a_single_pass(
    tokenizer: Tokenizer, odd: list[Photograph], tmp_path: Path
) -> None:
    for name in ("one.png", "two.png"):
        write_sample_grid(tokenizer, iter(odd[:2]), 256, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_large_levels_are_bounded(
    tokenizer: Tokenizer, odd: list[Photograph], tmp_path: Path
) -> None:
    write_sample_grid(tokenizer, odd[1:2], 512, tmp_path / "grid.png")
    height, width = nearest(*odd[1].rgb.shape[:2]).image_size(512)
    assert height > 512
    with Image.open(tmp_path / "grid.png") as picture:
        assert 512 < picture.height < 600
        assert picture.width > 6 * 512 * width // height


def test_no_photographs_are_a_mistake(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs photographs"):
        write_sample_grid(tokenizer, [], 256, tmp_path / "grid.png")
