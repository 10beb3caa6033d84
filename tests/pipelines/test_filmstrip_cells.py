"""Cells: every kept frame is shown, as it is in the clip or at least as it is stored."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infra.video_process import VideoProcess
from operators.motion_classes import STATISTICS
from pipelines import filmstrip_cells
from pipelines.demo_clip import encode_clip
from pipelines.filmstrip_cells import MAX_CELLS, NO_PICTURE, Cell, cells
from pipelines.filmstrip_drawing import FLOW_SIDE


@pytest.fixture(scope="module")
def process() -> Iterator[VideoProcess]:
    with VideoProcess() as process:
        yield process


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A clip of 3 s, 320 x 240, all blue."""
    folder = tmp_path_factory.mktemp("clips")
    blue = Image.new("RGB", (320, 240), (20, 30, 220))
    (folder / "clip.mp4").write_bytes(encode_clip(lambda time_s: blue, 3))
    keys = ("offset", "length", "start_s", "end_s", "stream")
    file = dict.fromkeys(keys) | {"root": str(folder), "uri": "clip.mp4"}
    return {"file": file, "start_s": None, "error": None}


def candidate(time_s: float | None, **more: Any) -> dict[str, Any]:
    fields = sorted(filmstrip_cells.PLAIN)
    return dict.fromkeys(fields) | {"timestamp_s": time_s, "class": "object", "kept": False} | more


def stored(width: int, height: int) -> dict[str, Any]:
    """A kept frame, stored in red."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (220, 30, 20)).save(buffer, "JPEG")
    return {"kept": True, "width": width, "height": height, "image": buffer.getvalue()}


def colour(cell: Cell) -> str:
    assert cell.uri is not None
    picture = Image.open(io.BytesIO(base64.b64decode(cell.uri.partition(",")[2])))
    assert picture.size == cell.size
    red, _, blue = picture.convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    return "red" if red > blue else "blue"


def test_frames_are_those_of_the_clip(process: VideoProcess, sample: dict[str, Any]) -> None:
    told = [
        candidate(0.0, flow=[8.0, 0.0] * 64, rank=0, **stored(256, 256)),
        candidate(2.0, **{"class": None}),
    ]
    made = cells(process, sample, told, FLOW_SIDE)
    first, second = made.shown
    assert (colour(first), colour(second)) == ("blue", "blue")
    assert (first.size, first.crop) == ((149, 112), (18.5, 0.0, 112.0, 112.0))
    assert (first.rank, first.kept, first.time) == (1, True, "0.00 s")
    assert (second.rank, second.crop, second.class_, second.arrows) == (None, None, "", "")
    assert made.arrows_s == 1.0
    assert cells(process, sample, told[1:], FLOW_SIDE).arrows_s is None


@pytest.mark.parametrize(
    ("width", "height", "crop"),
    [(512, 256, (0.0, 18.75, 149.0, 74.5)), (256, 512, (46.5, 0.0, 56.0, 112.0))],
)
def test_the_middle_is_kept(
    process: VideoProcess,
    sample: dict[str, Any],
    width: int,
    height: int,
    crop: tuple[float, float, float, float],
) -> None:
    [cell] = cells(process, sample, [candidate(1.0, **stored(width, height))], FLOW_SIDE).shown
    assert cell.crop == pytest.approx(crop, abs=0.06)


def test_without_the_clip_kept_frames_are_shown_as_stored(
    process: VideoProcess, sample: dict[str, Any]
) -> None:
    told = [candidate(0.0, **stored(256, 256)), candidate(2.0)]
    failed = {"stage": "load", "type": "forbidden", "message": ""}
    ways: list[tuple[dict[str, Any], str]] = [
        ({}, "its source is not here"),
        ({"file": None, "error": failed}, "load:forbidden"),
        ({"file": sample["file"] | {"uri": "gone.mp4"}}, "missing"),
    ]
    for without, why in ways:
        kept, dropped = cells(process, without, told, FLOW_SIDE).shown
        assert (colour(kept), kept.size, kept.crop) == ("red", (112, 112), None)
        assert (dropped.uri, dropped.size, dropped.problem) == (None, NO_PICTURE, why)


def test_bad_candidates_are_shown_as_they_are(
    process: VideoProcess, sample: dict[str, Any]
) -> None:
    broken = stored(256, 256) | {"image": b"\xff\xd8 no JPEG"}
    told = [candidate(None), candidate(1.0), candidate(900.0), candidate(900.0, **broken)]
    unknown, fine, late, lost = cells(process, sample, told, FLOW_SIDE).shown
    assert (unknown.time, unknown.uri) == ("?", None)
    assert colour(fine) == "blue"
    assert late.uri is None
    assert late.problem
    assert lost.uri is None
    assert cells(process, sample, [], FLOW_SIDE).shown == []


def test_notes_tell_place_and_statistics(process: VideoProcess, sample: dict[str, Any]) -> None:
    name, unit, _ = STATISTICS[0]
    told = candidate(1.25, evidence="it moves") | {name: 12.5, "unheard_of": 3.0, "null": None}
    [cell] = cells(process, sample | {"start_s": 0.75}, [told], FLOW_SIDE).shown
    assert cell.time == "0.50 s"
    assert cell.evidence == "it moves"
    assert cell.note == f"1.250 s in the file; {name} 12.5 {unit}; unheard_of 3"


@given(st.lists(st.booleans(), max_size=90))
def test_of_very_many_all_kept_ones_are_shown(kept: list[bool]) -> None:
    told = [candidate(float(n), kept=one) for n, one in enumerate(kept)]
    some = filmstrip_cells._some(told)
    times = [one["timestamp_s"] for one in some]
    assert times == sorted(set(times))
    assert len(some) == min(len(kept), MAX_CELLS)
    if sum(kept) <= MAX_CELLS:
        assert sum(one["kept"] for one in some) == sum(kept)
