"""Bars and frames of known size around real photographs, and grounds of known share."""

import io
import pickle
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.pixels import Pixels, decode, to_struct
from infra.schema import ERROR
from operators.borders import Borders, border_scores

NAMES = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "china.jpg", "flower.jpg"]
COLOURS = [(0, 0, 0), (255, 255, 255), (200, 60, 30)]


@pytest.fixture(scope="module")
def pictures(photos: Path) -> dict[str, Pixels]:
    return {name: decode((photos / name).read_bytes(), 512).rgb for name in NAMES}


def as_jpeg(rgb: Pixels, quality: int) -> Pixels:
    """What the decoder makes of a JPEG with halved chroma, as they are found."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling=2)
    return decode(buffer.getvalue(), 512).rgb


def padded(
    rgb: Pixels, sides: tuple[float, float, float, float], colour: tuple[int, int, int]
) -> tuple[Pixels, float]:
    """The picture with bars at top, bottom, left, right (shares of its sides), and their area."""
    h, w = rgb.shape[:2]
    top, bottom, left, right = (round(s * n) for s, n in zip(sides, (h, h, w, w), strict=True))
    made = cv2.copyMakeBorder(
        rgb, top, bottom, left, right, cv2.BORDER_CONSTANT, value=[float(c) for c in colour]
    )
    return np.asarray(made, np.uint8), 1 - h * w / (made.shape[0] * made.shape[1])


def cut_out(rgb: Pixels, colour: int, radius: float) -> tuple[Pixels, float]:
    """An ellipse of the picture on a plain ground, and the ground's share."""
    h, w = rgb.shape[:2]
    mask = np.zeros((h, w), np.uint8)
    cv2.ellipse(mask, (w // 2, h // 2), (int(radius * w), int(radius * h)), 0, 0, 360, 255, -1)
    made = np.where(mask[..., None] > 0, rgb, np.uint8(colour)).astype(np.uint8)
    same = (np.abs(rgb.astype(int) - colour).max(-1) <= 8) & (mask > 0)
    return made, float(1 - (mask > 0).mean() + same.mean())


@pytest.mark.parametrize("quality", [95, 75, 50])
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    "sides",
    [(0.12, 0.12, 0, 0), (0, 0, 0.07, 0.07), (0.08,) * 4, (0.1, 0, 0, 0)],
    ids=["letterbox", "pillarbox", "frame", "one bar"],
)
def test_bars_are_measured(
    pictures: dict[str, Pixels],
    sides: tuple[float, float, float, float],
    colour: tuple[int, int, int],
    quality: int,
) -> None:
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "flower.jpg"):
        made, share = padded(pictures[name], sides, colour)
        if name == "astronaut.png" and colour == (0, 0, 0) and min(sides) == 0:
            continue  # its lower left is black: see the next test
        assert border_scores(as_jpeg(made, quality)).border_share == pytest.approx(share, abs=0.015)


def test_a_dark_scene_melts_into_one_of_two_bars(pictures: dict[str, Pixels]) -> None:
    dark = pictures["flower.jpg"].copy()
    slope = np.arange(dark.shape[1]) // 4 + 20  # a black hill, up to 180 rows high
    dark[np.arange(dark.shape[0])[::-1, None] < slope] = 0
    made, share = padded(dark, (0.12, 0.12, 0, 0), (0, 0, 0))
    assert border_scores(as_jpeg(made, 75)).border_share == pytest.approx(share, abs=0.015)


def test_one_frame_within_another(pictures: dict[str, Pixels]) -> None:
    inner, _ = padded(pictures["coffee.png"], (0.06,) * 4, (255, 255, 255))
    made, _ = padded(inner, (0.15, 0.15, 0, 0), (0, 0, 0))
    share = 1 - pictures["coffee.png"].size / made.size
    assert border_scores(as_jpeg(made, 75)).border_share == pytest.approx(share, abs=0.02)


def test_photographs_have_no_bars(assets: Path) -> None:
    paths = sorted((assets / "images").iterdir())
    assert len(paths) >= 50
    for path in paths:
        assert border_scores(decode(path.read_bytes(), 512).rgb).border_share == 0, path.name


def test_photographs_have_little_plain_ground(assets: Path) -> None:
    plain = {}
    for path in sorted((assets / "images").iterdir()):
        plain[path.name] = border_scores(decode(path.read_bytes(), 512).rgb)
    high = {name for name, score in plain.items() if score.background_share > 0.4}
    assert high == {
        "tesseract_phototest.tif",  # a page
        "skimage_hubble_deep_field.jpg",  # black space
        "mx_nikon_d3100_leaf.jpg",  # a leaf on even snow
        "mdn_painted.jpg",  # a hand before a yellow wall
    }
    page, space = plain["tesseract_phototest.tif"], plain["skimage_hubble_deep_field.jpg"]
    assert page.background_share > 0.8
    assert page.background_luma == 255
    assert space.background_luma < 20
    # Clear skies above a landscape.
    for name in ("lomiri_aitzgorri.jpg", "sklearn_china.jpg", "skimage_rocket.jpg"):
        assert plain[name].background_share < 0.15, name


