"""Training is refused over packs of other codes or text ids than the recipe's."""

from dataclasses import replace
from pathlib import Path

import pytest

from infra.config import ConfigError
from infra.runs import Part, TableRecord
from pipelines.recipe import Recipe
from pipelines.sections import Tokenize
from pipelines.source import Source
from pipelines.train_packs import train_packs
from tokenize_offline.extract_codes import ExtractCodes


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(
        dataset="mixed",
        workspace=str(tmp_path),
        sources=(Source(name="some", kind="folder", path=str(tmp_path)),),
        tokenize=Tokenize(operator=ExtractCodes(device="cpu")),
        train={"steps": 1},
    )


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("tokenizer_id", "0" * 32),
        ("vocabulary_id", "0" * 32),
        ("num_codes", 8192),
        ("text_vocab_size", 32_000),
        ("level", 512),
    ],
)
def test_packs_of_another_tokenizer_are_refused_before_work(
    recipe: Recipe, name: str, other: object
) -> None:
    facts = ExtractCodes().facts | {name: other}
    part = Part("v-1/index.parquet", 10)
    packs = TableRecord("packs/mixed-256", "f", "r", "pack", (part,), facts)
    with pytest.raises(ConfigError, match=f"packs/mixed-256 has {name} {other}, the recipe's"):
        train_packs(recipe, packs)
    assert not list(Path(recipe.workspace).rglob("codebook.safetensors"))
    # The right facts come as far as the packs, which are not there.
    with pytest.raises(ValueError, match="is no folder of packs"):
        train_packs(recipe, replace(packs, facts=ExtractCodes().facts))
