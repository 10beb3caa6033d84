"""The motion score of clips whose motion is known."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from infra.frames import Frame, to_frames
from infra.pixels import Pixels, decode
from infra.runs import describe
from infra.schema import ERROR
from operators.flow import Flow
from operators.motion import Motion

DIS = Flow(method="dis")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photo(photos: Path) -> Pixels:
    return decode((photos / "china.jpg").read_bytes(), 400).rgb


def shifting(photo: Pixels, shift: int, gap_s: float, number: int = 3, at: int = 0) -> list[Frame]:
    """Frames two seconds apart, all points of which go ``shift`` pixels to the left in a gap."""
    frames = []
    for i in range(number):
        left = 20 + 20 * i + at
        first = np.ascontiguousarray(photo[20:276, left : left + 320])
        second = np.ascontiguousarray(photo[20:276, left + shift : left + shift + 320])
        frames.append(Frame(2.0 * i, first, 2.0 * i + gap_s, second))
    return frames


def table(clips: list[list[Frame] | None], metadata: list[str | None] | None = None) -> pa.Table:
    columns = {"frames": to_frames(clips), "error": pa.nulls(len(clips), ERROR.type)}
    return pa.table(columns | ({"metadata": metadata} if metadata else {}))


def scores(operator: Motion, batch: pa.Table) -> list[float | None]:
    found: list[float | None] = operator(batch)["motion"].to_pylist()
    return found


def test_speed_is_per_second(photo: Pixels) -> None:
    slow, fast = shifting(photo, 4, 0.25), shifting(photo, 4, 0.125)
    still = shifting(photo, 0, 0.125)
    of_slow, of_fast, of_still = scores(Motion(flow=DIS), table([slow, fast, still]))
    assert of_slow == pytest.approx(16, rel=0.05)
    assert of_fast == pytest.approx(2 * of_slow)  # type: ignore[operator]
    assert of_still == pytest.approx(0, abs=0.1)


def test_speed_does_not_depend_on_the_size(photo: Pixels) -> None:
    clip = table([shifting(photo, 6, 0.125)])
    (at_256,) = scores(Motion(flow=DIS), clip)
    (at_512,) = scores(Motion(flow=Flow(method="dis", short_side=512)), clip)
    assert at_256 == pytest.approx(at_512, rel=0.1)
    assert at_256 == pytest.approx(48, rel=0.1)


def test_raft_agrees(photo: Pixels) -> None:
    clip = table([shifting(photo, 4, 0.125, number=1)])
    (by_raft,) = scores(Motion(flow=Flow(updates=6)), clip)
    assert by_raft == pytest.approx(32, rel=0.05)


def test_the_mean_over_the_frames_that_have_a_partner(photo: Pixels) -> None:
    fast, still = shifting(photo, 4, 0.125, 1)[0], shifting(photo, 0, 0.125, 1)[0]
    lonely = Frame(4.0, still.rgb)
    unmoved = Frame(4.0, still.rgb, 4.0, fast.rgb)  # its partner is no later: the clip's last frame
    black = Frame(4.0, np.zeros((256, 320, 3), np.uint8), 4.125, fast.rgb)
    lost = Frame(4.0, None, error={"stage": "probe", "type": "corrupt", "message": ""})
    mixed, one, none, empty = scores(
        Motion(flow=DIS),
        table(
            [
                [fast, still, lonely, unmoved, black, lost],
                [fast],
                [lonely, unmoved, black, lost],
                [],
            ]
        ),
    )
    assert mixed == pytest.approx(one / 2, rel=0.02)  # type: ignore[operator]
    assert none is None
    assert empty is None


def test_given_scores_are_taken_and_the_others_computed(photo: Pixels) -> None:
    clip = shifting(photo, 4, 0.125)
    given = ['{"motion": 7.5}', '{"motion": "9"}', '{"motion": "fast"}', None]
    batch = table([clip] * 4, given)
    found = scores(Motion(flow=DIS, given="motion"), batch)
    (computed, *_) = scores(Motion(flow=DIS), batch)
    assert found == [7.5, 9.0, computed, computed]
    assert "metadata" in Motion(given="motion").reads
    assert "metadata" not in Motion().reads


def test_failed_rows_stay_empty(photo: Pixels) -> None:
    failure = {"stage": "probe", "type": "empty", "message": ""}
    batch = table([shifting(photo, 4, 0.125), None])
    batch = batch.set_column(1, ERROR, pa.array([failure, None], ERROR.type))
    assert scores(Motion(flow=DIS), batch) == [None, None]
    done = Motion(flow=DIS)(batch.slice(0, 0))
    assert done.column_names == ["frames", "error", "motion"]
    assert done.schema.field("motion").equals(Motion.writes.field("motion"), check_metadata=True)


def test_a_clip_does_not_depend_on_its_neighbours(photo: Pixels) -> None:
    operator = Motion(flow=Flow(method="raft_small", short_side=128, updates=2, batch_pairs=2))
    clips = [shifting(photo, 4, 0.125, number, at) for number, at in ((1, 0), (3, 5), (2, 9))]
    together = scores(operator, table([clips[0], None, *clips[1:]]))
    alone = [scores(operator, table([clip]))[0] for clip in clips]
    assert together == [alone[0], None, *alone[1:]]


def test_how_it_was_made_is_told() -> None:
    assert describe(Motion())["flow"]["identity"]
    assert describe(Motion(flow=DIS)) != describe(Motion())
    with pytest.raises(ValueError, match="given is empty"):
        Motion(given="")
