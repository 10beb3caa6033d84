"""Image operators over the frames of clips, against what they say of each frame."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from infra.frames import Frame, to_frames
from infra.pixels import Pixels, decode, pictures_of, to_struct
from infra.runs import describe
from infra.schema import ERROR, column
from operators.aesthetics import Aesthetics
from operators.borders import Borders
from operators.clarity import Clarity
from operators.colour import Colour
from operators.frame_scores import FrameScores, FrameTower
from operators.image_features import ImageFeatures, to_lists
from operators.perceptual_hash import PerceptualHash
from operators.similarity import CaptionSimilarity
from operators.topics import Topics
from pipelines.phase import is_transient

LOST = {"stage": "probe", "type": "corrupt", "message": "half of it is missing"}


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Pixels]:
    return [decode(path.read_bytes(), 224).rgb for path in sorted(photos.glob("*.[pj]*g"))]


def clip(*pictures: Pixels | None) -> list[Frame]:
    return [
        Frame(2.0 * i, rgb, error=LOST if rgb is None else None) for i, rgb in enumerate(pictures)
    ]


def table(clips: list[list[Frame] | None], metadata: list[str | None] | None = None) -> pa.Table:
    columns = {"frames": to_frames(clips), "error": pa.nulls(len(clips), ERROR.type)}
    return pa.table(columns | ({"metadata": metadata} if metadata else {}))


def of_pictures(operator: Any, pictures: list[Pixels]) -> list[dict[str, Any]]:
    errors = pa.nulls(len(pictures), ERROR.type)
    scored = operator(pa.table({"image": to_struct(pictures), "error": errors}))
    rows: list[dict[str, Any]] = scored.select(operator.writes.names).to_pylist()
    return rows


@pytest.mark.parametrize("operator", [Clarity(), Colour(), Borders(), Aesthetics()])
def test_numbers_are_means(operator: Any, pictures: list[Pixels]) -> None:
    scorer = FrameScores(operator)
    clips = [clip(*pictures[:3]), None, clip(pictures[3]), clip(None, pictures[4], None), clip()]
    batch = table(clips)
    done = scorer(batch)
    rows = done.select(scorer.writes.names).to_pylist()
    each = of_pictures(operator, pictures)
    for name in operator.writes.names:
        mean = np.mean([frame[name] for frame in each[:3]])
        assert rows[0][name] == pytest.approx(mean, rel=1e-6)
        assert rows[2][name] == each[3][name]
        assert rows[3][name] == each[4][name]
        assert rows[1][name] is rows[4][name] is None
        field = done.schema.field(name)
        assert field.equals(scorer.writes.field(name), check_metadata=True)
        assert field.type == operator.writes.field(name).type


def test_hashes_are_those_of_the_middle_frame(pictures: list[Pixels]) -> None:
    done = FrameScores(PerceptualHash())(
        table([clip(*pictures[:3]), clip(pictures[0], None, pictures[2], pictures[3])])
    )
    each = [frame["phash"] for frame in of_pictures(PerceptualHash(), pictures)]
    assert done["phash"].to_pylist() == [each[1], each[2]]


@dataclass(frozen=True)
class Named:
    """Says of a picture what its first two values say."""

    reads: ClassVar[tuple[str, ...]] = ("image", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [column("topic", pa.string(), "", "topic"), column("topic_score", pa.float32(), "", "fit")]
    )
    version: ClassVar[int] = 1

    def __call__(self, batch: pa.Table) -> pa.Table:
        seen = [p if p is None else p.reshape(-1)[:2].astype(int) for p in pictures_of(batch)]
        topics = [None if s is None else f"topic {s[0]}" for s in seen]
        scores = [None if s is None else (s[1] - 100) / 100 for s in seen]
        batch = batch.append_column(self.writes.field(0), pa.array(topics, pa.string()))
        return batch.append_column(self.writes.field(1), pa.array(scores, pa.float32()))


def saying(topic: int, score: float) -> Pixels:
    return np.array([[[topic, round(score * 100) + 100, 0]]], np.uint8)


@pytest.mark.parametrize(
    ("frames", "topic", "score"),
    [
        ([(1, 0.9), (2, 0.5), (2, 0.6)], 2, 0.55),  # 1.1 in all against 0.9
        ([(1, 0.9), (2, 0.3), (2, 0.4)], 1, 0.9),
        ([(1, 0.5), (2, 0.5)], 1, 0.5),  # as good: the earlier
        ([(1, -0.2), (2, -0.1), (2, -0.3)], 2, -0.2),  # below nothing: the more frequent
    ],
)
def test_a_topic_is_that_of_the_greatest_total(
    frames: list[tuple[int, float]], topic: int, score: float
) -> None:
    done = FrameScores(Named())(table([clip(*(saying(*frame) for frame in frames))]))
    assert done["topic"].to_pylist() == [f"topic {topic}"]
    assert done["topic_score"].to_pylist() == [pytest.approx(score)]


def test_topics_of_photographs(pictures: list[Pixels]) -> None:
    scorer = FrameScores(Topics())
    each = of_pictures(Topics(), pictures)
    same = scorer(table([clip(pictures[1], pictures[1])])).to_pylist()[0]
    assert same["topic"] == each[1]["topic"]
    assert same["topic_score"] == each[1]["topic_score"]


def test_given_scores_are_taken_and_nothing_computed_for_them(pictures: list[Pixels]) -> None:
    clips = [clip(pictures[0]), clip(pictures[1]), clip(pictures[2]), None]
    metadata = ['{"clarity_score": 0.25}', '{"clarity_score": "bad"}', None, "{}"]
    done = FrameScores(Clarity(), given="clarity_score")(table(clips, metadata))
    each = [frame["clarity"] for frame in of_pictures(Clarity(), pictures)]
    assert done["clarity"].to_pylist() == [0.25, each[1], each[2], None]
    assert FrameScores(Clarity(), given="x").reads == ("frames", "metadata", "error")

    @dataclass(frozen=True)
    class Counting(Clarity):
        def __call__(self, batch: pa.Table) -> pa.Table:
            looked.extend(picture is not None for picture in pictures_of(batch))
            return super().__call__(batch)

    looked: list[bool] = []
    FrameScores(Counting(), given="clarity_score")(table(clips, metadata))
    assert looked == [False, True, True]


def test_failed_rows_and_slices(pictures: list[Pixels]) -> None:
    clips = [clip(pictures[0]), clip(*pictures[1:3]), clip(*pictures[3:6]), None]
    errors = pa.array([None, None, LOST, None], ERROR.type)
    batch = table(clips).set_column(1, ERROR, errors)
    whole = FrameScores(Clarity())(batch)["clarity"].to_pylist()
    assert [score is None for score in whole] == [False, False, True, True]
    for start in range(4):
        part = FrameScores(Clarity())(batch.slice(start))["clarity"].to_pylist()
        assert part == whole[start:]
    pieces = pa.concat_tables([batch.slice(0, 1), batch.slice(1, 2), batch.slice(3)])
    assert FrameScores(Clarity())(pieces)["clarity"].to_pylist() == whole
    assert FrameScores(Topics())(batch.slice(0, 0)).num_rows == 0


@dataclass(frozen=True)
class Brightness(ImageFeatures):
    """A tower in the place of a large one: the mean colour."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        means = [None if p is None else p.mean((0, 1), np.float32) for p in pictures_of(batch)]
        return batch.append_column(self.writes.field(0), to_lists(means, pa.float32()))


