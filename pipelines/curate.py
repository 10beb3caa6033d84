"""Curate a recipe's sources, whatever they hold, up to its documents."""

from typing import Protocol

from infra.runs import TableRecord
from pipelines import curate_clips, curate_images, curate_interleaved, curate_texts
from pipelines.curate_images import Run
from pipelines.recipe import Recipe
from pipelines.refresh import refresh


class Pipeline(Protocol):
    """The module that curates a kind of media."""

    def check(self, recipe: Recipe) -> None: ...
    def curate(self, recipe: Recipe, run: Run = ...) -> TableRecord: ...


_PIPELINES: dict[str, Pipeline] = {
    "image": curate_images,
    "text": curate_texts,
    "video": curate_clips,
    "interleaved": curate_interleaved,
}


def check(recipe: Recipe) -> None:
    """Raises ConfigError for all that can be known to be wrong before work starts."""
    _PIPELINES[recipe.media].check(recipe)


def curate(recipe: Recipe, run: Run = refresh) -> TableRecord:
    """Bring all tables up to the documents up to date; returns their record."""
    return _PIPELINES[recipe.media].curate(recipe, run)
