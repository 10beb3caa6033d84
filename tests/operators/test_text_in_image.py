"""Printed, photographed and drawn text is found and read; photographs have none."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from infra.config import ConfigError
from infra.pixels import Pixels, decode, to_struct
from infra.schema import ERROR
from operators.text_in_image import TextInImage, covered, is_object, reading_order

pytest.importorskip("rapidocr", reason="the extra ocr is not installed")


@pytest.fixture(scope="module")
def reader() -> TextInImage:
    return TextInImage()


@pytest.fixture(scope="module")
def detector() -> TextInImage:
    return TextInImage(recognize=False)


def table(pictures: list[Pixels | None]) -> pa.Table:
    return pa.table({"image": to_struct(pictures), "error": pa.nulls(len(pictures), ERROR.type)})


def read(path: Path) -> Pixels:
    return decode(path.read_bytes(), 512).rgb


def rows(operator: TextInImage, pictures: list[Pixels]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = (
        operator(table(list(pictures))).select(TextInImage.writes.names).to_pylist()
    )
    return found


def written(
    rgb: Pixels, text: str, place: tuple[int, int], height: int, opacity: float = 1.0
) -> Pixels:
    """``text`` in white, ``height`` pixels high, laid over a picture."""
    mask = Image.new("L", (rgb.shape[1], rgb.shape[0]))
    ImageDraw.Draw(mask).text(place, text, fill=255, font=ImageFont.load_default(height))
    alpha = np.asarray(mask)[..., None] / 255 * opacity
    return (rgb * (1 - alpha) + 255 * alpha).astype(np.uint8)


def test_a_page_is_read(reader: TextInImage, assets: Path) -> None:
    (row,) = rows(reader, [read(assets / "images/tesseract_phototest.tif")])
    text = str(row["ocr_text"])
    assert text.splitlines()[1] == "ocr code and see if it works on all types"
    assert text.splitlines()[3:5] == [
        "The quick brown dog jumped over the",
        "lazy fox. The quick brown dog jumped",
    ]
    assert row["num_text_boxes"] == len(text.splitlines()) == 8
    assert 0.3 < float(str(row["text_share"])) < 0.6
    assert float(str(row["ocr_score"])) > 0.95


def test_photographed_pages_are_text_and_photographs_are_not(
    reader: TextInImage, photos: Path
) -> None:
    import skimage.data

    page = np.repeat(skimage.data.page()[..., None], 3, 2)
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "flower.jpg"]
    found = rows(reader, [page, *(read(photos / name) for name in names)])
    assert found[0]["num_text_boxes"] == 7
    assert str(found[0]["ocr_text"]).startswith("Region-based segmentation\n")
    for name, row in zip(names, found[1:], strict=True):
        expected = {"text_share": 0, "num_text_boxes": 0, "ocr_text": None, "ocr_score": None}
        assert row == expected, name


@pytest.mark.parametrize("opacity", [1.0, 0.6])
def test_a_watermark_line_is_read_back(
    reader: TextInImage, detector: TextInImage, photos: Path, opacity: float
) -> None:
    rgb = read(photos / "coffee.png")
    marked = written(rgb, "© Harbour Stock 2031", (150, 330), 32, opacity)
    (row,), (found,) = rows(reader, [marked]), rows(detector, [marked])
    assert "Harbour Stock 2031" in str(row["ocr_text"])
    assert row["num_text_boxes"] == 1
    assert 0.02 < float(str(row["text_share"])) < 0.1
    assert found == row | {"ocr_text": None, "ocr_score": None}


def test_lines_come_in_reading_order(reader: TextInImage) -> None:
    page = np.full((300, 512, 3), 90, np.uint8)
    places = {"north": (30, 20), "east": (330, 26), "centre": (180, 120), "south": (30, 220)}
    for text, place in places.items():
        page = written(page, text, place, 36)
    (row,) = rows(reader, [page])
    assert row["ocr_text"] == "north east\ncentre\nsouth"
    assert row["num_text_boxes"] == 4


def test_a_row_does_not_depend_on_its_batch(reader: TextInImage, photos: Path) -> None:
    coffee = read(photos / "coffee.png")
    pictures = [written(coffee, "one line", (40, 40), 30), read(photos / "chelsea.png")]
    pictures.append(written(pictures[1], "another, longer line", (20, 200), 24))
    together = rows(reader, pictures)
    assert rows(reader, pictures[::-1]) == together[::-1]
    assert [rows(reader, [rgb])[0] for rgb in pictures] == together
    assert rows(pickle.loads(pickle.dumps(reader)), pictures[:1]) == together[:1]


def test_failed_rows_stay_empty_and_nothing_loads_for_them(photos: Path) -> None:
    operator = TextInImage()
    failed = {"stage": "probe", "type": "empty", "message": ""}
    batch = table([read(photos / "rocket.jpg"), None])
    batch = operator(batch.set_column(1, ERROR, pa.array([failed, None], ERROR.type)))
    for field in TextInImage.writes:
        assert batch[field.name].to_pylist() == [None, None]
        assert batch.schema.field(field.name).equals(field, check_metadata=True)
    assert operator(table([])).num_rows == 0
    assert "_engine" not in vars(operator)
    assert len(pickle.dumps(operator)) < 500


@pytest.mark.parametrize("shape", [(1, 1), (1, 4096), (7, 300), (8, 900), (900, 8), (31, 33)])
def test_slivers_are_read_without_fuss(reader: TextInImage, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    (row,) = rows(reader, [noise])
    assert 0 <= float(str(row["text_share"])) <= 1


def box(left: float, top: float, width: float, height: float) -> np.ndarray:
    right, bottom = left + width, top + height
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


BOXES = st.lists(
    st.builds(
        box, st.integers(0, 180), st.integers(0, 180), st.integers(1, 60), st.integers(1, 20)
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(found=BOXES)
def test_reading_order_keeps_every_box(found: list[np.ndarray]) -> None:
    boxes = np.array(found).reshape(-1, 4, 2)
    lines = reading_order(boxes)
    assert sorted(i for line in lines for i in line) == list(range(len(boxes)))
    firsts = [min((boxes[i, :, 1].mean() for i in line), default=0.0) for line in lines]
    assert firsts == sorted(firsts)
    for line in lines:
        lefts = [boxes[i, 0, 0] for i in line]
        assert lefts == sorted(lefts)


@settings(max_examples=60, deadline=None)
@given(found=BOXES)
def test_covered_is_the_share_of_the_union(found: list[np.ndarray]) -> None:
    boxes = np.array(found).reshape(-1, 4, 2)
    mask = np.zeros((150, 200), bool)  # some boxes stand out of it
    for (left, top), _, (right, bottom), _ in boxes.astype(int):
        mask[top : bottom + 1, left : right + 1] = True
    assert covered(boxes, 150, 200) == pytest.approx(mask.mean())


def test_objects_are_not_letters() -> None:
    assert is_object(box(10, 10, 300, 280), 400, 600)
    assert not is_object(box(10, 10, 40, 38), 400, 600)  # a single figure
    assert not is_object(box(10, 10, 500, 100), 400, 600)  # a headline


def test_what_is_not_installed_is_told_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = TextInImage().identity
    assert identity.startswith("rapidocr 3.")
    assert identity.startswith(TextInImage(recognize=False).identity)
    known = importlib.util.find_spec
    for missing in ("rapidocr", "onnxruntime"):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, gone=missing: known(name) if name != gone else None,
        )
        with pytest.raises(ConfigError, match=rf"{missing} is not installed: .*nextscale\[ocr\]"):
            _ = TextInImage().identity


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match=r"min_score is 1\.5"):
        TextInImage(min_score=1.5)
