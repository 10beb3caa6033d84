"""Every picture of a web document gets one verdict, whatever else stands in the document."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFilter

from infra.pixels import pictures_of
from infra.schema import ERROR_TYPE
from operators import web_images
from operators.aesthetics import Aesthetics
from operators.clarity import Clarity, clarity
from operators.probe import Probe
from operators.text_probe import TextError
from operators.web_images import WebImages
from operators.web_page import PICTURE_TYPE, parse, wanted_images
from tests.operators.test_web_page import page

MISSING = {"stage": "load", "type": "missing", "message": "gone"}
Files = Mapping[str, bytes]


def batch(
    pages: Sequence[bytes | None], files: Files, max_images: int = 100, errors: Any = None
) -> pa.Table:
    """Rows as their input gives them: each with the files of its pictures."""
    pictures: list[list[dict[str, Any]]] = []
    for data in pages:
        try:
            wanted = wanted_images(parse(data), max_images)
        except TextError:
            wanted = []
        pictures.append(
            [
                {
                    "place": place,
                    "data": files.get(name),
                    "error": None if name in files else MISSING,
                }
                for place, name in wanted
            ]
        )
    count = range(len(pages))
    return pa.table(
        {
            "doc_id": pa.array([f"d{i}" for i in count], pa.string()),
            "sample_id": pa.array([f"s{i}" for i in count], pa.string()),
            "source": pa.array(["web" for _ in count], pa.string()),
            "task": pa.array(["interleaved" for _ in count], pa.string()),
            "bytes": pa.array(pages, pa.large_binary()),
            "pictures": pa.array(pictures, pa.list_(PICTURE_TYPE)),
            "error": pa.array(errors or [None for _ in count], ERROR_TYPE),
        }
    )


def png(width: int, height: int, seed: int = 0) -> bytes:
    """Noise, which no two seeds share."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def reasons(row: dict[str, Any]) -> list[str | None]:
    return [image["reason"] for image in row["images"]]


@pytest.fixture(scope="session")
def real(photos: Path) -> dict[str, bytes]:
    """Photographs by name, and a blurred one."""
    files = {file.name: file.read_bytes() for file in photos.glob("*.[jp][pn]g")}
    soft = io.BytesIO()
    Image.open(photos / "chelsea.png").filter(ImageFilter.GaussianBlur(8)).save(soft, "PNG")
    return files | {"soft.png": soft.getvalue()}


def test_photographs_are_judged_in_order_by_the_operators(real: dict[str, bytes]) -> None:
    asked = WebImages(aesthetics=Aesthetics(), min_clarity=0.5, min_aesthetic=4.0, level=256)
    names = ["coffee.png", "soft.png", "gone.jpg", "rocket.jpg", "coffee.png"]
    [row] = asked(batch([page("Before.", *names, "After.")], real)).to_pylist()
    assert (row["error"], row["num_images"], row["num_images_kept"]) == (None, 5, 2)
    assert [image["name"] for image in row["images"]] == names
    assert [image["place"] for image in row["images"]] == [1, 2, 3, 4, 5]
    assert reasons(row) == [None, "blurred", "missing", None, "repeated"]
    assert [image["kept"] for image in row["images"]] == [True, False, False, True, False]
    probed = Probe()(pa.table({"bytes": [real["coffee.png"]], "error": pa.nulls(1, ERROR_TYPE)}))
    expected = Aesthetics()(Clarity()(probed)).to_pylist()[0]
    for name in ("width", "height", "sha256", "clarity", "aesthetic"):
        assert row["images"][0][name] == row["images"][4][name] == expected[name]
    # One that is out costs no more: no model looks at it.
    assert row["images"][1]["aesthetic"] is None
    assert row["images"][1]["clarity"] < 0.5
    assert row["images"][2]["width"] is None


def test_a_picture_goes_for_the_first_reason(real: dict[str, bytes]) -> None:
    files = {
        "tiny.png": png(40, 40),
        "wide.png": png(1000, 300),
        "below.png": png(200, 200, 1),
        "line.png": png(4000, 400, 2),
        "cut.jpg": real["rocket.jpg"][:4000],
        "page.jpg": b"<html></html>",
        "empty.png": b"",
        "same.png": png(300, 300, 3),
        "copy.png": png(300, 300, 3),
        "tiny again.png": png(40, 40),
    }
    data = page(*files, "late.png")
    strict = WebImages(min_side=100, max_ratio=3, level=256, max_images=10)
    [row] = strict(batch([data], files, 10)).to_pylist()
    expected = ["too_small", "extreme_shape", "too_small_for_level", "extreme_shape"]
    expected += ["truncated", "unknown_format", "empty", None, "repeated", "too_small"]
    assert reasons(row) == [*expected, "too_many_images"]
    assert row["num_images_kept"] == 1

    # Limits that are not asked let everything pass that can be read.
    [row] = WebImages(clarity=None, min_side=None)(batch([data], files)).to_pylist()
    expected = [None, None, None, None, *expected[4:9], "repeated", "missing"]
    assert reasons(row) == expected
    assert all(image["clarity"] is None for image in row["images"])

    # What loses more than max_cropped is said beforehand, as when documents are cut.
    for share, reason in ((0.5, "too_elongated"), (0.7, None)):
        [row] = WebImages(level=256, max_cropped=share)(
            batch([page("line.png")], files)
        ).to_pylist()
        assert reasons(row) == [reason]


