"""Curate a recipe's sources, pictures or texts, up to its documents."""

from infra.runs import TableRecord
from pipelines import curate_images, curate_texts
from pipelines.curate_images import Run
from pipelines.recipe import Recipe
from pipelines.refresh import refresh


def check(recipe: Recipe) -> None:
    """Raises ConfigError for all that can be known to be wrong before work starts."""
    (curate_texts if recipe.holds_texts else curate_images).check(recipe)


def curate(recipe: Recipe, run: Run = refresh) -> TableRecord:
    """Bring all tables up to the documents up to date; returns their record."""
    return (curate_texts if recipe.holds_texts else curate_images).curate(recipe, run)
