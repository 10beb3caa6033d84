"""Which frames are kept: by classes that a test lays down, and by real motion."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from infra.frames import Frame, to_frames
from infra.pixels import Pixels, decode
from infra.runs import describe
from infra.schedules import nearest
from infra.schema import CANDIDATE, ERROR, FRAMES
from operators.flow import Flow, FlowField
from operators.frame_selection import FrameSelection
from operators.kept_frames import kept_frames
from operators.motion_classes import CLASSES, STATISTICS, MotionRule, Pair, Verdict

DIS = Flow(method="dis")
LOST = {"stage": "probe", "type": "corrupt", "message": "half of it is missing"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photo(photos: Path) -> Pixels:
    return decode((photos / "china.jpg").read_bytes(), 400).rgb


@dataclass(frozen=True)
class Marked(MotionRule):
    """Classifies a frame by the mark in its first pixel, and notes what it was shown."""

    shown: list[tuple[float | None, float | None]] = field(default_factory=list)

    def classify(self, short: Pair | None, across: Pair | None) -> Verdict:
        self.shown.append(
            (short and round(short.baseline_s, 3), across and round(across.baseline_s, 3))
        )
        here = short.first if short else across.second if across else None
        class_ = "static" if here is None else CLASSES[int(here[8, 8, 0]) // 64]
        return Verdict(class_, f"marked as {class_}", {})


@dataclass(frozen=True, kw_only=True)
class Steps(Flow):
    """Flow in the place of a computed one: everything goes right by what the marks differ."""

    asked: list[int] = field(default_factory=list)

    def flow(self, pairs: Any) -> list[FlowField | None]:
        self.asked.append(len(pairs))
        found: list[FlowField | None] = []
        for pair in pairs:
            if pair is None:
                found.append(None)
                continue
            first, second = (int(rgb[8, 8, 1]) for rgb in pair)
            found.append(np.zeros((*pair[0].shape[:2], 2), np.float32))
            found[-1][..., 0] = second - first  # type: ignore[index]
        return found


def marked(
    classes: str, places: list[int] | None = None, height: int = 256, width: int = 256
) -> list[Frame]:
    """A clip with a frame of class c (camera), s, o or x (a cut) every two seconds."""
    frames = []
    for i, letter in enumerate(classes):
        rgb = np.full((height, width, 3), 255, np.uint8)
        rgb[..., 0] = "scox".index(letter) * 64 + 32
        rgb[..., 1] = places[i] if places else 10 * i
        frames.append(Frame(2.0 * i, rgb, 2.0 * i + 0.125, rgb))
    return frames


def table(clips: list[list[Frame] | None]) -> pa.Table:
    return pa.table({"frames": to_frames(clips), "error": pa.nulls(len(clips), ERROR.type)})


def selection(**settings: Any) -> FrameSelection:
    return FrameSelection(**{"level": 256, "flow": Steps(), "rule": Marked()} | settings)


def kept(done: pa.Table, row: int = 0) -> list[int]:
    return [i for i, c in enumerate(done["candidates"][row].as_py()) if c["kept"]]


def ranks(done: pa.Table, row: int = 0) -> list[int | None]:
    return [candidate["rank"] for candidate in done["candidates"][row].as_py()]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("ssos", [0, 2]),  # the first, whatever it is
        ("cccox", [0, 3, 4]),
        ("ooooo", [0, 1, 2, 3, 4]),
        ("oscso", [0, 4]),
    ],
)
def test_the_first_and_those_that_qualify(classes: str, expected: list[int]) -> None:
    done = selection()(table([marked(classes)]))
    assert done["error"].to_pylist() == [None]
    assert kept(done) == expected
    assert done["num_kept"].to_pylist() == [len(expected)]
    assert done["num_candidates"].to_pylist() == [len(classes)]
    told = done["candidates"][0].as_py()
    names = {"s": "static", "c": "camera", "o": "object", "x": "cut"}
    assert [c["class"] for c in told] == [names[letter] for letter in classes]
    assert [c["evidence"] for c in told] == [f"marked as {names[letter]}" for letter in classes]
    assert [c["timestamp_s"] for c in told] == [2.0 * i for i in range(len(classes))]
    assert [c["rank"] is not None for c in told] == [i in expected for i in range(len(classes))]


def test_those_that_cover_the_motion_are_kept_when_there_are_too_many() -> None:
    """Four frames hardly move, then the story begins."""
    places = [0, 1, 2, 3, 60, 120, 121, 180]
    done = selection(max_frames=4)(table([marked("oooooooo", places)]))
    assert kept(done) == [0, 4, 5, 7]
    assert ranks(done)[0] == 0
    assert {ranks(done)[i] for i in (4, 5, 7)} == {1, 2, 3}
    # Frames that do not qualify still lie on the way.
    done = selection(max_frames=3)(table([marked("osssosoo", places)]))
    assert kept(done) == [0, 4, 7]


def test_a_cut_is_as_far_as_the_frame_is_wide() -> None:
    """Across a cut flow says anything: here nothing, and yet the cut is the largest step."""
    places = [0, 20, 40, 40, 110]
    assert kept(selection(max_frames=3)(table([marked("oooxo", places)]))) == [0, 3, 4]
    assert kept(selection(max_frames=3)(table([marked("ooooo", places)]))) == [0, 2, 4]


def test_how_many_are_kept_at_most() -> None:
    eight = table([marked("oooooooo")])
    assert selection()(eight)["num_kept"].to_pylist() == [5]
    assert selection(max_frames=7)(eight)["num_kept"].to_pylist() == [7]
    assert selection(max_frames=64)(eight)["num_kept"].to_pylist() == [8]
    assert FrameSelection(level=512).most == 5
    assert FrameSelection(level=1024).most == 3
    assert FrameSelection(level=1024, max_frames=4).most == 4


def test_too_few_frames_is_a_verdict_that_keeps_the_candidates() -> None:
    done = selection()(table([marked("scss"), marked("so"), marked("s"), []]))
    errors = done["error"].to_pylist()
    assert [error and error["type"] for error in errors] == [
        "too_few_frames",
        None,
        "too_few_frames",
        "too_few_frames",
    ]
    assert errors[0]["message"] == "1 of 4 candidates would be kept, 2 are needed"
    assert errors[3]["message"] == "0 of 0 candidates were decoded, 2 are needed"
    told = done["candidates"][0].as_py()
    assert [c["class"] for c in told] == ["static", "camera", "static", "static"]
    assert not any(c["kept"] or c["image"] for c in told)
    assert done["num_kept"].to_pylist() == [0, 2, None, None]
    done = selection(min_frames=1)(table([marked("scss"), marked("s")]))
    assert done["error"].null_count == 2
    assert done["num_kept"].to_pylist() == [1, 1]


def test_flow_is_asked_for_once_and_at_most_once_for_a_pair() -> None:
    flow, rule = Steps(), Marked()
    clips = [marked("soo"), None, marked("ox")]
    selection(flow=flow, rule=rule)(table(clips))
    assert flow.asked == [2 * 3 + 2 * 2]
    # Each with its partner, and with the one before it.
    assert rule.shown == [(0.125, None), (0.125, 2.0), (0.125, 2.0), (0.125, None), (0.125, 2.0)]


def test_nothing_is_computed_for_clips_that_cannot_be_used() -> None:
    flow = Steps()
    done = selection(flow=flow, level=512)(table([marked("ooo"), marked("o")]))
    assert flow.asked == [0]
    assert done["error"][0].as_py()["type"] == "too_small_for_level"
    assert "256x256 is below 512x512 of level 512" in done["error"][0].as_py()["message"]
    long = selection(flow=flow, max_cropped=0.2)(table([marked("ooo", height=128, width=1400)]))
    assert long["error"][0].as_py()["type"] == "too_elongated"
    assert long["error"][0].as_py()["stage"] == "frames"


def test_a_frame_that_was_not_decoded_is_bridged() -> None:
    rule = Marked()
    frames = marked("oooo")
    frames[1] = Frame(2.0, None, error=LOST)
    done = selection(rule=rule)(table([frames]))
    assert kept(done) == [0, 2, 3]
    lost = done["candidates"][0].as_py()[1]
    assert lost["class"] is None
    assert lost["evidence"] == "corrupt: half of it is missing"
    assert lost["timestamp_s"] == 2.0
    assert rule.shown == [(0.125, None), (0.125, 4.0), (0.125, 2.0)]


def test_a_partner_that_is_no_later_is_none() -> None:
    rule = Marked()
    frames = marked("oo")
    frames[1] = replace(frames[1], partner_s=frames[1].timestamp_s)
    done = selection(rule=rule, min_frames=1)(table([frames]))
    assert rule.shown == [(0.125, None), (None, 2.0)]
    assert done["candidates"][0].as_py()[1]["flow"] is None


def test_kept_frames_are_cut_to_the_schedule(photo: Pixels) -> None:
    shifted = [photo[:, 10 * i : 10 * i + 500] for i in range(4)]
    frames = [
        Frame(2.0 * i, np.ascontiguousarray(rgb), 2.0 * i + 0.1, np.ascontiguousarray(rgb))
        for i, rgb in enumerate(shifted)
    ]
    done = FrameSelection(level=256, flow=DIS, rule=Marked(), min_frames=1)(table([frames]))
    (found,) = kept_frames(done)
    assert found
    height, width = nearest(400, 500).image_size(256)
    for one in found:
        picture = Image.open(io.BytesIO(one.image))
        assert picture.format == "JPEG"
        assert picture.size == (width, height) == (one.width, one.height)
        assert 0 <= one.cropped < 0.08
        # It is this frame and no other: the mean over 2.5 of its pixels, give or take JPEG.
        rgb = shifted[int(one.timestamp_s // 2)]
        assert np.abs(np.asarray(picture).mean((0, 1)) - rgb.mean((0, 1))).max() < 3
    for candidate in done["candidates"][0].as_py():
        assert (candidate["image"] is not None) == candidate["kept"]


def test_frames_of_a_clip_that_changes_its_size(photo: Pixels) -> None:
    """Recorded streams do: all are cut alike, and the smallest decides whether it is enough."""
    large, small = np.ascontiguousarray(photo[:400, :500]), np.ascontiguousarray(photo[:320, :400])
    frames = [Frame(0.0, large, 0.1, small), Frame(2.0, small, 2.1, large)]
    every = Marked()
    done = FrameSelection(level=256, flow=DIS, rule=every, min_frames=1)(table([frames]))
    assert done["error"].to_pylist() == [None]
    tiny = [*frames, Frame(4.0, np.ascontiguousarray(photo[:100, :125]))]
    done = FrameSelection(level=256, flow=DIS, rule=every)(table([tiny]))
    assert done["error"][0].as_py()["type"] == "too_small_for_level"


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        (((384, 683), (683, 384)), "too_elongated"),
        (((300, 1000), (310, 310)), "too_small_for_level"),
    ],
)
def test_a_clip_that_turns_midway_fails_alone(shapes: Any, told: str) -> None:
    rng = np.random.default_rng(0)

    def clip(*sizes: tuple[int, int]) -> list[Frame]:
        frames = [rng.integers(0, 255, (*size, 3), np.uint8) for size in sizes]
        return [Frame(2.0 * t, rgb, 2.0 * t + 0.1, rgb) for t, rgb in enumerate(frames)]

    done = FrameSelection(level=256, flow=Flow(method="dis"))(
        table([clip(*shapes), clip(shapes[0], shapes[0])])
    )
    failed, fine = done["error"].to_pylist()
    assert failed["type"] == told
    assert fine is None
    assert done["num_kept"].to_pylist() == [0, 2]


def test_the_flow_is_told_on_a_grid(photo: Pixels) -> None:
    def window(left: int) -> Pixels:
        return np.ascontiguousarray(photo[20:276, left : left + 320])

    frames = [Frame(2.0 * i, window(20), 2.0 * i + 0.25, window(16)) for i in range(2)]
    done = FrameSelection(level=256, flow=DIS, rule=Marked(), min_frames=1)(table([frames]))
    for candidate in done["candidates"][0].as_py():
        grid = np.reshape(candidate["flow"], (8, 8, 2))
        assert np.median(grid[..., 0]) == pytest.approx(16, abs=1)  # 4 pixels in 1/4 s
        assert np.median(grid[..., 1]) == pytest.approx(0, abs=1)


def test_a_clip_does_not_depend_on_its_neighbours(photo: Pixels) -> None:
    operator = FrameSelection(
        level=256,
        min_frames=1,
        flow=Flow(short_side=128, updates=2, batch_pairs=3),
        rule=MotionRule(),
    )
    clips = []
    for number, height in ((2, 300), (3, 256), (2, 300)):
        frames = []
        for i in range(number):
            top, left = 10 * i, 30 * i
            first = np.ascontiguousarray(photo[top : top + height, left : left + 400])
            second = np.ascontiguousarray(photo[top : top + height, left + 3 : left + 403])
            frames.append(Frame(2.0 * i, first, 2.0 * i + 0.125, second))
        clips.append(frames)
    together = operator(table([clips[0], None, *clips[1:]])).drop_columns("frames")
    for row, clip in ((0, clips[0]), (2, clips[1]), (3, clips[2])):
        alone = operator(table([clip])).drop_columns("frames")
        assert alone.equals(together.slice(row, 1))


def test_failed_rows_stay_as_they_are() -> None:
    batch = table([marked("oo"), None, marked("oo")])
    batch = batch.set_column(1, ERROR, pa.array([None, LOST, LOST], ERROR.type))
    flow = Steps()
    done = selection(flow=flow)(batch)
    assert done["error"].to_pylist() == [None, LOST, LOST]
    assert done["candidates"].is_valid().to_pylist() == [True, False, False]
    assert flow.asked == [4]
    for name in ("candidates", "num_candidates", "num_kept"):
        assert done.schema.field(name).equals(FRAMES.field(name), check_metadata=True)
    assert selection()(batch.slice(0, 0)).num_rows == 0


def test_statistics_have_their_columns(photo: Pixels) -> None:
    names = {name for name, *_ in STATISTICS}
    assert names <= {CANDIDATE.field(i).name for i in range(CANDIDATE.num_fields)}
    first, second = (np.ascontiguousarray(photo[20:276, x : x + 320]) for x in (20, 12))
    frames = [Frame(0.0, first, 0.125, second), Frame(2.0, second, 2.125, first)]
    done = FrameSelection(level=256, flow=DIS, min_frames=1)(table([frames]))
    verdict = MotionRule().classify(
        Pair(second, first, DIS.flow([(second, first)])[0], 0.125),  # type: ignore[arg-type]
        Pair(first, second, DIS.flow([(first, second)])[0], 2.0),  # type: ignore[arg-type]
    )
    candidate = done["candidates"][0].as_py()[1]
    assert candidate["class"] == verdict.class_
    assert candidate["evidence"] == verdict.evidence
    for name in names:
        known = verdict.statistics[name]
        assert candidate[name] == (None if known is None else pytest.approx(known, rel=1e-6))


def test_all_that_decides_is_in_the_description() -> None:
    one = describe(FrameSelection())
    assert one["flow"]["identity"]
    for other in (
        FrameSelection(flow=DIS),
        FrameSelection(rule=MotionRule(rule="paper")),
        FrameSelection(max_frames=4),
    ):
        assert describe(other) != one


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"level": 300}, "level is 300: choose 256, 512, 1024"),
        ({"min_frames": 0}, "min_frames is 0: choose 1 to 5"),
        ({"min_frames": 4, "level": 1024}, "min_frames is 4: choose 1 to 3"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"jpeg_quality": 0}, "jpeg_quality is 0"),
        ({"max_cropped": 2}, "max_cropped is 2"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        FrameSelection(**settings)
