from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import config, runs
from infra.config import ConfigError
from infra.pixels import encode_jpeg
from infra.runs import Part, TableRecord
from infra.storage import Storage
from tokenize_offline.oversampling import Oversample, weigh
from tokenize_offline.photographs import open_pictures, split

NAMES = pa.chunked_array([["a", "b"], ["c", "d", "it's; --"]], pa.large_string())
SCORES = pa.table(
    {
        "sample_id": ["d", "b", "other", "a", "b", None, "it's; --"],
        "faces": [0, 2, 9, None, 0, 5, 3],
        "text_area": [0.5, 0.0, 0.9, 0.2, 0.0, 1.0, 0.0],
        "number": [1, 2, 3, 4, 5, 6, 7],
    }
)


@pytest.fixture
def scores(tmp_path: Path) -> str:
    pq.write_table(SCORES, tmp_path / "scores.parquet")
    return str(tmp_path / "scores.parquet")


@pytest.mark.parametrize(
    ("where", "weights"),
    [
        ("faces > 0", [1, 3, 1, 1, 3]),  # one of the two rows of b is enough; null does not fit
        ("text_area >= 0.2", [3, 1, 1, 3, 1]),
        ("faces > 0 AND text_area > 0.1 OR number = 4 -- a comment", [3, 1, 1, 1, 1]),
        ("sample_id LIKE 'it''s%'", [1, 1, 1, 1, 3]),
    ],
)
def test_pictures_that_fit_weigh_more(scores: str, where: str, weights: list[float]) -> None:
    assert weigh(NAMES, [Oversample(table=scores, where=where, factor=3)]).tolist() == weights


def test_factors_multiply(scores: str) -> None:
    faces = Oversample(table=scores, where="faces > 0", factor=4)
    text = Oversample(table=scores, where="number >= 5", factor=0.5)
    assert weigh(NAMES, [faces, text]).tolist() == [1, 2, 1, 1, 2]
    assert weigh(NAMES, []).tolist() == [1] * 5


@pytest.mark.parametrize("place", ["local", "s3"])
def test_tables_of_a_workspace_and_patterns(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path) if place == "local" else request.getfixturevalue("s3") + "/deep"
    storage = Storage(root)
    schema = SCORES.schema
    for number, part in enumerate((SCORES.slice(1, 1), SCORES.slice(3, 1))):
        file = f"scores/photos/ocr/v-1/part-{number:05d}.parquet"
        storage.write_part(file, part, schema, "sample_id")
    parts = tuple(Part(f"v-1/part-{n:05d}.parquet", 1) for n in range(2))
    record = TableRecord("scores/photos/ocr", "f", "r", "sample_id", parts)
    runs.save_record(storage, record)
    storage.write_part(
        "scores/photos/ocr/v-1/part-00009.parquet", SCORES.slice(0, 1), schema, "sample_id"
    )
    table = Oversample(table=storage.path("scores/photos/ocr"), where="true", factor=2)
    assert weigh(NAMES, [table]).tolist() == [2, 2, 1, 1, 1]  # what its record lists, no more
    for pattern in ("scores/*/ocr/v-?/part-*.parquet", "scores/photos/ocr/v-1/*.parquet"):
        files = Oversample(table=storage.path(pattern), where="true", factor=2)
        assert weigh(NAMES, [files]).tolist() == [2, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"where": "nose > 0"}, r"where `nose > 0`: Binder Error: .*nose"),
        ({"where": "faces >"}, "where `faces >`: Parser Error"),
        ({"where": "faces > 100"}, "where `faces > 100` fits no picture: .* such as a$"),
        ({"where": "text_area::DATE > '2020-01-01'"}, r"where `text_area::DATE .*` *: "),
        ({"key": "file"}, "the key column file does not exist: .* faces, number, sample_id, text"),
        ({"key": "number"}, "the key column number is BIGINT, no text"),
        ({"table": "nowhere/x.parquet"}, "nowhere/x.parquet cannot be read: "),
        ({"table": "nowhere/*.parquet"}, r"nowhere/\*.parquet cannot be read: "),
        ({"table": "workspace/scores/none"}, "scores/none is no finished table: give one"),
    ],
)
def test_mistakes_are_one_line(scores: str, change: dict[str, Any], message: str) -> None:
    entry: dict[str, Any] = {"table": scores, "where": "faces > 0", "factor": 2} | change
    with pytest.raises(ConfigError, match=message) as caught:
        weigh(NAMES, [Oversample(**entry)])
    assert "\n" not in str(caught.value)
    assert "oversample: " in str(caught.value)


def test_a_condition_reads_no_other_files(scores: str, tmp_path: Path) -> None:
    outside = tmp_path.parent / "outside.csv"
    outside.write_text("x\n1\n")
    where = f"faces > (SELECT max(x) FROM read_csv('{outside}'))"
    with pytest.raises(ConfigError, match="Permission Error"):
        weigh(NAMES, [Oversample(table=scores, where=where, factor=2)])


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_factors_are_refused(factor: float) -> None:
    tree = {"table": "x.parquet", "where": "true", "factor": factor}
    with pytest.raises(ConfigError, match=r"`oversample`: factor is .*: use a number above 0"):
        config.build(Oversample, tree, "oversample")
    with pytest.raises(ConfigError, match="where is empty"):
        config.build(Oversample, tree | {"factor": 2, "where": " "}, "oversample")


def test_oversampled_files_are_drawn_more_often(tmp_path: Path) -> None:
    for number in range(4):
        rgb = np.full((8, 8, 3), number, np.uint8)
        (tmp_path / f"{number}.png").write_bytes(encode_jpeg(rgb))
    pq.write_table(pa.table({"file": ["2.png"], "faces": [1]}), tmp_path / "faces.parquet")
    entry = Oversample(table=f"{tmp_path}/faces.parquet", where="faces > 0", factor=3, key="file")
    pictures = open_pictures([tmp_path], short_side=8, oversample=[entry])
    assert pictures.weights.tolist() == [1, 1, 3, 1]
    rng = np.random.default_rng(0)
    names = [pictures.draw(rng).name for _ in range(3_000)]
    counts = np.array([names.count(f"{n}.png") for n in range(4)])
    expected = np.array([1, 1, 3, 1]) / 6 * 3_000
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # 3 degrees of freedom: 1 in 1,000
    training, _ = split(pictures, "0.png", 0.999, seed=0)
    assert training.weights.tolist() == [1, 3, 1]
