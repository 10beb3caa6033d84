"""Documents of a picture and its text, both ways round."""

import io
import pickle
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from skimage import data

from infra.schedules import NUM_SCALES, SCHEDULES, nearest
from infra.schema import DOCUMENTS, ERROR_TYPE, uniform
from operators.image_text import ImageText

SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("sample_id", pa.string()),
        ("source", pa.string()),
        ("task", pa.string()),
        ("text", pa.string()),
        ("ocr_text", pa.string()),
        ("bytes", pa.large_binary()),
        ("error", ERROR_TYPE),
    ]
)
WITH_OCR = ("{text}", "\nText in the picture: {ocr_text}")


def png(rgb):
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


def batch(files, task="t2i", **columns):
    rows = len(files)
    values = {
        "doc_id": [f"d{i}" for i in range(rows)],
        "sample_id": [f"s{i}" for i in range(rows)],
        "source": ["photos"] * rows,
        "task": [task] * rows,
        "text": ["a caption"] * rows,
        "ocr_text": [None] * rows,
        "bytes": files,
        "error": [None] * rows,
    }
    return pa.table(values | columns, schema=SCHEMA)


def flat(side):
    return png(np.full((side, side, 3), 90, np.uint8))


def test_a_photograph_becomes_caption_and_target_image():
    [row] = ImageText(level=256)(batch([png(data.astronaut())])).to_pylist()
    text, image = row["segments"]
    assert (row["task"], row["sample_ids"], row["error"]) == ("t2i", ["s0"], None)
    assert (text["kind"], text["text"], text["loss"]) == ("text", "a caption", True)
    assert (image["kind"], image["role"], image["loss"]) == ("image", "target", True)
    decoded = Image.open(io.BytesIO(image["image"]))
    assert decoded.size == (image["width"], image["height"]) == (256, 256)


def test_turned_over_the_picture_comes_first_and_only_the_text_has_loss():
    astronaut = png(data.astronaut())
    [row] = ImageText(level=256)(batch([astronaut], "i2t")).to_pylist()
    image, text = row["segments"]
    assert (image["kind"], image["role"], image["loss"]) == ("image", "condition", False)
    assert (text["kind"], text["text"], text["loss"]) == ("text", "a caption", True)
    assert {segment["sample_id"] for segment in row["segments"]} == {"s0"}
    [other] = ImageText(level=256)(batch([astronaut])).to_pylist()
    assert image["image"] == other["segments"][1]["image"]


def test_tasks_may_be_mixed_in_a_batch():
    captions, pictures = batch([flat(256)] * 2, "t2i"), batch([flat(256)] * 2, "i2t")
    rows = ImageText()(pa.concat_tables([pictures, captions])).to_pylist()
    kinds = [[segment["kind"] for segment in row["segments"]] for row in rows]
    assert kinds == [["image", "text"]] * 2 + [["text", "image"]] * 2
    with pytest.raises(AssertionError, match="task 'edit'"):
        ImageText()(batch([flat(256)], "edit"))


def test_prompts_are_drawn_per_sample_whatever_the_batch():
    prompts = ("Describe the picture.", "What is to be seen?", "Caption:")
    operator = ImageText(prompts=prompts, seed=5)
    whole = operator(batch([flat(256)] * 60, "i2t"))
    drawn = []
    for row in whole.to_pylist():
        _, prompt, text = row["segments"]
        assert (prompt["kind"], prompt["loss"], text["loss"]) == ("text", False, True)
        u = uniform(f"{row['sample_ids'][0]}:prompt", 5)
        assert prompt["text"] == prompts[int(3 * u)]
        drawn.append(prompt["text"])
    assert {drawn.count(prompt) > 8 for prompt in prompts} == {True}
    halves = [operator(batch([flat(256)] * 60, "i2t").slice(at, 30)) for at in (0, 30)]
    assert pa.concat_tables(halves).equals(whole)
    [alone] = operator(batch([flat(256)], "t2i")).to_pylist()
    assert len(alone["segments"]) == 2


@pytest.mark.parametrize("task", ["t2i", "i2t"])
def test_text_in_the_picture_is_joined_in_where_there_is_any(task):
    texts, ocr = ["a sign", "a {wall}", None, "", None], ["STOP {0} %s", None, "EXIT", "", None]
    rows = ImageText(text=WITH_OCR)(batch([flat(256)] * 5, task, text=texts, ocr_text=ocr))
    found = []
    for row in rows.to_pylist():
        told = [s["text"] for s in row["segments"] or () if s["kind"] == "text"]
        found.append(told[0] if told else row["error"]["type"])
    assert found == [
        "a sign\nText in the picture: STOP {0} %s",
        "a {wall}",
        "\nText in the picture: EXIT",
        "no_text",
        "no_text",
    ]
    assert ImageText(text=WITH_OCR).reads[4:6] == ("text", "ocr_text")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"level": 300}, "level is 300: choose 256, 512, 1024"),
        ({"jpeg_quality": 0}, "jpeg_quality is 0"),
        ({"max_cropped": 1.5}, "max_cropped is 1.5"),
        ({"prompts": ("a", "")}, "an empty prompt"),
        ({"text": ()}, "text names no column"),
        ({"text": ("a caption",)}, "text names no column"),
        ({"text": ("{text.__class__}",)}, "is no column"),
        ({"text": ("{text[0]}",)}, "is no column"),
        ({"text": ("{0}",)}, "is no column"),
        ({"text": ("{}",)}, "is no column"),
        ({"text": ("{text!r}",)}, "is no column"),
        ({"text": ("{text:>1000000000}",)}, "is no column"),
        ({"text": ("{text",)}, "text '{text': "),
    ],
)
def test_impossible_settings(values, message):
    with pytest.raises(ValueError, match=message):
        ImageText(**values)


