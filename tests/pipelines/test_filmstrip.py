"""Filmstrips: true to the tables and to the clips, one file, harmless whatever the data say."""

import base64
import io
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from infra import runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.schema import DECISIONS, FRAMES, SAMPLES
from infra.storage import Storage
from pipelines.demo_clip import encode_clip, slides
from pipelines.filmstrip import write_filmstrip
from pipelines.recipe import Recipe
from pipelines.source import Source
from pipelines.transition_phase import transition_schema

EVIL = "<script>document.title = 'owned'</script>\"'><img src=x onerror=alert(1)>"
COLOURS = {"red": (200, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 210)}
FEW = {"stage": "frames", "type": "too_few_frames", "message": f"1 would be kept {EVIL}"}


def jpeg(colour: str, size: tuple[int, int] = (256, 256)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(buffer, "JPEG")
    return buffer.getvalue()


def candidate(time_s: float | None, class_: str | None, kept: str = "", **more: Any) -> Any:
    told = {"timestamp_s": time_s, "class": class_, "kept": bool(kept), "evidence": EVIL}
    if kept:
        told |= {"width": 256, "height": 256, "cropped": 0.25, "image": jpeg(kept), "rank": 0}
    return told | more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that are red from 0 s, green from 1 s and blue from 3 s on; and one that is none."""
    folder = tmp_path_factory.mktemp("clips")
    pictures = [Image.new("RGB", (320, 240), colour) for colour in COLOURS.values()]
    shots = [lambda time_s, one=one: one for one in pictures]
    clip = encode_clip(slides(shots, first_s=1, each_s=2), 5)
    for name in ("plain.mp4", "long.mp4", "few.mp4", "early.mp4", f"{EVIL.replace('/', '_')}.mp4"):
        (folder / name).write_bytes(clip)
    (folder / "broken.mp4").write_bytes(clip[:1500])
    return folder


CLIPS: Mapping[str, Any] = {
    "plain.mp4": [
        candidate(0.5, "object", "red", flow=[30.0, 0.0] * 64),
        candidate(2.5, "camera", flow=[0.0, 8.0] * 64),
        candidate(4.5, "cut", "blue"),
    ],
    "long.mp4": [candidate(n / 16, "static", "red" if n == 70 else "") for n in range(80)],
    "few.mp4": FEW,
    "broken.mp4": [candidate(0.0, "object", "green"), candidate(2.0, "static")],
    "gone.mp4": [candidate(None, None), candidate(2.0, "camera")],
    f"{EVIL.replace('/', '_')}.mp4": [candidate(3.0, EVIL, "green")],
}


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Recipe:
    """A dataset of these clips; early.mp4 is rejected before frames are looked at."""
    recipe = Recipe(
        dataset="d",
        workspace=str(tmp_path / "ws"),
        sources=(Source(name="some", kind="folder", path=str(folder), media="video"),),
    )
    names = [*CLIPS, "early.mp4"]
    samples = [
        {
            "sample_id": name,
            "source": "some",
            "key": name,
            "uri": name,
            "media": "video",
            "start_s": 0.5 if name == "plain.mp4" else None,
            "caption": f"Of {name}: {EVIL}",
            "metadata": '{"attribution": "Ann", "licence": "CC0"}',
        }
        for name in names
    ]
    put(recipe.storage, "samples/some", samples, SAMPLES)
    decisions = [{"sample_id": name, "status": "kept", "copies": 1} for name in CLIPS]
    early = {"sample_id": "early.mp4", "status": "rejected", "reason": "too_long"}
    put(recipe.storage, "decisions/d", [*decisions, early], DECISIONS)
    frames = [
        {"sample_id": name, "error": told} if isinstance(told, dict) else row_of(name, told)
        for name, told in CLIPS.items()
    ]
    put(
        recipe.storage,
        "frames/d-256",
        frames,
        FRAMES,
        {"operators": [{"flow": {"short_side": 64}}]},
    )
    return recipe


def row_of(name: str, candidates: Sequence[Any]) -> dict[str, Any]:
    kept = sum(one["kept"] for one in candidates)
    told = {"candidates": list(candidates), "num_candidates": len(candidates), "num_kept": kept}
    return {"sample_id": name} | told


def put(
    storage: Storage,
    table: str,
    rows: list[dict[str, Any]],
    schema: pa.Schema,
    config: dict[str, Any] | None = None,
) -> None:
    bare = pa.schema([field.remove_metadata() for field in schema])
    data = pa.Table.from_pylist(rows, schema=bare)
    storage.write_part(f"{table}/v-1/part-00000.parquet", data, schema, "sample_id")
    failed = sum(row.get("error") is not None for row in rows)
    part = Part("v-1/part-00000.parquet", len(rows), failed)
    record = TableRecord(table, "f" * 32, "s", "sample_id", (part,))
    runs.finish(storage, record, config or {}, (), time.time())


def page_of(recipe: Recipe) -> str:
    return Path(write_filmstrip(recipe)).read_text(encoding="utf-8")


def strips(page: str) -> dict[str, str]:
    """The sections of the page by the clip's name."""
    found = re.findall(r'<section class="card">(.*?)</section>', page, re.S)
    return {re.findall(r'<h3 class="data">(.*?)</h3>', one)[0]: one for one in found}


def cells(strip: str) -> list[str]:
    return re.findall(r'<figure class="cell.*?</figure>', strip, re.S)


def colours(strip: str) -> list[str]:
    """What colour each picture of a strip is."""
    found = []
    for data in re.findall(r'"data:image/jpeg;base64,([^"]*)"', strip):
        picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        mean = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        assert isinstance(mean, tuple)
        found.append(
            min(
                COLOURS,
                key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], mean, strict=False)),
            )
        )
    return found


