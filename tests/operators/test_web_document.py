"""Documents of web pages: order is kept, and nothing is lost without a reason."""

import io
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.schedules import nearest
from infra.schema import DOCUMENTS
from operators.web_document import WebDocument
from operators.web_images import WebImages
from operators.web_page import PICTURE_TYPE
from tests.operators.test_web_images import Files, batch, png, real
from tests.operators.test_web_page import page

__all__ = ["real"]  # a fixture

FILES = {
    **{f"{number}.png": png(300, 280, number) for number in range(3)},
    "small.png": png(60, 60),
    "bad.png": b"no picture",
    "copy.png": png(300, 280, 0),
}


def documents(
    pages: list[bytes | None], files: Files, after: Files | None = None, **asked: Any
) -> list[dict[str, Any]]:
    """Judged, then made from the files as they are ``after``."""
    judged = WebImages(clarity=None, level=256, **asked)(batch(pages, files))
    again = judged.set_column(
        judged.column_names.index("pictures"),
        "pictures",
        batch(pages, files if after is None else after)["pictures"],
    )
    made: list[dict[str, Any]] = WebDocument()(again).to_pylist()
    return made


def shown(row: dict[str, Any]) -> list[str]:
    return [s["text"] if s["kind"] == "text" else "picture" for s in row["segments"]]


def test_texts_and_photographs_become_segments_in_order(real: dict[str, bytes]) -> None:
    data = page("One.", "coffee.png", "Two.", "gone.jpg", "Three.", ("Four.", "rocket.jpg"))
    [row] = documents([data], real)
    assert row["error"] is None
    assert (row["task"], row["sample_ids"]) == ("interleaved", ["s0"])
    assert shown(row) == ["One.", "picture", "Two.\n\nThree.\n\nFour.", "picture"]
    assert {s["sample_id"] for s in row["segments"]} == {"s0"}
    assert all(s["loss"] for s in row["segments"])
    assert [s["role"] for s in row["segments"]] == [None, "target", None, "target"]
    for segment, name in ((row["segments"][1], "coffee.png"), (row["segments"][3], "rocket.jpg")):
        width, height = Image.open(io.BytesIO(real[name])).size
        size = nearest(height, width).image_size(256)
        assert (segment["height"], segment["width"]) == size
        picture = Image.open(io.BytesIO(segment["image"]))
        assert (picture.height, picture.width, picture.format) == (*size, "JPEG")
        assert 0 <= segment["cropped"] < 0.08
    pa.Table.from_pylist([row]).select(["segments"]).cast(
        pa.schema([DOCUMENTS.field("segments").remove_metadata()])
    )


members = st.one_of(
    st.sampled_from(["One.", " ", "Zwei\nLines", "x.png?"]),
    st.sampled_from([*FILES, "gone.png"]),
    st.tuples(st.sampled_from(["Both.", None]), st.sampled_from([*FILES, None])),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(members, min_size=1, max_size=12), st.integers(0, 12))
def test_order_is_kept_and_nothing_is_lost_without_a_reason(
    written: list[Any], max_images: int
) -> None:
    data = page(*written)
    judged = WebImages(clarity=None, level=256, max_images=max_images)
    [row] = judged(batch([data], FILES, max_images)).to_pylist()
    pairs = [
        m if isinstance(m, tuple) else (None, m) if m.endswith((".png", ".jpg")) else (m, None)
        for m in written
    ]
    if not any((text or "").strip() or image for text, image in pairs):
        assert row["error"]["type"] == "empty"
        return
    # Every picture has its verdict, in order: kept, or gone for a reason.
    named = [(place, image) for place, (_, image) in enumerate(pairs) if image]
    assert [(image["place"], image["name"]) for image in row["images"]] == named
    assert all(image["kept"] == (image["reason"] is None) for image in row["images"])
    # Without pictures that are out, the document says the same in the same order.
    kept = {image["place"] for image in row["images"] if image["kept"]}
    expected: list[str] = []
    for place, (text, _) in enumerate(pairs):
        if (text or "").strip():
            last_is_text = bool(expected) and expected[-1] != "picture"
            expected[-1:] = (
                [f"{expected[-1]}\n\n{text}"] if last_is_text else [*expected[-1:], text]
            )
        if place in kept:
            expected.append("picture")
    [made] = documents([data], FILES, max_images=max_images)
    if expected:
        assert made["error"] is None
        assert shown(made) == expected
    else:
        assert (made["error"]["stage"], made["error"]["type"]) == ("documents", "empty")
        assert made["segments"] is None


def test_a_document_of_texts_alone_is_for_the_rules() -> None:
    [row] = documents([page("One.", "bad.png", "Two.")], FILES)
    assert shown(row) == ["One.\n\nTwo."]


def test_pictures_must_be_those_that_were_judged() -> None:
    data = page("One.", "0.png", "Two.")
    changed, fine = documents([data, page("1.png")], FILES, FILES | {"0.png": png(300, 280, 9)})
    assert changed["error"]["type"] == "changed"
    assert "place 1" in changed["error"]["message"]
    assert fine["error"] is None
    gone = {name: data for name, data in FILES.items() if name != "0.png"}
    [row] = documents([data], FILES, gone)
    assert (row["error"]["stage"], row["error"]["type"]) == ("documents", "missing")


def test_whatever_is_kept_can_be_cut() -> None:
    """The verdict knows what cutting would refuse, at the edges of sizes and shapes."""
    files = {
        f"{w}x{h}.png": png(w, h, w * h)
        for w, h in ((255, 256), (256, 256), (128, 512), (512, 127), (400, 208), (2100, 260))
    }
    rows = documents([page("Words.", name) for name in files], files)
    assert [row["error"] for row in rows] == [None] * len(files)
    counts = [shown(row).count("picture") for row in rows]
    assert sum(counts) >= 2
    assert 0 in counts


def test_failed_rows_and_empty_batches_stay() -> None:
    before = {"stage": "load", "type": "missing", "message": "m"}
    rows = WebImages(clarity=None)(batch([None, page("Fine.")], {}, errors=[before, None]))
    failed, fine = WebDocument()(rows).to_pylist()
    assert (failed["error"], failed["segments"], failed["sample_ids"]) == (before, None, ["s0"])
    assert fine["error"] is None
    empty = WebImages(clarity=None)(batch([], {}))
    assert WebDocument()(empty).num_rows == 0
    assert empty.schema.field("pictures").type == pa.list_(PICTURE_TYPE)


def test_settings_that_cannot_be_are_told() -> None:
    with pytest.raises(ValueError, match="level is 300"):
        WebDocument(level=300)
    with pytest.raises(ValueError, match="jpeg_quality is 0"):
        WebDocument(jpeg_quality=0)