def test_the_stored_picture_is_the_centre_of_the_source_at_the_schedules_size():
    left_half_black = np.full((400, 800, 3), 255, np.uint8)
    left_half_black[:, :400] = 0
    [row] = ImageText(level=256)(batch([png(left_half_black)])).to_pylist()
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
    for task in ("t2i", "i2t"):
        exact, small = ImageText(level=256)(batch(files, task)).to_pylist()
        assert exact["error"] is None
        if nearest(*shorter) == schedule:
            assert small["error"]["type"] == "too_small_for_level"
            assert small["segments"] is None


def test_what_is_cut_away_is_told():
    sizes = {(256, 256): 0.0, (300, 400): 0.0, (256, 2048): 0.5, (1300, 260): 0.2}
    files = [png(np.zeros((*size, 3), np.uint8)) for size in sizes]
    rows = ImageText()(batch(files)).to_pylist()
    for (height, width), row in zip(sizes, rows, strict=True):
        text, image = row["segments"]
        assert text["cropped"] is None
        grid = nearest(height, width).image_size(256)
        ratio = (height / width) / (grid[0] / grid[1])
        assert image["cropped"] == pytest.approx(1 - min(ratio, 1 / ratio), abs=2 / 256)
    assert [row["segments"][1]["cropped"] for row in rows] == pytest.approx(
        [0.0, 0.0, 0.5, 0.2], abs=0.04
    )


def test_a_picture_of_which_too_much_would_go_is_refused():
    files = [png(np.zeros((height, 260, 3), np.uint8)) for height in (260, 1040, 2080, 2340)]
    turned = [png(np.zeros((260, width, 3), np.uint8)) for width in (2080, 2340)]

    def types(**settings):
        rows = ImageText(**settings)(batch(files + turned)).to_pylist()
        return [row["error"] and row["error"]["type"] for row in rows]

    assert types() == [None, None, None, "too_elongated", None, "too_elongated"]
    assert types(max_cropped=1.0) == [None] * 6
    assert types(max_cropped=0.1) == [None, None, *["too_elongated"] * 4]
    # What is too small as well is told so: the picture's size is the first thing known.
    [row] = ImageText()(batch([png(np.zeros((100, 900, 3), np.uint8))])).to_pylist()
    assert row["error"]["type"] == "too_small_for_level"


@pytest.mark.parametrize("level", NUM_SCALES)
def test_between_the_grids_at_most_as_much_is_cut_away_as_is_said(level):
    # Ratios in steps of 0.02%, from the tallest schedule to the widest.
    ratios = np.geomspace(0.25, 4, 13_863)
    sizes = [nearest(round(ratio * 10**6), 10**6).image_size(level) for ratio in ratios]
    covered = np.array([height / width for height, width in sizes])
    cropped = 1 - np.minimum(ratios / covered, covered / ratios)
    said = re.search(r"at\s+most ([\d.]+)% of a picture", ImageText.__doc__)
    assert f"{100 * cropped.max():.1f}" == said[1]


def test_damaged_and_failed_rows_stay_with_their_error():
    failed = {"stage": "caption", "type": "no_caption", "message": "none"}
    files = [b"no picture", png(data.coffee())]
    rows = ImageText()(batch(files, error=[None, failed])).to_pylist()
    assert rows[0]["error"]["stage"] == "documents"
    assert rows[1]["error"] == failed
    assert [row["segments"] for row in rows] == [None, None]
    assert [row["sample_ids"] for row in rows] == [["s0"], ["s1"]]


def test_an_empty_batch_gives_the_columns():
    made = ImageText()(batch([]))
    assert len(made) == 0
    stored = {field.name: field.type for field in DOCUMENTS}
    assert all(made.schema.field(f.name).type == stored[f.name] for f in ImageText.writes)


def test_the_same_picture_gives_the_same_bytes_after_a_trip_to_a_worker():
    one = ImageText(text=WITH_OCR)
    assert one.reads  # caches the columns
    there = pickle.loads(pickle.dumps(one))
    assert there == one
    assert one(batch([png(data.coffee())])).equals(there(batch([png(data.coffee())])))