def test_candidates_are_shown_as_they_are(recipe: Recipe) -> None:
    strip = strips(page_of(recipe))["plain.mp4"]
    shown = cells(strip)
    # Times of candidates are those of the file, and the clip starts at 0.5 s of it.
    assert re.findall(r"<b>(.*?)</b>", strip) == ["0.00 s", "2.00 s", "4.00 s"]
    assert colours(strip) == ["red", "green", "blue"]
    assert [" kept" in cell.split('"')[1] for cell in shown] == [True, False, True]
    assert re.findall(r'class="badge (\w+)"', strip) == ["object", "camera", "cut"]
    assert [cell.count('class="flow"') for cell in shown] == [1, 1, 0]
    assert "2 of 3 frames kept" in strip
    assert "rank 1" in shown[0]
    # 149 x 112 pixels, of which a square is kept.
    assert 'viewBox="0 0 149 112"' in shown[0]
    crop = re.search(r"M0 0h149v112h-149zM([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h", shown[0])
    assert crop is not None
    assert [float(number) for number in crop.groups()] == [18.5, 0, 112, 112]


def test_arrows_are_in_the_size_that_flow_was_measured_at(recipe: Recipe) -> None:
    strip = strips(page_of(recipe))["plain.mp4"]
    # 30 pixels a second of 64: a cell is 8 of them, so that a fifth of a second is shown.
    assert "motion of 0.2 s" in strip
    assert f"l{30 * 0.2 * 112 / 64:.1f} 0.0" in cells(strip)[0]


def test_of_many_candidates_the_kept_ones_are_shown(recipe: Recipe) -> None:
    strip = strips(page_of(recipe))["long.mp4"]
    assert len(cells(strip)) == 24
    assert "1 of 80 frames kept, 24 shown" in strip
    assert strip.count('class="cell kept"') == 1
    assert "<b>4.38 s</b>" in strip
    times = [float(time) for time in re.findall(r"<b>(.*?) s</b>", strip)]
    assert times == sorted(times)


def test_why_a_clip_is_out(recipe: Recipe) -> None:
    shown = strips(page_of(recipe))
    few, early = shown["few.mp4"], shown["early.mp4"]
    assert 'class="fate rejected">rejected' in few
    assert "frames:too_few_frames, 1 would be kept" in few
    assert 'class="fate rejected">rejected' in early
    assert "too_long" in early
    for strip in (few, early):
        assert colours(strip) == ["green"]  # the middle of the clip
        assert "no frames looked at" in strip
    assert 'class="fate kept">kept' in shown["plain.mp4"]


def test_clips_that_cannot_be_read_any_more(recipe: Recipe) -> None:
    shown = strips(page_of(recipe))
    broken, gone = cells(shown["broken.mp4"]), cells(shown["gone.mp4"])
    assert colours(broken[0]) == ["green"]  # as it was kept
    assert colours(broken[1]) == []
    assert re.search(r'<span class="soft data">\w+</span>', broken[1])
    assert "?" in gone[0]
    assert all(colours(cell) == [] for cell in gone)


def test_transitions_stand_between_kept_frames(recipe: Recipe) -> None:
    texts = [{"text": f"The light changes. {EVIL}"}]
    rows = [{"sample_id": "plain.mp4", "text": "New caption.", "transitions": texts}]
    put(recipe.storage, "captions/d", rows, transition_schema())
    shown = strips(page_of(recipe))
    assert "New caption." in shown["plain.mp4"]
    assert "0.00 s to 4.00 s</span>" in shown["plain.mp4"]
    assert "The light changes. &lt;script&gt;" in shown["plain.mp4"]
    assert "bridges" not in shown["broken.mp4"]


def test_the_page_is_one_harmless_file(recipe: Recipe) -> None:
    page = page_of(recipe)
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page
    assert re.findall(r'(?:href|src)="(?!data:image/jpeg;base64,)', page) == []
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert len(strips(page)) == 7
    assert page_of(recipe) == page


def test_without_frames_or_sources(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no frames of other"):
        write_filmstrip(replace(recipe, dataset="other"))
    with pytest.raises(ConfigError, match="is a folder"):
        write_filmstrip(recipe, str(tmp_path))
    elsewhere = Source(name="else", kind="folder", path=str(tmp_path), media="video")
    page = page_of(replace(recipe, sources=(elsewhere,)))
    assert "its source is not here" in page
