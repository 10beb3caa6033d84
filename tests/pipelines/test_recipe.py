from pathlib import Path

import pytest
import yaml

from infra import config
from infra.config import ConfigError, build
from pipelines import curate_clips, curate_images, curate_interleaved, curate_texts
from pipelines.mixture import Mixture
from pipelines.recipe import Recipe, recipe_path
from trainer.config import ModelConfig, TrainConfig

ROOT = Path(__file__).parents[2]
SMALLEST = {
    "dataset": "d",
    "workspace": "w",
    "sources": [{"name": "s", "kind": "folder", "path": "p"}],
}
STAGES = {"alignment": 1e-3, "pretrain_256": 1e-4, "pretrain_512": 1e-4, "pretrain_1024": 1e-4,
          "ct": 5e-5, "sft": 1e-5}  # fmt: skip
TEXTS = [{"name": "t", "kind": "jsonl", "path": "p"}]


def test_our_recipes_are_found_by_name():
    assert recipe_path("demo").exists()
    assert recipe_path("some/own.yaml") == Path("some/own.yaml")


def test_our_recipes_of_clips_and_pages_are_right():
    checks = {
        "clips": curate_clips,
        "demo_clips": curate_clips,
        "web_documents": curate_interleaved,
    }
    for name, pipeline in checks.items():
        pipeline.check_rules(config.load(Recipe, recipe_path(name)))


def test_the_readmes_recipes_are_recipes():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    kinds = (Recipe, Recipe, Recipe, Mixture, TrainConfig)
    blocks = (block.split("```")[0] for block in readme.split("```yaml\n")[1:])
    pictures, texts, clips, mixture, run = (
        build(kind, yaml.load(block, config._Loader))
        for kind, block in zip(kinds, blocks, strict=True)
    )
    curate_images.check_rules(pictures)
    curate_texts.check_rules(texts)
    curate_clips.check_rules(clips)
    assert texts.holds_texts
    assert not pictures.holds_texts
    assert mixture.num_tokens == 2_000_000_000
    assert run.model.head_dim == 128


def test_the_stages_of_table_2_follow_each_other():
    before = "Qwen/Qwen2.5-VL-7B-Instruct"
    for stage, rate in STAGES.items():
        run = config.load(TrainConfig, recipe_path(f"train_{stage}"))
        mixture = config.load(Mixture, recipe_path(f"mixture_{stage}"))
        assert run.packs == f"{mixture.workspace}/packs/{mixture.name}"
        assert run.learning_rate == rate
        assert run.initialise_from == before
        assert run.trainable == ("new" if stage == "alignment" else "all")
        assert run.scale_alpha == (0.0 if stage in ("alignment", "pretrain_256") else 0.9)
        assert run.model == ModelConfig(3584, 18944, 28, 28, 4, 128, (16, 24, 24), 1e6)
        before = f"model/{stage}"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dataset": "a/b"}, "dataset 'a/b'"),
        ({"sources": []}, "sources is empty"),
        ({"sources": SMALLEST["sources"] * 2}, "`s` stands twice"),
        ({"documents": {"level": 300}}, "level is 300"),
        ({"tokenize": {"operator": {"level": 512}}}, "raise documents.level"),
        ({"pack": {"cost_model": "trained"}}, "add a `train` section"),
        ({"cheap": {"pool": {"workers": 0}}}, "workers is 0"),
        ({"text": {"loss_on": "responses"}}, "`text` is for texts"),
        ({"sources": TEXTS, "ocr": {}}, "`ocr` is for pictures"),
        ({"sources": TEXTS, "documents": {"level": 512}}, "`documents` is for pictures"),
        ({"sources": [*TEXTS, *SMALLEST["sources"]]}, "pictures and texts"),
        ({"duplicates": {"semantic": {}}}, "add `embeddings: {}`"),
        ({"models": {"similarity": {"model": "x", "of": "text"}}}, "captions.similarity"),
    ],
)
def test_what_cannot_be_is_told(more, message):
    with pytest.raises(ConfigError, match=message):
        build(Recipe, SMALLEST | more)


NOISELESS = {"rate": 0.0, "condition_rate": 0.0}


@pytest.mark.parametrize(
    ("documents", "operator", "message"),
    [
        ({}, {}, ""),
        ({}, {"rate": 0.0}, r"tokenize\.operator\.rate is 0,"),
        ({}, {"rate": 0.0, "condition_rate": 0.5}, r"operator\.rate is 0,"),
        ({}, {"top_k": 1}, r"operator\.top_k is 1,"),
        ({"task": "i2t"}, {}, r"operator\.condition_rate is 0,"),
        ({"task": "i2t"}, {"rate": 0.0, "condition_rate": 0.5}, ""),
        ({"inversion": 1.0}, {}, r"operator\.condition_rate is 0,"),
        ({"inversion": 0.1}, {}, ""),
        ({"inversion": 0.1}, {"rate": 0.0, "condition_rate": 0.5}, ""),
        ({"inversion": 0.1}, NOISELESS, r"operator\.rate is 0 and .*condition_rate is 0,"),
    ],
)
def test_replicas_without_noise_are_refused(documents, operator, message):
    more = {"documents": documents, "tokenize": {"operator": operator, "replicas": 2}}
    if message:
        with pytest.raises(ConfigError, match=f"replicas is 2, but .*{message}") as error:
            build(Recipe, SMALLEST | more)
        assert "\n" not in str(error.value)
        more["tokenize"]["replicas"] = 1
    build(Recipe, SMALLEST | more)


def test_curating_asks_for_no_workers_of_later_phases():
    recipe = build(Recipe, SMALLEST | {"tokenize": {"pool": {"workers": 9}}})
    assert recipe.pools()["tokenize"].workers == 9
    assert "tokenize" not in recipe.pools(curate_only=True)
