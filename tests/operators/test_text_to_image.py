import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from skimage import data

from infra.schedules import SCHEDULES, nearest
from infra.schema import DOCUMENTS, ERROR_TYPE
from operators.text_to_image import TextToImage


def png(rgb):
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


def batch(files, errors=None):
    rows = len(files)
    return pa.table(
        {
            "doc_id": [f"d{i}" for i in range(rows)],
            "sample_id": [f"s{i}" for i in range(rows)],
            "source": ["photos"] * rows,
            "text": ["a caption"] * rows,
            "bytes": pa.array(files, pa.large_binary()),
            "error": pa.array(errors or [None] * rows, ERROR_TYPE),
        },
        schema=pa.schema(
            [
                ("doc_id", pa.string()),
                ("sample_id", pa.string()),
                ("source", pa.string()),
                ("text", pa.string()),
                ("bytes", pa.large_binary()),
                ("error", ERROR_TYPE),
            ]
        ),
    )


def test_a_photograph_becomes_caption_and_target_image():
    [row] = TextToImage(level=256)(batch([png(data.astronaut())])).to_pylist()
    text, image = row["segments"]
    assert (row["task"], row["sample_ids"], row["error"]) == ("t2i", ["s0"], None)
    assert (text["kind"], text["text"], text["loss"]) == ("text", "a caption", True)
    assert (image["kind"], image["role"], image["loss"]) == ("image", "target", True)
    decoded = Image.open(io.BytesIO(image["image"]))
    assert decoded.size == (image["width"], image["height"]) == (256, 256)


def test_the_stored_picture_is_the_centre_of_the_source_at_the_schedules_size():
    left_half_black = np.full((400, 800, 3), 255, np.uint8)
    left_half_black[:, :400] = 0
    [row] = TextToImage(level=256)(batch([png(left_half_black)])).to_pylist()
    image = row["segments"][1]
    assert (image["height"], image["width"]) == nearest(400, 800).image_size(256)
    pixels = np.asarray(Image.open(io.BytesIO(image["image"])).convert("L"))
    middle = image["width"] // 2
    assert pixels[:, : middle - 8].max() < 16
    assert pixels[:, middle + 8 :].min() > 240


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.grids[-1][0]}x{s.grids[-1][1]}")
def test_a_picture_of_exactly_the_level_is_kept_and_one_pixel_less_is_not(schedule):
    height, width = schedule.image_size(256)
    files = [png(np.zeros((height, width, 3), np.uint8))]
    # One pixel less on the short side keeps the nearest schedule for all but the closest rows.
    shorter = (height - 1, width) if height <= width else (height, width - 1)
    files.append(png(np.zeros((*shorter, 3), np.uint8)))
    exact, small = TextToImage(level=256)(batch(files)).to_pylist()
    assert exact["error"] is None
    if nearest(*shorter) == schedule:
        assert small["error"]["type"] == "too_small_for_level"
        assert small["segments"] is None


def test_damaged_and_failed_rows_stay_with_their_error():
    failed = {"stage": "caption", "type": "no_caption", "message": "none"}
    rows = TextToImage()(batch([b"no picture", png(data.coffee())], [None, failed])).to_pylist()
    assert rows[0]["error"]["stage"] == "documents"
    assert rows[1]["error"] == failed
    assert [row["segments"] for row in rows] == [None, None]
    assert [row["sample_ids"] for row in rows] == [["s0"], ["s1"]]


def test_an_empty_batch_gives_the_columns():
    made = TextToImage()(batch([]))
    assert len(made) == 0
    stored = {field.name: field.type for field in DOCUMENTS}
    assert all(made.schema.field(f.name).type == stored[f.name] for f in TextToImage.writes)


def test_the_same_picture_gives_the_same_bytes():
    one = TextToImage()(batch([png(data.coffee())]))
    assert one.equals(TextToImage()(batch([png(data.coffee())])))
