"""Clips from files to documents: each ends once, and no work is done twice."""

import hashlib
import json
from pathlib import Path

import pytest

from infra import catalog
from infra.config import ConfigError, build
from infra.storage import Storage
from pipelines import curate
from pipelines.demo_clip import make_clips
from pipelines.recipe import Recipe
from pipelines.status import Look, NotDoneError

pytestmark = pytest.mark.slow

NAMES = (
    "bigbuckbunny.mp4",
    "china_pan.mp4",
    "dahlia_on_grass.mp4",
    "four_pictures.mp4",
    "rocket_short.mp4",
)
TABLES = ("samples", "scores", "decisions", "frames", "captions", "documents")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the demo's clips, a damaged one, and a film of two of them."""
    folder = tmp_path_factory.mktemp("clips")
    for clip in make_clips():
        if clip.name in NAMES:
            (folder / clip.name).write_bytes(clip.data)
            said = {"caption": f"about {clip.name}", "motion_score": 7.5}
            (folder / clip.name).with_suffix(".json").write_text(json.dumps(said))
    whole = (folder / "four_pictures.mp4").read_bytes()
    (folder / "damaged.mp4").write_bytes(whole[: len(whole) // 3])
    return folder


def recipe(workspace: Path, footage: Path, /, **more: object) -> Recipe:
    pool = {"unit_rows": 2, "batch_rows": 2}
    sections = {
        "dataset": "film",
        "workspace": str(workspace),
        "sources": [{"name": "clips", "kind": "folder", "media": "video", "path": str(footage)}],
        # DIS is a hundredth of RAFT's work; the given motion needs neither.
        "clips": {"given": {"motion": "motion_score"}},
        "models": None,
        "decide": {"rules": [{"name": "short", "keep": "duration_s >= 2"}]},
        "frames": {"flow": {"method": "dis"}, "pool": pool},
    }
    return build(Recipe, sections | more)


def contents(workspace: Path) -> dict[str, str]:
    storage = Storage(str(workspace))
    return {
        path: hashlib.sha256(storage.read(path)).hexdigest()
        for kind in TABLES
        for path, _, _ in storage.find(kind)
        if "listing-" not in path
    }


@pytest.fixture(scope="module")
def made(clips: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    workspace = tmp_path_factory.mktemp("curated")
    of = recipe(workspace, clips)
    curate.check(of)
    curate.curate(of)
    return workspace


def test_every_clip_ends_once(made: Path) -> None:
    con = catalog.connect(Storage(str(made)))
    ends = con.sql("SELECT key, status, reason FROM ledger ORDER BY key").fetchall()
    assert ends == [
        ("bigbuckbunny.mp4", "kept", None),
        ("china_pan.mp4", "rejected", "frames:too_few_frames"),
        ("dahlia_on_grass.mp4", "kept", None),
        ("damaged.mp4", "failed", "probe:truncated"),
        ("four_pictures.mp4", "kept", None),
        ("rocket_short.mp4", "rejected", "short"),
    ]
    [(motion,)] = con.sql("SELECT DISTINCT motion FROM scores WHERE motion IS NOT NULL").fetchall()
    assert motion == 7.5  # as given


def test_documents_tell_the_clips(made: Path) -> None:
    con = catalog.connect(Storage(str(made)))
    rows = con.sql(
        "SELECT s.key, d.segments, f.candidates FROM documents d "
        "JOIN samples s ON s.sample_id = d.sample_ids[1] JOIN frames f USING (sample_id) "
        "WHERE d.error IS NULL ORDER BY ALL"
    ).fetchall()
    assert [key for key, *_ in rows] == [
        "bigbuckbunny.mp4",
        "dahlia_on_grass.mp4",
        "four_pictures.mp4",
    ]
    for key, segments, candidates in rows:
        text, *images = segments
        assert (text["kind"], text["text"], text["loss"]) == ("text", f"about {key}", True)
        kept = [one for one in candidates if one["kept"]]
        assert [one["image"] for one in images] == [one["image"] for one in kept]
        assert candidates[0]["kept"]
        assert all((one["image"] is None) != one["kept"] for one in candidates)
        assert [one["timestamp_s"] for one in candidates] == pytest.approx(
            [2.0 * n for n in range(len(candidates))], abs=0.03
        )
    classes = {key: [one["class"] for one in candidates] for key, _, candidates in rows}
    assert classes["four_pictures.mp4"][1:] == ["cut"] * 3


def test_a_second_run_has_nothing_to_do_and_another_threshold_little(
    made: Path, clips: Path
) -> None:
    states: list = []
    curate.curate(recipe(made, clips), run=Look(states))
    assert {state.state for state in states} == {"done"}
    states = []
    longer = {"rules": [{"name": "short", "keep": "duration_s >= 6"}]}
    with pytest.raises(NotDoneError, match="decisions"):
        curate.curate(recipe(made, clips, decide=longer), run=Look(states))
    assert [state.state for state in states[:-1]] == ["done"] * 2  # no score anew


def test_units_workers_and_batches_leave_no_trace(
    made: Path, clips: Path, tmp_path: Path, ray_session: None
) -> None:
    pool = {"unit_rows": 3, "batch_rows": 1, "workers": 2}
    other = recipe(
        tmp_path, clips, frames={"flow": {"method": "dis"}, "pool": pool}, cheap={"pool": pool}
    )
    curate.curate(other)
    assert contents(tmp_path) == contents(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": {"given": {"beauty": "b"}}}, "clips.given names 'beauty'"),
        ({"ocr": {}}, "`ocr` is for pictures, the sources are videos"),
        ({"documents": {"level": 300}}, "level is 300"),
        ({"frames": {"every_s": 0}}, "`frames`: every_s is 0"),
        ({"frames": {"min_frames": 9}}, "`frames`: min_frames is 9"),
        ({"clips": {"motion": None, "given": {"motion": "m"}}}, "remove that null"),
        ({"documents": {"task": "i2t"}}, "documents.task is for pictures"),
        ({"frames": {"flow": {"method": "raft_large"}}}, "method raft_large needs `weights`"),
        ({"clips": {"shots": {"detector": "transnetv2"}}}, "needs the path of its `weights`"),
        ({"decide": {"rules": [{"name": "r", "keep": "ocr_text = ''"}]}}, "ocr_text"),
        ({"transitions": {"rules": [{"name": "r", "keep": "nothing > 1"}]}}, "nothing"),
    ],
)
def test_mistakes_are_one_line_before_work(
    tmp_path: Path, clips: Path, change: dict, message: str
) -> None:
    with pytest.raises((ConfigError, ValueError)) as raised:
        curate.check(recipe(tmp_path, clips, **change))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
