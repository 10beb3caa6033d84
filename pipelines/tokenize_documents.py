"""Documents -> text tokens and multi-scale visual codes: ``nextscale tokenize RECIPE``."""

from infra.config import ConfigError
from infra.runs import TableRecord
from infra.schema import TOKENS
from pipelines.inputs import DocumentInput
from pipelines.phase import Phase, Stage
from pipelines.recipe import Recipe


def tokenize_phase(recipe: Recipe, documents: TableRecord) -> Phase:
    """The phase that writes ``tokens/<dataset>-<level>``; the level may be below the documents'.

    Raises ConfigError for a level above that of the documents.
    """
    assert recipe.tokenize is not None
    operator, pool = recipe.tokenize.operator, recipe.tokenize.pool
    if operator.level > documents.facts["level"]:
        raise ConfigError(
            f"tokenize.operator.level is {operator.level}, the documents hold pictures of level "
            f"{documents.facts['level']}: raise documents.level"
        )
    return Phase(
        table=f"tokens/{recipe.tokens_name}",
        key="doc_id",
        schema=TOKENS,
        input=DocumentInput(documents),
        num_parts=len(documents.parts),
        stages=(Stage((operator,), pool.workers, pool.num_cpus, pool.num_gpus, pool.batch_rows),),
        spec={},
        value_inputs=(documents,),
        unit_rows=pool.unit_rows,
        facts=operator.facts,
    )
