"""Real loading of CLIP and SigLIP models, on tiny random ones, and the operators that use them."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.pixels import Pixels, decode, to_struct
from infra.schema import ERROR
from operators import open_clip_model
from operators.aesthetics import Aesthetics
from operators.image_features import ImageFeatures
from operators.topics import OTHER, TOPICS, Topics


def save_tiny(folder: Path, **config: Any) -> str:
    """A random two-tower model in open_clip's folder format; returns its name."""
    torch.manual_seed(0)
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
        **config,
    }
    folder.mkdir()
    model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    told = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(told)
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("models") / "siglip", init_logit_bias=-10.0)


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Pixels | None]:
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "china.jpg"]
    return [decode((photos / name).read_bytes(), 512).rgb for name in names]


def table(pictures: list[Pixels | None]) -> pa.Table:
    return pa.table({"image": to_struct(pictures), "error": pa.nulls(len(pictures), ERROR.type)})


def test_towers_give_unit_features(clip: str, pictures: list[Pixels | None]) -> None:
    model = open_clip_model.load(clip, "")
    image = model.prepare(pictures[0])  # type: ignore[arg-type]
    assert image.shape == (3, 32, 32)
    assert image.min() >= -1
    with torch.inference_mode():
        for features in (
            model.encode_images(image[None]),
            model.encode_tokens(model.tokenize(["a cat", "a dog"])),
            model.prompt_features([("a cat", "two cats"), ("a dog",)]),
        ):
            assert features.shape[1] == 24
            torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))


def test_probabilities_follow_the_models_loss(clip: str, siglip: str) -> None:
    cosines = torch.tensor([[0.3, 0.1], [-0.2, 0.2]])
    shared = open_clip_model.load(clip, "").probabilities(cosines)
    scale = np.log(1 / 0.07)
    torch.testing.assert_close(shared, (cosines * np.exp(scale)).softmax(-1))
    own = open_clip_model.load(siglip, "").probabilities(cosines)
    torch.testing.assert_close(own, (cosines * np.exp(scale) - 10).sigmoid())


def test_a_model_is_loaded_once_and_again_when_its_files_change(clip: str, tmp_path: Path) -> None:
    first = open_clip_model.load(clip, "")
    assert open_clip_model.load(clip, "") is first
    assert open_clip_model.load(clip, "", precision="bf16") is not first
    folder = tmp_path / "copy"
    shutil.copytree(clip.removeprefix("local-dir:"), folder)
    copy = open_clip_model.load(f"local-dir:{folder}", "")
    weights = folder / "open_clip_model.safetensors"
    save_file({n: t + 1 for n, t in load_file(weights).items()}, weights)
    assert open_clip_model.load(f"local-dir:{folder}", "") is not copy


def test_half_precision_is_near(clip: str, pictures: list[Pixels | None]) -> None:
    full = open_clip_model.load(clip, "")
    half = open_clip_model.load(clip, "", precision="bf16")
    image = full.prepare(pictures[0])[None]  # type: ignore[arg-type]
    with torch.inference_mode():
        features = half.encode_images(image)
        assert features.dtype == torch.float32
        assert (features * full.encode_images(image)).sum() > 0.99
        texts = half.encode_tokens(half.tokenize(["a cat"]))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(1))
    assert half.probabilities(features @ texts.T).dtype == torch.float32


def test_identity_is_of_the_files(clip: str, siglip: str, tmp_path: Path) -> None:
    names = {open_clip_model.identity(clip, ""), open_clip_model.identity(siglip, "")}
    assert len(names) == 2
    assert open_clip_model.identity(clip, "") in names
    assert open_clip_model.identity("hf-hub:timm/some-model", "") == "hf-hub:timm/some-model"
    assert open_clip_model.identity("ViT-B-32", "openai") == "ViT-B-32:openai"
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"1")
    first = open_clip_model.identity("ViT-B-32", str(weights))
    weights.write_bytes(b"2")
    assert first != open_clip_model.identity("ViT-B-32", str(weights))


@pytest.mark.parametrize(
    ("model", "pretrained", "told"),
    [
        ("ViT-Z-99", "openai", "open_clip knows no model 'ViT-Z-99'"),
        ("ViT-B-32", "", "neither a file nor a tag of ViT-B-32: choose one of openai"),
        ("ViT-B-32", "nonsense", "pretrained 'nonsense' is neither a file nor a tag"),
        ("local-dir:/nowhere", "", "/nowhere holds no open_clip_config.json"),
    ],
)
def test_models_that_cannot_be_found(model: str, pretrained: str, told: str) -> None:
    for use in (open_clip_model.identity, open_clip_model.load):
        with pytest.raises(ValueError, match=told):
            use(model, pretrained)


def encoded(operator: Aesthetics | Topics, pictures: list[Pixels | None]) -> pa.Table:
    """The pictures with the features that the operator reads."""
    assert isinstance(operator.tower, ImageFeatures)
    return operator.tower(table(pictures))


