"""Embeddings of real photographs and their altered copies."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from infra.catalog import connect
from infra.pixels import Pixels, decode, to_struct
from infra.schema import ERROR
from infra.storage import Storage
from operators import open_clip_model
from operators.image_embedding import ImageEmbedding


def smaller(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width // 2, picture.height // 2))


def cut(picture: Image.Image) -> Image.Image:
    return picture.crop((0, 0, round(picture.width * 0.85), round(picture.height * 0.85)))


def again(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=30)
    return Image.open(buffer)


ALTERED: tuple[Callable[[Image.Image], Image.Image], ...] = (
    smaller,
    cut,
    again,
    ImageOps.mirror,
    lambda picture: ImageEnhance.Color(picture).enhance(0.5),
)


def table(pictures: list[Pixels | None]) -> pa.Table:
    return pa.table({"image": to_struct(pictures), "error": pa.nulls(len(pictures), ERROR.type)})


def matrix(batch: pa.Table) -> NDArray[np.float32]:
    return np.array(batch["embedding"].to_pylist(), np.float32)


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Pixels | None]:
    return [decode(path.read_bytes(), 512).rgb for path in sorted(photos.glob("*.[pj][np]g"))]


@pytest.fixture(scope="module")
def carried() -> ImageEmbedding:
    return ImageEmbedding(batch_rows=4)


def test_copies_are_near_and_photographs_are_not(
    carried: ImageEmbedding, pictures: list[Pixels | None]
) -> None:
    originals = matrix(carried(table(pictures)))
    assert originals.shape == (8, 1280)
    between = originals @ originals.T
    assert between[~np.eye(8, dtype=bool)].max() < 0.75
    for alter in ALTERED:
        copies: list[Pixels | None] = [
            np.asarray(alter(Image.fromarray(rgb)).convert("RGB"))
            for rgb in pictures
            if rgb is not None
        ]
        cosines = (matrix(carried(table(copies))) * originals).sum(1)
        assert (cosines > 0.85).mean() >= 0.875, (alter, cosines)


def test_a_row_does_not_depend_on_its_batch(
    carried: ImageEmbedding, pictures: list[Pixels | None]
) -> None:
    together = carried(table(pictures))["embedding"]
    for i in (0, 5, 7):
        assert carried(table([pictures[i]]))["embedding"][0] == together[i]


def test_failed_rows_and_nothing_to_do(pictures: list[Pixels | None]) -> None:
    operator = ImageEmbedding(batch_rows=4)
    assert operator(table([]))["embedding"].type == pa.list_(pa.float16())
    assert operator(table([None]))["embedding"].null_count == 1
    assert "_network" not in vars(operator)
    failed = {"stage": "probe", "type": "empty", "message": ""}
    rows = table([None, pictures[0], pictures[1]])
    batch = operator(rows.set_column(1, ERROR, pa.array([None, failed, None], ERROR.type)))
    assert batch["embedding"].is_valid().to_pylist() == [False, False, True]
    assert batch.schema.field("embedding").equals(ImageEmbedding.writes[0], check_metadata=True)


def test_a_black_picture_has_a_finite_embedding(carried: ImageEmbedding) -> None:
    flat: list[Pixels | None] = [np.zeros((9, 300, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)]
    assert np.isfinite(matrix(carried(table(flat)))).all()


def test_the_store_and_duckdb_read_half_precision(
    carried: ImageEmbedding, pictures: list[Pixels | None], tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))
    batch = carried(table([pictures[0], None]))
    rows = batch.select(["embedding"]).append_column("sample_id", pa.array(["a", "b"]))
    storage.write_part("part.parquet", rows, rows.schema, "sample_id")
    with connect(storage, views=False) as con:
        found = con.sql(
            f"SELECT len(embedding), list_sum(list_transform(embedding, lambda x: x * x)) "
            f"FROM read_parquet('{storage.path('part.parquet')}') ORDER BY sample_id"
        ).fetchall()
    assert found[0] == (1280, pytest.approx(1, abs=2e-3))
    assert found[1] == (None, None)
    read = pq.read_table(tmp_path / "part.parquet")
    assert read["embedding"].type.value_type == pa.float16()


def test_pickles_without_its_weights(
    carried: ImageEmbedding, pictures: list[Pixels | None]
) -> None:
    before = carried(table(pictures[:1]))
    data = pickle.dumps(carried)
    assert len(data) < 1000
    assert pickle.loads(data) == carried
    assert pickle.loads(data)(table(pictures[:1])).equals(before)


def test_identity_and_mistakes() -> None:
    assert len(ImageEmbedding().identity) == 64
    named = ImageEmbedding("open_clip", "ViT-B-32", "openai")
    assert named.identity == open_clip_model.identity("ViT-B-32", "openai")
    with pytest.raises(ValueError, match="backend is 'dino': choose carried or open_clip"):
        ImageEmbedding("dino")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`model` is empty"):
        ImageEmbedding("open_clip")
    with pytest.raises(ValueError, match="batch_rows is 0"):
        ImageEmbedding(batch_rows=0)
