"""Documents -> text tokens and multi-scale visual codes: ``nextscale tokenize RECIPE``."""

import dataclasses

from infra.catalog import tokens_name
from infra.runs import TableRecord
from infra.schema import TOKENS
from pipelines.inputs import DocumentInput
from pipelines.phase import Phase
from pipelines.recipe import Recipe
from pipelines.replicas import replica_table


def tokenize_phases(recipe: Recipe, documents: TableRecord) -> list[Phase]:
    """One phase for each of ``tokenize.replicas``."""
    assert recipe.tokenize is not None
    return [tokenize_phase(recipe, documents, n) for n in range(recipe.tokenize.replicas)]


def remove_other_replicas(recipe: Recipe) -> None:
    """Remove replicas beyond ``tokenize.replicas``, which nobody keeps up to date any more.

    To be called when the others are made.
    """
    assert recipe.tokenize is not None
    for name in recipe.storage.names("tokens"):
        of, replica = tokens_name(name)
        if of == recipe.tokens_name and replica >= recipe.tokenize.replicas:
            # The record first: a table without files must not look complete.
            recipe.storage.remove(f"tokens/{name}/_table.json")
            recipe.storage.remove(f"tokens/{name}")


def tokenize_phase(recipe: Recipe, documents: TableRecord, replica: int = 0) -> Phase:
    """The phase that writes ``tokens/<dataset>-<level>``; the level may be below the documents'.

    A ``replica`` above 0 is a table of its own, the same but for the noise of self-correction.
    """
    assert recipe.tokenize is not None
    operator, pool = recipe.tokenize.operator, recipe.tokenize.pool
    operator = dataclasses.replace(operator, replica=operator.replica + replica)
    return Phase(
        table=replica_table(recipe.tokens_name, replica),
        key="doc_id",
        schema=TOKENS,
        input=DocumentInput(documents),
        num_parts=len(documents.parts),
        stages=(pool.stage(operator),),
        spec={},
        value_inputs=(documents,),
        unit_rows=pool.unit_rows,
        facts=operator.facts,
    )
