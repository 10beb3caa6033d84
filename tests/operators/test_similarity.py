"""Captions against pictures, with a tiny random CLIP model."""

import json
import pickle
from pathlib import Path

import open_clip
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from infra.pixels import Pixels, decode, to_struct
from infra.schema import ERROR
from operators import open_clip_model
from operators.image_features import ImageFeatures
from operators.similarity import CaptionSimilarity

CAPTIONS = ["an astronaut", "a cat", "a cup of coffee", "a very " + "long " * 40 + "caption"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    weights = open_clip.CLIP(**config).state_dict()
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Pixels | None]:
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
    return [decode((photos / name).read_bytes(), 512).rgb for name in names]


def rows(
    operator: CaptionSimilarity, pictures: list[Pixels | None], captions: list[str | None]
) -> pa.Table:
    """The rows with the features that the operator reads."""
    columns = {
        "image": to_struct(pictures),
        "caption": pa.array(captions, pa.string()),
        "error": pa.nulls(len(pictures), ERROR.type),
    }
    return operator.tower(pa.table(columns))


def test_scores_are_cosines(model: str, pictures: list[Pixels | None]) -> None:
    operator = CaptionSimilarity(model, batch_rows=3)
    batch = operator(rows(operator, pictures, [*CAPTIONS]))
    assert batch.schema.field("caption_similarity").equals(
        CaptionSimilarity(model).writes[0], check_metadata=True
    )
    clip = open_clip_model.load(model, "")
    images = torch.stack([clip.prepare(picture) for picture in pictures if picture is not None])
    with torch.inference_mode():
        texts = clip.encode_tokens(clip.tokenize(CAPTIONS))
        expected = (clip.encode_images(images) * texts).sum(-1).tolist()
    assert batch["caption_similarity"].to_pylist() == pytest.approx(expected, abs=1e-5)


def test_a_row_does_not_depend_on_its_batch(model: str, pictures: list[Pixels | None]) -> None:
    operator = CaptionSimilarity(model, batch_rows=3)
    together = operator(rows(operator, pictures, [*CAPTIONS]))["caption_similarity"].to_pylist()
    for picture, caption, score in zip(pictures, CAPTIONS, together, strict=True):
        alone = operator(rows(operator, [picture], [caption]))["caption_similarity"].to_pylist()
        assert alone == [score]


def test_rows_without_picture_or_caption_stay_empty(
    model: str, pictures: list[Pixels | None]
) -> None:
    operator = CaptionSimilarity(model, batch_rows=3)
    batch = operator(
        rows(operator, [pictures[0], None, *pictures[1:3]], ["a cat", "a dog", None, ""])
    )
    assert batch["caption_similarity"].is_valid().to_pylist() == [True, False, False, False]
    assert batch["error"].null_count == 4
    failed = {"stage": "probe", "type": "empty", "message": ""}
    given = rows(operator, pictures[:1], ["a cat"])
    given = given.set_column(2, ERROR, pa.array([failed], ERROR.type))
    assert operator(given)["caption_similarity"].to_pylist() == [None]


def test_nothing_to_do_loads_nothing(model: str) -> None:
    operator = CaptionSimilarity(model)
    assert operator(rows(operator, [], []))["caption_similarity"].type == pa.float32()
    assert operator(rows(operator, [None], ["a cat"]))["caption_similarity"].to_pylist() == [None]
    assert "_open_clip" not in vars(operator)


def test_pickles_without_its_weights(model: str, pictures: list[Pixels | None]) -> None:
    operator = CaptionSimilarity(model, batch_rows=3)
    given = rows(operator, pictures, [*CAPTIONS])
    before = operator(given)
    data = pickle.dumps(operator)
    assert len(data) < 1000
    assert pickle.loads(data) == operator
    assert pickle.loads(data)(given).equals(before)


def test_reads_the_features_of_its_tower(model: str) -> None:
    operator = CaptionSimilarity(model, batch_rows=3)
    assert operator.tower == ImageFeatures(model, batch_rows=3)
    assert operator.reads == (operator.tower.column, "caption", "error")


def test_identity_and_mistakes(model: str) -> None:
    assert CaptionSimilarity(model).identity == open_clip_model.identity(model, "")
    with pytest.raises(ValueError, match="`model` is empty"):
        CaptionSimilarity("")
    with pytest.raises(ValueError, match="batch_rows is 0"):
        CaptionSimilarity(model, batch_rows=0)
    with pytest.raises(ValueError, match="open_clip knows no model"):
        _ = CaptionSimilarity("CLAP").identity


def test_the_text_that_was_made_is_scored_on_the_same_scale(
    model: str, pictures: list[Pixels | None]
) -> None:
    given = rows(CaptionSimilarity(model), pictures, CAPTIONS)
    made = given.rename_columns([{"caption": "text"}.get(n, n) for n in given.column_names])
    before, after = CaptionSimilarity(model), CaptionSimilarity(model, of="text")
    assert after.writes.names == ["text_similarity"]
    scores = before(given)["caption_similarity"].to_pylist()
    assert after(made)["text_similarity"].to_pylist() == scores
    with pytest.raises(ValueError, match="of is 'title'"):
        CaptionSimilarity(model, of="title")  # type: ignore[arg-type]
