"""Contact sheets: the chosen samples in their order, small, with words beside them."""

import io
import json

import pytest
from PIL import Image

from infra import catalog
from infra.pixels import DecodeError
from operators.text_probe import TextError
from pipelines.contact_sheets import EXCERPT, THUMBNAIL, Choice, excerpt, pictures, thumbnail
from pipelines.recipe import Recipe


def encoded(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 60)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 320), (160, 80)),
        ((300, 900), (53, 160)),
        ((40, 30), (40, 30)),
        ((4000, 2), (160, 1)),
        ((1, 1), (1, 1)),
    ],
)
def test_thumbnails_are_reduced_and_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    made = Image.open(io.BytesIO(thumbnail(encoded(*size))))
    assert made.format == "JPEG"
    assert made.size == expected
    assert max(made.size) <= THUMBNAIL


def test_no_picture_no_thumbnail() -> None:
    with pytest.raises(DecodeError):
        thumbnail(b"<html>")


def test_pictures_come_in_the_order_chosen(curated: Recipe) -> None:
    with catalog.connect(curated.storage) as con:
        by_key = dict(con.sql("SELECT key, sample_id FROM samples").fetchall())
        wanted = ["rocket.jpg", "page.jpg", "half.png", "chelsea.png", "no caption.png"]
        choices = [Choice(by_key[key], note=str(i)) for i, key in enumerate(wanted)]
        choices.append(Choice("0" * 32))
        shown = pictures(con, curated.sources, curated.dataset, choices)
        assert pictures(con, curated.sources, curated.dataset, []) == []
    assert [picture.key for picture in shown] == [*wanted, "0" * 32]
    assert [picture.note for picture in shown] == ["0", "1", "2", "3", "4", ""]
    problems = [picture.problem for picture in shown]
    assert problems[:2] == [None, "unknown_format"]
    assert problems[2:5] == ["index:bad_sidecar", None, None]
    assert problems[5] == "its source is not in this recipe"
    assert [picture.uri is None for picture in shown] == [p is not None for p in problems]
    assert shown[0].caption == "A rocket on its launch pad at night."
    assert shown[4].caption == ""


def test_long_texts_stay_in_the_database(curated: Recipe) -> None:
    with catalog.connect(curated.storage) as con:
        [(evil,)] = con.sql(
            "SELECT sample_id FROM samples WHERE starts_with(key, 'evil')"
        ).fetchall()
        [picture] = pictures(con, curated.sources, curated.dataset, [Choice(evil)])
    assert len(picture.caption) == 1000
    assert picture.credit == "</figcaption><script>alert(3)</script>, CC0"


def test_of_texts_the_beginning_is_shown() -> None:
    evil = "</span><script>alert(1)</script>\n"
    assert excerpt(json.dumps({"text": f"  {evil}"}).encode()) == evil.strip()
    chat = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": " 4"}]
    assert excerpt(json.dumps({"messages": chat}).encode()) == "user: 2 + 2? assistant:  4"
    long = excerpt(json.dumps({"text": "word " * 200_000}).encode())
    assert len(long) <= EXCERPT + 1
    assert long.endswith("word…")
    many = excerpt(json.dumps({"messages": chat * 10_000}).encode())
    assert len(many) <= EXCERPT + 1
    with pytest.raises(TextError):
        excerpt(b"\xff")