def test_topics_of_clip_share_out_one(clip: str, pictures: list[Pixels | None]) -> None:
    names = ("a cat", "a cup of coffee", "vehicle")
    operator = Topics("open_clip", names, model=clip, batch_rows=3)
    batch = operator(encoded(operator, pictures))
    assert set(batch["topic"].to_pylist()) <= set(names)
    assert all(1 / 3 <= score <= 1 for score in batch["topic_score"].to_pylist())
    known = Topics("open_clip", model=clip, batch_rows=3)
    assert set(known(encoded(known, pictures))["topic"].to_pylist()) <= set(TOPICS)
    strict = Topics("open_clip", names, model=clip, batch_rows=3, floor=0.9)
    assert strict(encoded(strict, pictures))["topic"].to_pylist() == [OTHER] * 5


def test_topics_of_siglip_have_their_own_level(siglip: str, pictures: list[Pixels | None]) -> None:
    operator = Topics("open_clip", ("a cat", "a car"), model=siglip, batch_rows=3, floor=0.5)
    batch = operator(encoded(operator, pictures))
    assert batch["topic"].to_pylist() == [OTHER] * 5  # a random model is never sure
    assert all(0 < score < 0.5 for score in batch["topic_score"].to_pylist())
    low = Topics("open_clip", ("a cat", "a car"), model=siglip, batch_rows=3)
    assert set(low(encoded(low, pictures))["topic"].to_pylist()) <= {"a cat", "a car"}


def test_a_topic_scores_as_its_best_prompt(siglip: str, pictures: list[Pixels | None]) -> None:
    prompts = {"sky": ("sky", "clouds"), "animal": ("dog", "bird", "cat")}
    templates = ("a photo of {}.", "{}")
    operator = Topics("open_clip", model=siglip, prompts=prompts, templates=templates, batch_rows=3)
    batch = operator(encoded(operator, pictures))
    model = open_clip_model.load(siglip, "")
    images = torch.stack([model.prepare(picture) for picture in pictures if picture is not None])
    with torch.inference_mode():
        features = model.encode_images(images)
        scores = {}
        for topic, texts in prompts.items():
            best = torch.zeros(len(images))
            for text in texts:
                wordings = [template.format(text) for template in templates]
                mean = model.encode_tokens(model.tokenize(wordings)).mean(0)
                cosines = features @ (mean / mean.norm())
                logits = cosines * model.model.logit_scale.exp() + model.model.logit_bias
                best = torch.maximum(best, logits.sigmoid())
            scores[topic] = best
    expected = torch.stack([*scores.values()])
    assert batch["topic"].to_pylist() == [[*prompts][i] for i in expected.argmax(0)]
    assert batch["topic_score"].to_pylist() == pytest.approx(expected.amax(0).tolist(), rel=1e-4)


def test_prompts_of_ones_own_beside_known_topics(clip: str, pictures: list[Pixels | None]) -> None:
    prompts = {"animal": ("cat",), "sky": ("sky", "clouds")}
    named = Topics("open_clip", ("sky", "food"), model=clip, prompts=prompts, batch_rows=3)
    assert set(named(encoded(named, pictures))["topic"].to_pylist()) <= {"sky", "food"}
    own = Topics("open_clip", model=clip, prompts=prompts, batch_rows=3)
    assert set(own(encoded(own, pictures))["topic"].to_pylist()) <= {"sky", "animal"}


def test_rows_do_not_depend_on_their_batch(clip: str, pictures: list[Pixels | None]) -> None:
    operator = Topics("open_clip", ("a cat", "a car"), model=clip, batch_rows=3)
    together = operator(encoded(operator, pictures))
    for i, picture in enumerate(pictures):
        assert operator(encoded(operator, [picture])).equals(together.slice(i, 1))
    copy = pickle.loads(pickle.dumps(operator))
    assert copy == operator
    assert copy(encoded(copy, pictures)).equals(together)
    assert len(pickle.dumps(operator)) < 1000


@pytest.mark.parametrize("kind", ["linear", "layers"])
def test_a_laion_head_on_a_tower(
    clip: str, pictures: list[Pixels | None], tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(1)
    head = torch.nn.Sequential(torch.nn.Linear(24, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1))
    if kind == "linear":
        network: torch.nn.Module = torch.nn.Linear(24, 1)
        tensors = network.state_dict()
    else:
        network = head.eval()
        tensors = {f"layers.{name}": tensor for name, tensor in head.state_dict().items()}
    torch.save(tensors, tmp_path / "head.pth")
    operator = Aesthetics("open_clip", model=clip, head=str(tmp_path / "head.pth"), batch_rows=3)
    batch = operator(encoded(operator, [*pictures, None]))
    assert batch["aesthetic"].to_pylist()[-1] is None
    model = open_clip_model.load(clip, "")
    images = torch.stack([model.prepare(picture) for picture in pictures if picture is not None])
    with torch.inference_mode():
        expected = network(model.encode_images(images))[:, 0].tolist()
    assert batch["aesthetic"].to_pylist()[:-1] == pytest.approx(expected, abs=1e-5)
    assert operator(encoded(operator, pictures[2:3]))["aesthetic"][0] == batch["aesthetic"][2]
    before = operator.identity
    tensors = {name: tensor + 1 for name, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "head.pth")
    assert operator.identity != before


def test_a_head_of_another_tower_is_told(
    clip: str, pictures: list[Pixels | None], assets: Path
) -> None:
    head = str(assets / "weights/laion_sa_0_4_vit_b_32_linear.pth")
    operator = Aesthetics("open_clip", model=clip, head=head)
    with pytest.raises(ValueError, match=r"takes 512 features, .* gives 24"):
        operator(encoded(operator, pictures))
