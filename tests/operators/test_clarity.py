"""Sharp is high, blurred is low, and the pixel count does not matter."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from infra.pixels import Pixels, decode, resize_crop, to_struct
from infra.schema import ERROR
from operators.clarity import Clarity, clarity


@pytest.fixture(scope="module")
def pictures(photos: Path) -> dict[str, Pixels]:
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "china.jpg", "flower.jpg"]
    return {name: decode((photos / name).read_bytes(), 512).rgb for name in names}


def blurred(rgb: Pixels, sigma: float) -> Pixels:
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), sigma), np.uint8)


def scaled(rgb: Pixels, factor: float) -> Pixels:
    h, w = rgb.shape[:2]
    return resize_crop(rgb, round(h * factor), round(w * factor))[0]


def test_sharp_photographs_are_clear_and_blur_lowers_them(pictures: dict[str, Pixels]) -> None:
    for name, rgb in pictures.items():
        scores = [clarity(rgb), *(clarity(blurred(rgb, sigma)) for sigma in (0.7, 1, 1.5, 2, 3, 4))]
        assert scores == sorted(scores, reverse=True), name
        assert scores[0] > 0.7, name
        assert scores[4] < 0.45, name
        assert scores[6] < 0.2, name


def test_motion_blur_in_one_direction_shows(pictures: dict[str, Pixels]) -> None:
    for name, rgb in pictures.items():
        moved = np.asarray(cv2.blur(rgb, (15, 1)), np.uint8)
        assert clarity(moved) < 0.6 * clarity(rgb), name


def test_enlarged_thumbnails_are_unclear(pictures: dict[str, Pixels]) -> None:
    for name, rgb in pictures.items():
        h, w = rgb.shape[:2]
        tiny = scaled(rgb, 64 / min(h, w))
        assert clarity(tiny) > 0.6, name  # crisp for what it is
        assert clarity(resize_crop(tiny, h, w)[0]) < 0.4, name


def test_the_same_photograph_at_two_sizes(assets: Path, photos: Path) -> None:
    paths = [photos / "retina.jpg"]
    paths += [assets / f"images/{n}.jpg" for n in ("jxl_flower", "lomiri_aitzgorri", "lomiri_wine")]
    for path in paths:
        full = decode(path.read_bytes()).rgb
        large, small = (scaled(full, side / min(full.shape[:2])) for side in (1024, 512))
        assert clarity(large) == pytest.approx(clarity(small), abs=0.02), path.name
        # and as it comes from the scaled JPEG decoder
        assert clarity(decode(path.read_bytes(), 512).rgb) == pytest.approx(clarity(small), abs=0.1)


def test_half_the_pixels_change_little(pictures: dict[str, Pixels]) -> None:
    for name, rgb in pictures.items():
        assert clarity(scaled(rgb, 0.5)) == pytest.approx(clarity(rgb), abs=0.12), name


def test_contrast_hardly_matters(pictures: dict[str, Pixels]) -> None:
    for name, rgb in pictures.items():
        pale = (rgb // 2 + 64).astype(np.uint8)
        assert clarity(pale) == pytest.approx(clarity(rgb), abs=0.05), name


def test_pictures_without_detail() -> None:
    assert clarity(np.full((300, 300, 3), 128, np.uint8)) == 0.0
    ramp = np.tile(np.linspace(0, 255, 600).astype(np.uint8)[None, :, None], (400, 1, 3))
    assert clarity(ramp) < 0.4
    for shape in [(1, 1, 3), (9, 500, 3), (10, 10, 3)]:
        assert clarity(np.zeros(shape, np.uint8)) == 0.0


def test_stripes_are_judged_across() -> None:
    stripes = np.zeros((200, 200, 3), np.uint8)
    stripes[:, ::20] = 255
    assert clarity(stripes) > 0.8


def test_column(pictures: dict[str, Pixels]) -> None:
    first, second = list(pictures.values())[:2]
    failed = {"stage": "probe", "type": "empty", "message": ""}
    errors = pa.array([None, failed, None], ERROR.type)
    table = pa.table({"image": to_struct([first, second, None]), "error": errors})
    batch = Clarity()(table)
    assert batch["clarity"].to_pylist() == [pytest.approx(clarity(first)), None, None]
    assert batch.schema.field("clarity").equals(Clarity.writes[0], check_metadata=True)
    assert Clarity()(table.slice(0, 1))["clarity"][0] == batch["clarity"][0]
    assert Clarity()(table.slice(0, 0))["clarity"].to_pylist() == []
    assert Clarity()(table.slice(1))["clarity"].to_pylist() == [None, None]
    assert pickle.loads(pickle.dumps(Clarity(short_side=99))) == Clarity(short_side=99)
    with pytest.raises(ValueError, match="short_side is 3"):
        Clarity(short_side=3)
