"""Contact sheets: the chosen samples in their order, small, with words beside them."""

import base64
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from infra import catalog
from infra.pixels import DecodeError
from infra.runs import Part, TableRecord, save_record
from infra.schema import SAMPLES
from infra.storage import Storage
from operators.text_probe import TextError
from pipelines.contact_sheets import (
    EXCERPT,
    THUMBNAIL,
    Choice,
    excerpt,
    first_words,
    pictures,
    thumbnail,
)
from pipelines.demo_clip import encode_clip, slides
from pipelines.recipe import Recipe
from pipelines.source import Source


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


def test_of_web_documents_the_first_words_are_shown() -> None:
    evil = "</span><script>alert(1)</script>"
    told = {"texts": [None, f" {evil}\n", None, "Then more."], "images": ["a.jpg", None] * 2}
    assert first_words(json.dumps(told).encode()) == f"{evil} Then more."
    long = {"texts": ["word " * 1000] * 5000, "images": [None] * 5000}
    words = first_words(json.dumps(long).encode())
    assert len(words) <= EXCERPT + 1
    assert words.endswith("…")
    for bad in (b"", b"{", b"[]", b"7", b'{"texts": 7}', b"\xff"):
        with pytest.raises(TextError):
            first_words(bad)


def test_of_clips_a_frame_from_the_middle_is_shown(tmp_path: Path) -> None:
    folder, storage = tmp_path / "clips", Storage(str(tmp_path / "ws"))
    folder.mkdir()
    colours = [(200, 30, 30), (20, 180, 40), (30, 40, 210)]
    plain = [Image.new("RGB", (320, 240), colour) for colour in colours]
    shots = [lambda time_s, one=one: one for one in plain]
    clip = encode_clip(slides(shots, first_s=1, each_s=1), 3)
    (folder / "clip.mp4").write_bytes(clip)
    (folder / "page.mp4").write_bytes(b"<html>")
    spans = [("clip.mp4", None, None), ("clip.mp4", 0.0, 0.9), ("clip.mp4", 2.2, None)]
    rows = [
        {"sample_id": str(n), "source": "clips", "key": f"{name}#{n}", "uri": name}
        | {"media": "video", "start_s": start, "end_s": end}
        for n, (name, start, end) in enumerate([*spans, ("page.mp4", None, None), ("no", 0.0, 1.0)])
    ]
    schema = pa.schema([field.remove_metadata() for field in SAMPLES])
    part = "samples/clips/v-1/part-00000.parquet"
    storage.write_part(part, pa.Table.from_pylist(rows, schema=schema), SAMPLES, "sample_id")
    record = TableRecord("samples/clips", "f", "s", "sample_id", (Part(part[14:], 5),))
    save_record(storage, record)
    source = Source(name="clips", kind="folder", path=str(folder), media="video")
    with catalog.connect(storage) as con:
        shown = pictures(con, [source], "d", [Choice(str(n)) for n in range(5)])
    for picture, colour in zip(shown, (1, 0, 2), strict=False):
        assert picture.uri is not None
        made = Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))
        assert made.size == (149, 112)
        mean = made.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        assert mean == pytest.approx(colours[colour], abs=12)
    assert [picture.uri for picture in shown[3:]] == [None, None]
    assert all(picture.problem for picture in shown[3:])
