"""Videos are cut where shots change, clips keep their lengths, and bad files cost their row."""

import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.pixels import decode
from infra.schema import ERROR_TYPE, FILE_TYPE
from operators.shot_cuts import Cut
from operators.shots import Shots, clips_of, shots_of

FPS = 20


def films(*places: dict[str, Any] | None, errors: list[Any] | None = None) -> pa.Table:
    """A batch of these files."""
    empty = {"offset": 0, "length": None, "start_s": None, "end_s": None, "stream": 0}
    rows = [place and empty | place for place in places]
    return pa.table(
        {
            "file": pa.array(rows, FILE_TYPE),
            "error": pa.array(errors or [None] * len(rows), ERROR_TYPE),
        }
    )


@pytest.fixture(scope="session")
def film(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 seconds: shots of 3, 1, 12, 2 and 8 seconds, each a pan over a photograph."""
    names = ("china.jpg", "coffee.png", "rocket.jpg", "chelsea.png", "flower.jpg")
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 128, 72, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for name, duration_s in zip(names, (3, 1, 12, 2, 8), strict=True):
            rgb = decode((photos / name).read_bytes(), 144, 10**8).rgb
            for i in range(duration_s * FPS):
                crop = np.ascontiguousarray(rgb[i // 6 : i // 6 + 72, i // 4 : i // 4 + 128])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(crop, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def spans(batch: pa.Table, row: int = 0) -> list[tuple[float, float]]:
    return [(span["start_s"], span["end_s"]) for span in batch["spans"][row].as_py()]


def test_a_film_is_cut_into_clips(film: Path) -> None:
    place = {"root": str(film.parent), "uri": film.name}
    made = Shots()(films(place))
    assert made["error"].to_pylist() == [None]
    np.testing.assert_allclose(spans(made), [(0, 3), (4, 16), (16, 18), (18, 26)], atol=1e-6)
    assert made["num_shots"].to_pylist() == [5]
    assert made["num_too_short"].to_pylist() == [1]
    assert made["duration_s"][0].as_py() == pytest.approx(26)
    assert made.column_names == ["file", "error", *Shots.writes.names]

    parts = Shots(min_clip_s=2.5, max_clip_s=5.0)(films(place))
    expected = [(0, 3), (4, 8), (8, 12), (12, 16), (18, 22), (22, 26)]
    np.testing.assert_allclose(spans(parts), expected, atol=1e-6)

    trimmed = Shots(trim_s=0.25)(films(place))
    np.testing.assert_allclose(spans(trimmed), [(0, 2.75), (4.25, 15.75), (18.25, 26)], atol=1e-6)


def test_a_span_is_cut_within_itself(film: Path) -> None:
    place = {"root": str(film.parent), "uri": film.name, "start_s": 1.0, "end_s": 6.5}
    made = Shots(min_clip_s=1.0)(films(place))
    np.testing.assert_allclose(spans(made), [(1, 3), (3, 4), (4, 6.5)], atol=1e-6)
    assert made["duration_s"][0].as_py() == pytest.approx(5.5)


def test_a_part_of_a_file_is_a_film(film: Path, tmp_path: Path) -> None:
    """As in a tar: other bytes before and behind."""
    data = film.read_bytes()
    (tmp_path / "t.tar").write_bytes(b"x" * 512 + data + b"y" * 512)
    place = {"root": str(tmp_path), "uri": "t.tar", "offset": 512, "length": len(data)}
    whole = Shots()(films({"root": str(film.parent), "uri": film.name}))
    assert Shots()(films(place))["spans"].equals(whole["spans"])


def test_bad_files_cost_their_row(film: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_bytes(b"no film" * 100)
    earlier = {"stage": "load", "type": "missing", "message": "gone"}
    fine = {"root": str(film.parent), "uri": film.name}
    bad = [{"root": str(tmp_path), "uri": name} for name in ("empty.mp4", "text.mp4")]
    made = Shots()(films(*bad, None, None, fine, errors=[None, None, None, earlier, None]))
    errors = made["error"].to_pylist()
    assert [error and error["stage"] for error in errors] == ["shots"] * 3 + ["load", None]
    assert errors[2]["type"] == "missing_file"
    assert errors[3] == earlier
    for error, found in zip(errors, made["spans"].to_pylist(), strict=True):
        assert (error is None) == (found is not None)
    short = Shots(min_clip_s=13.0)(films(fine))
    assert short["error"][0].as_py()["type"] == "no_clip"


@pytest.mark.parametrize(
    "name", ["bbb_5s.mp4", "stream_static.mp4", "flower_bloom.mp4", "sea_1s.mp4"]
)
def test_real_clips_of_one_shot(assets: Path, name: str) -> None:
    made = Shots(min_clip_s=0.5)(films({"root": str(assets / "videos"), "uri": name}))
    assert made["num_shots"].to_pylist() == [1]


def test_a_real_film(assets: Path) -> None:
    """A pan, then three cuts; where they are was seen by eye."""
    place = {"root": str(assets / "videos"), "uri": "bbb_0_30.webm"}
    made = Shots()(films(place))
    starts = [start for start, _ in spans(made)]
    np.testing.assert_allclose(starts, [0, 283 / 24, 376 / 24, 551 / 24], atol=0.05)


def test_a_film_of_many_cuts(assets: Path) -> None:
    """The assets' notes count about 21 cuts in its first 1,600 frames."""
    place = {"root": str(assets / "videos"), "uri": "tears_of_steel_cuts.webm"}
    made = Shots()(films(place | {"end_s": 1600 / 24}))
    assert made["num_shots"][0].as_py() - 1 == pytest.approx(21, abs=3)


@pytest.mark.slow
def test_both_kinds_of_detectors_agree_on_hard_cuts(assets: Path) -> None:
    place = {"root": str(assets / "videos"), "uri": "tears_of_steel_cuts.webm", "end_s": 16.0}
    weights = str(assets / "weights/transnetv2_fp16.safetensors")
    found = [
        spans(shots(films(place)))
        for shots in (
            Shots(min_clip_s=0.5),
            Shots(detector="transnetv2", weights=weights, min_clip_s=0.5),
        )
    ]
    assert len(found[0]) == 6
    np.testing.assert_allclose(found[0], found[1], atol=1 / 24 + 1e-3)


CUTS = st.lists(
    st.tuples(st.floats(0.05, 30), st.floats(0, 1)), max_size=8
)  # (length of a shot, of the transition behind it)


@given(
    CUTS,
    st.floats(0, 1),
    st.floats(0.05, 5),
    st.none() | st.floats(2, 6),
)
def test_clips_lie_in_their_shots(
    lengths: list[tuple[float, float]], trim_s: float, min_clip_s: float, times: float | None
) -> None:
    max_clip_s = times and times * min_clip_s
    at, cuts = 1.0, []
    for shot_s, transition_s in lengths:
        cuts.append(Cut(at + shot_s, at + shot_s + transition_s))
        at = cuts[-1].start_s
    shots = shots_of(cuts, 1.0, at + 7.0)
    assert len(shots) == len(cuts) + 1
    clips = clips_of(shots, trim_s, min_clip_s, max_clip_s)
    for (_, _, end), (_, start, _) in pairwise(clips):
        assert end <= start
    for number, (first, last) in enumerate(shots):
        first += trim_s if number else 0
        last -= trim_s if number < len(cuts) else 0
        mine = [(start, end) for shot, start, end in clips if shot == number]
        assert bool(mine) == (last - first >= min_clip_s)
        if mine:
            assert mine[0][0] == first
            assert mine[-1][1] == last
            assert len(mine) == (math.ceil((last - first) / max_clip_s) if max_clip_s else 1)
            assert all(a[1] == b[0] for a, b in pairwise(mine))
            assert all(end - start >= min_clip_s * (1 - 1e-9) for start, end in mine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "eye"}, "choose among content, adaptive, transnetv2"),
        ({"threshold": 0.0}, "more than 0"),
        ({"min_shot_s": -1.0}, "not be negative"),
        ({"min_clip_s": 0.0}, "at least 0.05"),
        ({"max_clip_s": 3.0}, "twice min_clip_s"),
        ({"detector": "transnetv2"}, "needs the path of its `weights`"),
        ({"weights": "x"}, "the others need none"),
        ({"detector": "transnetv2", "weights": "x", "threshold": 1.5}, "below 1"),
        ({"limit_s": 0.0}, "limit_s is 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shots(**options)


def test_identity_is_that_of_the_weights(assets: Path, tmp_path: Path) -> None:
    assert Shots().identity == ""
    path = assets / "weights/transnetv2_fp16.safetensors"
    (tmp_path / "same").write_bytes(path.read_bytes())
    identities = {
        Shots(detector="transnetv2", weights=str(one)).identity for one in (path, tmp_path / "same")
    }
    assert len(identities) == 1
    with pytest.raises(ValueError, match="is no file"):
        Shots(detector="transnetv2", weights=str(tmp_path / "none")).identity  # noqa: B018