@dataclass(frozen=True)
class Reddest:
    """Scores by a column of features, as operators on image towers do."""

    writes: ClassVar[pa.Schema] = pa.schema([column("red", pa.float32(), "", "redness")])
    version: ClassVar[int] = 1
    tower: Brightness = Brightness(model="mean")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.tower.column, "error")

    def __call__(self, batch: pa.Table) -> pa.Table:
        assert "image" in batch.column_names
        features = batch[self.tower.column].to_pylist()
        scores = [None if f is None else float(f[0]) for f in features]
        return batch.append_column(self.writes.field(0), pa.array(scores, pa.float32()))


def test_operators_on_a_tower_share_its_features(pictures: list[Pixels]) -> None:
    scorer = FrameScores(Reddest())
    tower = scorer.tower
    assert tower == FrameTower(Brightness(model="mean"))
    assert hash(tower) == hash(FrameScores(Reddest()).tower)
    assert is_transient(tower.column)
    assert scorer.reads == ("frames", tower.column, "error")
    clips = [clip(*pictures[:2]), None, clip(None, pictures[2]), clip()]
    for batch in (table(clips), pa.concat_tables([table(clips[:1]), table(clips[1:])])):
        seen = tower(batch)
        lengths = [None if f is None else len(f) for f in seen[tower.column].to_pylist()]
        assert lengths == [2, 0, 2, 0]
        reds = [float(p[..., 0].mean()) for p in pictures[:3]]
        expected = [pytest.approx((reds[0] + reds[1]) / 2), None, pytest.approx(reds[2]), None]
        assert scorer(seen)["red"].to_pylist() == expected


def test_the_operator_is_part_of_what_it_is() -> None:
    clear = describe(FrameScores(Clarity()))
    assert clear["operator"] == describe(Clarity())
    assert describe(FrameScores(Clarity(short_side=256))) != clear
    assert describe(FrameScores(Aesthetics()))["operator"]["identity"]
    assert pickle.loads(pickle.dumps(FrameScores(Clarity(), "key"))) == FrameScores(
        Clarity(), "key"
    )


def test_operators_that_cannot_be_run_are_told() -> None:
    similarity = CaptionSimilarity(model="ViT-B-32", of="caption")
    with pytest.raises(ValueError, match="CaptionSimilarity reads `caption`"):
        FrameScores(similarity)
    with pytest.raises(ValueError, match="Topics writes topic, topic_score: `given`"):
        FrameScores(Topics(), given="topic")
    with pytest.raises(ValueError, match="PerceptualHash writes phash: `given`"):
        FrameScores(PerceptualHash(), given="hash")
    with pytest.raises(ValueError, match="given is empty"):
        FrameScores(Clarity(), given="")
