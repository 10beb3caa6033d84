"""Colour against the formulas, drawings against photographs."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from infra.pixels import Pixels, decode, encode_jpeg, resize_crop, to_struct
from infra.schema import ERROR
from operators.colour import Colour, colour_scores, reduced


@pytest.fixture(scope="module")
def pictures(photos: Path) -> dict[str, Pixels]:
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "china.jpg", "flower.jpg"]
    return {name: decode((photos / name).read_bytes(), 512).rgb for name in names}


def drawing(seed: int) -> Pixels:
    """Lines, boxes and words, as in a diagram."""
    rng = np.random.default_rng(seed)
    page = np.full((480, 640, 3), 255, np.uint8)
    for _ in range(12):
        (x, y), (w, h) = rng.integers(0, (480, 380)), rng.integers(40, (140, 90))
        fill = [float(v) for v in rng.integers(90, 256, 3)]
        cv2.rectangle(page, (int(x), int(y)), (int(x + w), int(y + h)), fill, -1)
        cv2.rectangle(page, (int(x), int(y)), (int(x + w), int(y + h)), (0, 0, 0), 2)
        where = (int(x) + 5, int(y) + 25)
        cv2.putText(page, f"box {x}", where, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 2)
    return page


PIXELS = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))


@settings(max_examples=80, deadline=None)
@given(rgb=PIXELS)
def test_the_formulas(rgb: Pixels) -> None:
    """At a size that is not reduced, against the definitions in floating point."""
    score = colour_scores(rgb)
    red, green, blue = (rgb[..., i].astype(float) for i in range(3))
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    mean = np.hypot(red_green.mean(), yellow_blue.mean())
    assert score.colourfulness == pytest.approx(spread + 0.3 * mean, abs=1e-6)
    assert 0 <= score.colourfulness <= 298
    luma = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
    shares = np.unique(luma, return_counts=True)[1] / luma.size
    assert score.entropy == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-9)
    assert 0 <= score.entropy <= 8
    chroma = rgb.max(-1).astype(int) - rgb.min(-1)
    assert score.grey_share == (chroma <= 8).mean()
    assert 0 <= score.line_art <= 1


def test_published_examples_of_colourfulness() -> None:
    half = np.zeros((2, 100, 3), np.uint8)
    half[0] = (255, 0, 0)
    half[1] = (0, 255, 255)
    # R - G = ±255, (R + G) / 2 - B = ±127.5, means 0
    assert colour_scores(half).colourfulness == pytest.approx(np.hypot(255, 127.5))
    red = np.full((50, 50, 3), (255, 0, 0), np.uint8)
    assert colour_scores(red).colourfulness == pytest.approx(0.3 * np.hypot(255, 127.5))


def test_photographs_lose_colour(pictures: dict[str, Pixels]) -> None:
    for name, rgb in pictures.items():
        score = colour_scores(rgb)
        assert 30 < score.colourfulness < 120, name
        assert 6 < score.entropy < 7.9, name
        assert score.grey_share < 0.3, name
        luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        grey = np.repeat(np.asarray(luma)[..., None], 3, 2)
        pale = (rgb // 2 + grey // 2).astype(np.uint8)
        assert 0 < colour_scores(pale).colourfulness < 0.6 * score.colourfulness, name
        assert colour_scores(grey)[0] == 0, name
        assert colour_scores(decode(encode_jpeg(grey, 60)).rgb).grey_share == 1, name
        # A tint is a colour: sepia as in every photo editor.
        sepia = np.clip(grey * [1.07, 0.95, 0.74], 0, 255).astype(np.uint8)
        assert colour_scores(sepia).grey_share < 0.3, name
        assert 5 < colour_scores(sepia).colourfulness < 45, name


def test_an_empty_picture_has_nothing() -> None:
    for value in (0, 77, 255):
        assert colour_scores(np.full((300, 400, 3), value, np.uint8)) == (0, 0, 1, 0)


@pytest.mark.parametrize("quality", [None, 90, 60])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_drawings_are_told_from_photographs(
    pictures: dict[str, Pixels], assets: Path, quality: int | None, scale: float
) -> None:
    def score(rgb: Pixels) -> float:
        h, w = rgb.shape[:2]
        if scale != 1:
            rgb = resize_crop(rgb, round(h * scale), round(w * scale))[0]
        return colour_scores(rgb if quality is None else decode(encode_jpeg(rgb, quality)).rgb)[3]

    drawings = [drawing(seed) for seed in range(4)]
    page = (assets / "images/tesseract_phototest.tif").read_bytes()
    drawings.append(decode(page, 512).rgb)
    assert min(score(rgb) for rgb in drawings) > 0.35
    assert max(score(rgb) for rgb in pictures.values()) < 0.2


def test_all_photographs_of_a_folder_score_as_photographs(assets: Path) -> None:
    scores = {
        path.name: colour_scores(decode(path.read_bytes(), 512).rgb)
        for path in (assets / "images").iterdir()
    }
    drawn = {name for name, score in scores.items() if score.line_art > 0.2}
    assert drawn == {"tesseract_phototest.tif"}
    grey = {name for name, score in scores.items() if score.grey_share > 0.95}
    assert grey == {
        "coco_10125.jpg",
        "coco_19924.jpg",
        "skimage_text.png",
        "tesseract_phototest.tif",
        "wesaturate_keong_gray.png",
    }
    assert grey == {name for name, score in scores.items() if score.colourfulness == 0}


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 200), width=st.integers(1, 200), side=st.integers(1, 60))
def test_reduction_is_by_whole_factors_and_means(height: int, width: int, side: int) -> None:
    rgb = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    small = reduced(rgb, side)
    h, w = small.shape[:2]
    factor = max(1, round(min(height, width) / side))
    assert (h, w) == (height // factor, width // factor)
    blocks = rgb[: h * factor, : w * factor].reshape(h, factor, w, factor, 3).astype(float)
    assert np.abs(small - blocks.mean((1, 3))).max() <= 0.5 + 1e-6


def test_columns(pictures: dict[str, Pixels]) -> None:
    first, second = list(pictures.values())[:2]
    failed = {"stage": "probe", "type": "empty", "message": ""}
    errors = pa.array([None, failed, None], ERROR.type)
    table = pa.table({"image": to_struct([first, second, None]), "error": errors})
    batch = Colour()(table)
    assert batch.column_names == ["image", "error", *Colour.writes.names]
    for i, field in enumerate(Colour.writes):
        expected = [pytest.approx(colour_scores(first)[i]), None, None]
        assert batch[field.name].to_pylist() == expected
        assert batch.schema.field(field.name).equals(field, check_metadata=True)
    assert Colour()(table.slice(0, 1)).to_pylist() == batch.slice(0, 1).to_pylist()
    assert Colour()(table.slice(0, 0)).num_rows == 0
    assert pickle.loads(pickle.dumps(Colour())) == Colour()
