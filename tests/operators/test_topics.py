"""Offline topics of real photographs, and the carried embeddings."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from infra.config import ConfigError, build
from infra.pixels import Pixels, decode, to_struct
from infra.schema import ERROR
from operators.topics import CARRIED, OTHER, TOPICS, Topics

EXPECTED = {
    "chelsea.png": "animal",
    "coffee.png": "food",
    "rocket.jpg": "vehicle",
    "camera.png": "object",
    "china.jpg": "building",
    "flower.jpg": "plant",
}


def table(pictures: list[Pixels | None]) -> pa.Table:
    return pa.table({"image": to_struct(pictures), "error": pa.nulls(len(pictures), ERROR.type)})


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Pixels | None]:
    return [decode((photos / name).read_bytes(), 512).rgb for name in EXPECTED]


@pytest.fixture(scope="module")
def topics() -> Topics:
    return Topics(batch_rows=4)


def test_topics_of_photographs(topics: Topics, pictures: list[Pixels | None]) -> None:
    batch = topics(table(pictures))
    assert batch["topic"].to_pylist() == list(EXPECTED.values())
    assert all(0.2 <= score <= 1 for score in batch["topic_score"].to_pylist())
    for field in Topics.writes:
        assert batch.schema.field(field.name).equals(field, check_metadata=True)


def test_topics_of_the_assets(topics: Topics, assets: Path) -> None:
    """All photographs, the hard ones too, against what a person sees in them."""
    labels = json.loads((Path(__file__).parent / "photograph_topics.json").read_text())
    true = {name: topic for topic, names in labels.items() for name in names}
    files = {path.stem: path for path in (assets / "images").iterdir()}
    assert true.keys() == files.keys()
    rows = [decode(files[name].read_bytes(), 512).rgb for name in true]
    found = dict(zip(true, topics(table(rows))["topic"].to_pylist(), strict=True))
    right = sum(found[name] == topic for name, topic in true.items())
    assert right >= 0.7 * len(true), found


def test_what_the_classifier_does_not_know_is_other(topics: Topics) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    batch = topics(table([noise]))
    assert batch["topic"].to_pylist() == [OTHER]
    assert batch["topic_score"][0].as_py() < 0.2


def test_chosen_topics_and_floor(pictures: list[Pixels | None]) -> None:
    chosen = Topics(topics=("vehicle", "animal"), batch_rows=4, floor=-1.0)
    assert set(chosen(table(pictures))["topic"].to_pylist()) <= {"vehicle", "animal"}
    strict = Topics(floor=1.0, batch_rows=4)(table(pictures))
    assert strict["topic"].to_pylist() == [OTHER] * len(EXPECTED)
    assert strict["topic_score"].null_count == 0


def test_a_row_does_not_depend_on_its_batch(topics: Topics, pictures: list[Pixels | None]) -> None:
    together = topics(table(pictures))
    for i, picture in enumerate(pictures):
        assert (
            topics(table([picture]))
            .select(["topic", "topic_score"])
            .equals(together.slice(i, 1).select(["topic", "topic_score"]))
        )
    backwards = topics(table(pictures[::-1]))["topic_score"].to_pylist()
    assert backwards[::-1] == together["topic_score"].to_pylist()


def test_failed_rows_stay_empty(topics: Topics, pictures: list[Pixels | None]) -> None:
    failed = {"stage": "probe", "type": "empty", "message": ""}
    batch = table([pictures[0], None, pictures[1]])
    batch = topics(batch.set_column(1, ERROR, pa.array([None, None, failed], ERROR.type)))
    assert batch["topic"].is_valid().to_pylist() == [True, False, False]
    assert batch["topic_score"].is_valid().to_pylist() == [True, False, False]


def test_nothing_to_do_loads_nothing() -> None:
    operator = Topics()
    assert operator(table([]))["topic"].type == pa.string()
    assert operator(table([None]))["topic_score"].to_pylist() == [None]
    assert "_conse" not in vars(operator)


def test_pickles_without_its_weights(topics: Topics, pictures: list[Pixels | None]) -> None:
    before = topics(table(pictures[:1]))
    data = pickle.dumps(topics)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy == topics
    assert copy(table(pictures[:1])).equals(before)


def test_carried_embeddings_are_those_of_the_prompts_told() -> None:
    with safe_open(CARRIED, "pt") as file:
        told = json.loads(file.metadata()["topics"])
        labels, topics = file.get_tensor("labels"), file.get_tensor("topics")
    assert told == {topic: list(prompts) for topic, prompts in TOPICS.items()}
    assert list(told) == list(TOPICS)
    assert labels.shape == (1000, 384)
    assert topics.shape == (len(TOPICS), 384)
    for vectors in (labels, topics):
        torch.testing.assert_close(
            vectors.float().norm(dim=-1), torch.ones(len(vectors)), atol=2e-3, rtol=0
        )


def test_embeddings_of_ones_own(tmp_path: Path, pictures: list[Pixels | None]) -> None:
    with safe_open(CARRIED, "pt") as file:
        labels, topics = file.get_tensor("labels"), file.get_tensor("topics")
    own = tmp_path / "own.safetensors"
    save_file(
        {"labels": labels, "topics": topics[[2, 4]]},
        own,
        metadata={"topics": json.dumps({"creature": ["animal"], "meal": ["food"]})},
    )
    operator = Topics(embeddings=str(own), batch_rows=4)
    assert operator(table(pictures[:2]))["topic"].to_pylist() == ["creature", "meal"]
    assert operator.identity != Topics().identity
    assert Topics(batch_rows=2).identity == Topics().identity


def test_what_is_read_depends_on_the_backend() -> None:
    assert Topics().reads == ("image", "error")
    assert Topics().tower is None
    siglip = Topics("open_clip", model="ViT-SO400M-16-SigLIP2-384", pretrained="webli")
    assert siglip.tower is not None
    assert siglip.reads == (siglip.tower.column, "error")


def test_a_recipe_may_name_prompts() -> None:
    tree = {"backend": "open_clip", "model": "ViT-B-32", "prompts": {"sky": ["sky", "clouds"]}}
    assert build(Topics, tree).prompts == {"sky": ("sky", "clouds")}
    with pytest.raises(ConfigError, match=r"`prompts.sky` is 'sky': expected a list"):
        build(Topics, tree | {"prompts": {"sky": "sky"}})


def test_mistakes_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"no embedding of topic cars: known are landscape, .*open_clip"
    ):
        Topics(topics=("animal", "cars"))
    with pytest.raises(ValueError, match="embeddings /no/file does not exist"):
        Topics(embeddings="/no/file")
    with pytest.raises(ValueError, match="backend is 'clip': choose conse or open_clip"):
        Topics(backend="clip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs `model`"):
        Topics(backend="open_clip")
    with pytest.raises(ValueError, match="template 'a photo' has no place"):
        Topics(backend="open_clip", model="ViT-B-32", templates=("a photo",))
    with pytest.raises(ValueError, match="backend conse has no text encoder for `prompts`"):
        Topics(prompts={"sky": ("sky", "clouds")})
    for mistake in ({"sky": ()}, {OTHER: ("something",)}):
        with pytest.raises(ValueError, match=r"prompts of topic '(sky|other)' are"):
            Topics(backend="open_clip", model="ViT-B-32", prompts=mistake)
    with pytest.raises(ValueError, match=r"floor is 2\.0"):
        Topics(floor=2.0)
    with pytest.raises(ValueError, match="batch_rows is 0"):
        Topics(batch_rows=0)
