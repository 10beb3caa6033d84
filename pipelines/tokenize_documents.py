"""Documents -> text tokens and multi-scale visual codes: ``nextscale tokenize RECIPE``."""

from infra.runs import TableRecord
from infra.schema import TOKENS
from pipelines.inputs import DocumentInput
from pipelines.phase import Phase
from pipelines.recipe import Recipe


def tokenize_phase(recipe: Recipe, documents: TableRecord) -> Phase:
    """The phase that writes ``tokens/<dataset>-<level>``; the level may be below the documents'."""
    assert recipe.tokenize is not None
    operator, pool = recipe.tokenize.operator, recipe.tokenize.pool
    return Phase(
        table=f"tokens/{recipe.tokens_name}",
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