@dataclass(frozen=True)
class Brightness:
    """A tower: it gives a picture's mean."""

    column: ClassVar[str] = "features:mean"

    def __call__(self, rows: pa.Table) -> pa.Table:
        assert self.column not in rows.column_names, "it runs once"
        means = [None if p is None else float(p.mean()) for p in pictures_of(rows)]
        return rows.append_column(self.column, pa.array(means, pa.float32()))


@dataclass(frozen=True)
class OnTower:
    """A score that stands on a tower's features, as those of open_clip do."""

    name: str
    tower: Brightness = Brightness()

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows.append_column(self.name, rows[self.tower.column])


def test_operators_that_need_a_tower_share_it() -> None:
    towers: Any = {"aesthetics": OnTower("aesthetic"), "nsfw": OnTower("nsfw")}
    asked = WebImages(clarity=None, min_aesthetic=100.0, max_nsfw=200.0, **towers)
    files = {f"{n}.png": grey(level) for n, level in enumerate((50, 150, 250))}
    [row] = asked(batch([page(*files)], files)).to_pylist()
    assert reasons(row) == ["not_aesthetic", None, "nsfw"]
    assert [image["aesthetic"] for image in row["images"]] == [50.0, 150.0, 250.0]
    assert [image["nsfw"] for image in row["images"]] == [50.0, 150.0, 250.0]


def grey(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 30), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_repeat_of_what_is_missing_is_missing_too() -> None:
    data = page("a.png", "text", "a.png", "b.png")
    [row] = WebImages(clarity=None)(batch([data], {})).to_pylist()
    assert reasons(row) == ["missing"] * 3
    # In another document the same picture is no repeat.
    first, second = WebImages(clarity=None)(
        batch([page("a.png"), page("a.png")], {"a.png": png(30, 30)})
    ).to_pylist()
    assert reasons(first) == reasons(second) == [None]


def test_results_do_not_depend_on_neighbours_or_chunks(
    real: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(real)
    pages = [page(*names[i:], "words", *names[:i]) for i in range(3)]
    asked = WebImages(aesthetics=Aesthetics(), min_clarity=0.5, level=256)
    together = asked(batch(pages, real)).to_pylist()
    monkeypatch.setattr(web_images, "_AT_A_TIME", 2)
    for number, data in enumerate(pages):
        [alone] = asked(batch([data], real)).to_pylist()
        assert alone["images"] == together[number]["images"]
        assert alone["sha256"] == together[number]["sha256"]


def test_equal_documents_are_those_of_the_same_texts_and_pictures() -> None:
    files = {"a.png": png(30, 30), "b.png": png(30, 30), "c.png": png(30, 30, 1)}
    pages = [
        page("One  text.\n", "a.png"),
        page("One text.", "b.png"),  # other name, other blanks
        page("One text.", "c.png"),
        page("a.png", "One text."),
        page("One text."),
    ]
    rows = WebImages(clarity=None)(batch(pages, files)).to_pylist()
    hashes = [row["sha256"] for row in rows]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


def test_what_is_no_document_fails_alone() -> None:
    bad, missing, fine = WebImages()(batch([b"{", None, page("Fine.")], {})).to_pylist()
    assert (bad["error"]["stage"], bad["error"]["type"]) == ("web", "bad_json")
    assert missing["error"]["type"] == "missing_bytes"
    assert (bad["images"], bad["num_images"], bad["sha256"]) == (None, None, None)
    assert (fine["error"], fine["images"], fine["num_images"]) == (None, [], 0)


def test_failed_rows_stay_as_they_are() -> None:
    before = {"stage": "load", "type": "missing", "message": "m"}
    [row] = WebImages()(batch([page("a.png")], {}, errors=[before])).to_pylist()
    assert row["error"] == before
    assert row["images"] is None
    assert WebImages()(batch([], {})).num_rows == 0


def test_hostile_documents_keep_their_order() -> None:
    names = [f"{number}.png" for number in range(10_000)]
    long = "x" * 1_000_000
    odd = ["\0.png", "../../etc/passwd.png", "https://example.com/a.png", f"{long}.png"]
    files = {name: png(30, 30, number) for number, name in enumerate(names[:5])}
    many, wild = WebImages(clarity=None, max_images=7)(
        batch([page(*names, long), page(long, *odd, (long, "0.png"))], files, 7)
    ).to_pylist()
    assert (many["num_images"], many["num_images_kept"]) == (10_000, 5)
    assert reasons(many) == [None] * 5 + ["missing"] * 2 + ["too_many_images"] * 9_993
    assert [image["place"] for image in many["images"]] == list(range(10_000))
    assert reasons(wild) == ["missing"] * 4 + [None]
    assert [len(image["name"]) for image in wild["images"]][3] == 1_024


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_side": 0}, "min_side is 0"),
        ({"max_ratio": 0.5}, "max_ratio is 0.5"),
        ({"max_ratio": float("nan")}, "max_ratio is nan"),
        ({"max_images": -1}, "max_images is -1"),
        ({"min_aesthetic": 4.0}, "add `aesthetics`"),
        ({"clarity": None, "min_clarity": 0.3}, "add `clarity`"),
        ({"max_nsfw": 0.5}, "add `nsfw`"),
        ({"level": 300}, "level is 300"),
    ],
)
def test_limits_that_cannot_be_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WebImages(**settings)


def test_clarity_is_that_of_the_operator() -> None:
    noise = np.asarray(Image.open(io.BytesIO(png(300, 300))))
    [row] = WebImages()(batch([page("a.png")], {"a.png": png(300, 300)})).to_pylist()
    assert row["images"][0]["clarity"] == pytest.approx(clarity(noise), rel=1e-6)
