"""One tower for several heads: equal features, shared by name, dropped before storage."""

import json
import pickle
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from infra.pixels import Pixels, decode, to_struct
from infra.schema import ERROR
from operators import open_clip_model
from operators.aesthetics import Aesthetics
from operators.image_embedding import ImageEmbedding
from operators.image_features import ImageFeatures, features_of
from operators.similarity import CaptionSimilarity
from operators.topics import Topics
from pipelines.phase import is_transient


def save_siglip(folder: Path, seed: int) -> str:
    """A random tiny model with SigLIP's bias; returns its name."""
    torch.manual_seed(seed)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "init_logit_bias": -10.0}
    folder.mkdir()
    weights = open_clip.CLIP(**config).state_dict()
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_siglip(tmp_path_factory.mktemp("models") / "siglip", 0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_siglip(tmp_path_factory.mktemp("models") / "other", 1)


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Pixels | None]:
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "china.jpg"]
    return [decode((photos / name).read_bytes(), 512).rgb for name in names]


def table(pictures: list[Pixels | None]) -> pa.Table:
    columns = {"image": to_struct(pictures), "error": pa.nulls(len(pictures), ERROR.type)}
    return pa.table(columns | {"caption": pa.array(["a cat"] * len(pictures))})


def test_features_are_those_of_the_tower(model: str, pictures: list[Pixels | None]) -> None:
    tower = ImageFeatures(model, batch_rows=3)
    batch = tower(table(pictures))
    assert batch.schema.field(tower.column).equals(tower.writes[0], check_metadata=True)
    clip = open_clip_model.load(model, "")
    images = torch.stack([clip.prepare(picture) for picture in pictures if picture is not None])
    with torch.inference_mode():
        expected = clip.encode_images(images).numpy()
    found = np.stack([row for row in features_of(batch, tower) if row is not None])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_row_does_not_depend_on_its_batch(model: str, pictures: list[Pixels | None]) -> None:
    tower = ImageFeatures(model, batch_rows=3)
    together = tower(table(pictures))[tower.column]
    for i, picture in enumerate(pictures):
        assert tower(table([picture]))[tower.column][0] == together[i]


def test_failed_rows_stay_empty(model: str, pictures: list[Pixels | None]) -> None:
    failed = {"stage": "probe", "type": "empty", "message": ""}
    errors = pa.array([None, None, failed, None], ERROR.type)
    tower = ImageFeatures(model, batch_rows=3)
    rows = table([pictures[0], None, pictures[1], pictures[2]]).set_column(1, ERROR, errors)
    batch = tower(rows)
    assert batch[tower.column].is_valid().to_pylist() == [True, False, False, True]
    # A row that fails after the tower is skipped by the heads, in slices and chunks as well.
    late = pa.array([None, None, failed, failed], ERROR.type)
    batch = batch.set_column(1, ERROR, late)
    whole = features_of(batch, tower)
    assert [row is not None for row in whole] == [True, False, False, False]
    chunked = pa.concat_tables([batch.slice(1, 2), batch.slice(0, 1)])
    cut = features_of(chunked, tower)
    assert [row is None for row in cut] == [True, True, False]
    np.testing.assert_array_equal(cut[2], whole[0])


def test_nothing_to_do_loads_nothing(model: str) -> None:
    tower = ImageFeatures(model)
    assert tower(table([]))[tower.column].type == pa.list_(pa.float32())
    assert tower(table([None, None]))[tower.column].null_count == 2
    assert "open_clip" not in vars(tower)


def test_heads_with_equal_settings_share_a_tower(model: str, other: str) -> None:
    heads = (
        Aesthetics("open_clip", other, head="head.pth"),
        Topics("open_clip", model=model),
        CaptionSimilarity(model),
        ImageEmbedding("open_clip", model),
        Aesthetics(),
        Topics(),
        ImageEmbedding(),
    )
    towers = dict.fromkeys(head.tower for head in heads if head.tower)
    assert list(towers) == [ImageFeatures(other), ImageFeatures(model)]
    columns = {tower.column for tower in towers}
    assert len(columns) == 2
    assert all(head.reads[0] in columns for head in heads[:4])
    assert all(head.reads == ("image", "error") for head in heads[4:])
    apart = (
        ImageFeatures(model, batch_rows=8),
        ImageFeatures(model, device="cuda"),
        ImageFeatures(model, precision="bf16"),
        ImageFeatures(model, "tag"),
    )
    assert len({tower.column for tower in apart} - columns) == 4


def test_the_column_lives_inside_a_phase_only(model: str) -> None:
    assert is_transient(ImageFeatures(model).column)
    for head in (Aesthetics(), Topics(), CaptionSimilarity(model), ImageEmbedding()):
        assert not any(is_transient(name) for name in head.writes.names)


def test_heads_and_tower_hold_one_model(model: str, pictures: list[Pixels | None]) -> None:
    topics = Topics("open_clip", ("a cat", "a car"), model=model, batch_rows=3)
    similarity = CaptionSimilarity(model, batch_rows=3)
    assert topics.tower == similarity.tower
    rows = similarity.tower(table(pictures))
    scored = similarity(topics(rows))
    assert scored["topic"].null_count == scored["caption_similarity"].null_count == 0
    assert topics._open_clip[0] is similarity._open_clip is similarity.tower.open_clip


def test_pickles_without_its_weights(model: str, pictures: list[Pixels | None]) -> None:
    tower = ImageFeatures(model, batch_rows=3)
    before = tower(table(pictures))
    data = pickle.dumps(tower)
    assert len(data) < 1000
    assert pickle.loads(data) == tower
    assert pickle.loads(data)(table(pictures)).equals(before)


def test_identity_and_mistakes(model: str) -> None:
    assert ImageFeatures(model).identity == open_clip_model.identity(model, "")
    with pytest.raises(ValueError, match="`model` is empty"):
        ImageFeatures("")
    with pytest.raises(ValueError, match="batch_rows is 0"):
        ImageFeatures(model, batch_rows=0)
    with pytest.raises(ValueError, match="precision is 'fp8': choose fp32 or bf16"):
        ImageFeatures(model, precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="open_clip knows no model"):
        _ = ImageFeatures("CLAP").identity