@pytest.mark.parametrize("quality", [95, 75, 50])
@pytest.mark.parametrize("colour", [0, 128, 255])
def test_the_ground_of_cut_outs(pictures: dict[str, Pixels], colour: int, quality: int) -> None:
    for number, (name, rgb) in enumerate(pictures.items()):
        radius = 0.2 + 0.05 * number
        made, share = cut_out(rgb, colour, radius)
        score = border_scores(as_jpeg(made, quality))
        assert score.background_share == pytest.approx(share, abs=0.03), name
        assert score.background_luma == pytest.approx(colour, abs=2), name
        assert score.border_share == 0, name  # an object on a ground is no frame


def test_natural_stripes_are_no_bars() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 2, (400, 600, 1))
    fading = np.linspace(250, 120, 400)[:, None, None]  # a cloudless sky
    sky = np.clip(np.broadcast_to(fading + noise, (400, 600, 3)), 0, 255).astype(np.uint8)
    assert border_scores(sky).border_share == 0
    assert border_scores(sky).background_share < 0.3
    night = np.zeros((400, 600, 3), np.uint8)
    for left in range(0, 600, 60):  # a skyline, no straight end
        night[rng.integers(150, 350) :, left : left + 60] = rng.integers(60, 255, 3)
    assert border_scores(night).border_share == 0
    snow = np.clip(rng.normal(235, 9, (400, 600, 1)), 0, 255).astype(np.uint8).repeat(3, 2)
    assert border_scores(snow).border_share == 0


def test_pictures_of_one_colour() -> None:
    for shape in [(300, 400), (1, 1), (5, 4000), (4000, 5)]:
        scores = border_scores(np.full((*shape, 3), (10, 200, 30), np.uint8))
        assert scores == (1.0, 1.0, pytest.approx(0.299 * 10 + 0.587 * 200 + 0.114 * 30))


SHAPES = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 256))
def test_any_pixels_score_within_range_and_upside_down(
    shape: tuple[int, int], seed: int, levels: int
) -> None:
    rgb = np.random.default_rng(seed).integers(0, levels, (*shape, 3), dtype=np.uint8)
    score = border_scores(rgb)
    assert 0 <= score.border_share <= 1
    assert 0 <= score.background_share <= 1
    assert 0 <= score.background_luma <= 255
    turned = border_scores(np.ascontiguousarray(rgb[::-1, ::-1]))
    assert turned.border_share == pytest.approx(score.border_share, abs=1e-9)
    assert turned.background_luma == pytest.approx(score.background_luma)


@settings(max_examples=25, deadline=None)
@given(
    top=st.integers(0, 60),
    bottom=st.integers(0, 60),
    left=st.integers(0, 60),
    right=st.integers(0, 60),
    grey=st.integers(0, 255),
)
def test_clean_bars_are_exact(top: int, bottom: int, left: int, right: int, grey: int) -> None:
    """Bars around noise, at a size that is not reduced: to the pixel, or one of them."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    made = cv2.copyMakeBorder(
        noise, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(grey, grey, grey)
    )
    share = 1 - 160 * 200 / (made.shape[0] * made.shape[1])
    assert border_scores(np.asarray(made, np.uint8)).border_share == pytest.approx(share, abs=0.02)


def test_columns(pictures: dict[str, Pixels]) -> None:
    first, second = list(pictures.values())[:2]
    failed = {"stage": "probe", "type": "empty", "message": ""}
    errors = pa.array([None, failed, None], ERROR.type)
    table = pa.table({"image": to_struct([first, second, None]), "error": errors})
    batch = Borders()(table)
    assert batch.column_names == ["image", "error", *Borders.writes.names]
    for i, field in enumerate(Borders.writes):
        assert batch[field.name].to_pylist() == [
            pytest.approx(border_scores(first)[i]),
            None,
            None,
        ]
        assert batch.schema.field(field.name).equals(field, check_metadata=True)
    assert Borders()(table.slice(0, 1)).slice(0, 1).to_pylist() == batch.slice(0, 1).to_pylist()
    assert Borders()(table.slice(0, 0)).num_rows == 0
    assert pickle.loads(pickle.dumps(Borders())) == Borders()
