from pathlib import Path

import pytest
import yaml

from infra.config import ConfigError, build
from pipelines.curate_images import cheap_operators, model_operators, rule_columns, score_schema
from pipelines.recipe import Recipe, recipe_path

ROOT = Path(__file__).parents[2]
SMALLEST = {
    "dataset": "d",
    "workspace": "w",
    "sources": [{"name": "s", "kind": "folder", "path": "p"}],
}


def test_our_recipes_are_found_by_name():
    assert recipe_path("demo").exists()
    assert recipe_path("some/own.yaml") == Path("some/own.yaml")


def test_the_readmes_recipe_is_a_recipe():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    recipe = build(Recipe, yaml.safe_load(readme.split("```yaml\n")[1].split("```")[0]))
    cheap = score_schema(cheap_operators(recipe))
    recipe.decide.check(rule_columns(cheap, score_schema(model_operators(recipe), cheap)))


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
    ],
)
def test_what_cannot_be_is_told(more, message):
    with pytest.raises(ConfigError, match=message):
        build(Recipe, SMALLEST | more)


def test_curating_asks_for_no_workers_of_later_phases():
    recipe = build(Recipe, SMALLEST | {"tokenize": {"pool": {"workers": 9}}})
    assert recipe.pools()["tokenize"].workers == 9
    assert "tokenize" not in recipe.pools(curate_only=True)
