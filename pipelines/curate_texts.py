"""Texts, instructions and chats -> samples -> scores -> duplicates -> decisions -> documents.

    nextscale curate RECIPE [key=value ...]     # a recipe whose sources are texts

Text data of the paper's section 5.5, by the phases and into the tables of `curate_images`: one
score group, no captions.
"""

from dataclasses import replace

import pyarrow as pa

from infra.config import ConfigError
from infra.runs import TableRecord
from infra.schema import DOCUMENTS
from operators.text_document import TextDocument
from operators.text_probe import TextProbe
from pipelines.curate_images import Run
from pipelines.decide import Decision
from pipelines.duplicates import DuplicatesPhase
from pipelines.inputs import SAMPLES_PER_TEXT_PART, KeptInput, SampleInput, dataset_parts
from pipelines.phase import Operator, Phase, check_weights
from pipelines.recipe import Recipe
from pipelines.refresh import refresh
from pipelines.scored import ScoredPart, duplicate_columns, rule_columns, score_schema
from pipelines.source import Source
from pipelines.sources import first_media, index_phase, list_source
from tokenize_offline import text


def check(recipe: Recipe) -> None:
    """All that can be known before work starts; raises ConfigError with one clear line.

    Sources exist and are not empty, rules parse and name known columns, the language model is
    installed, and the tokenizer knows chats if the sources begin with one.
    """
    check_rules(recipe)
    tokenizer = () if recipe.tokenize is None else (recipe.tokenize.operator,)
    check_weights((*score_operators(recipe), *tokenizer))
    recipe.storage.check(writable=True)
    for source in recipe.sources:
        list_source(source)
    _check_turn_marks(recipe)


def check_rules(recipe: Recipe) -> None:
    """Rules and duplicates name known columns; raises ConfigError."""
    scores = score_schema(score_operators(recipe))
    kinds: tuple[str, ...] = ()
    if recipe.duplicates is not None:
        kinds = recipe.duplicates.kinds
        recipe.duplicates.check(rule_columns(scores))
    columns = [*rule_columns(scores), *duplicate_columns(kinds)]
    recipe.decide.check(pa.schema(columns))


def _check_turn_marks(recipe: Recipe) -> None:
    if recipe.tokenize is None or text.load(recipe.tokenize.operator.vocabulary).marks is not None:
        return
    for source in recipe.sources:
        first = first_media(source)
        if first is not None and first.startswith(b'{"messages"'):
            raise ConfigError(
                f"source `{source.name}` holds chats, and tokenize.operator.vocabulary has no "
                f"{text.TURN_START}: choose another, or leave it out for Qwen2.5's"
            )


def curate(recipe: Recipe, run: Run = refresh) -> TableRecord:
    """Bring all tables up to the documents up to date; returns their record.

    Needs a Ray session. ``run`` is as for `curate_images.curate`.
    """
    storage = recipe.storage
    samples = tuple(run(storage, index_phase(source)) for source in recipe.sources)
    scores = {
        source.name: run(storage, score_phase(recipe, source, record))
        for source, record in zip(recipe.sources, samples, strict=True)
    }
    parts = dataset_parts(recipe.sources, samples)
    scored = tuple(ScoredPart(place, (scores[place.source.name],)) for place in parts)
    if recipe.duplicates is not None:
        phases = (
            DuplicatesPhase(recipe.dataset, kind, scored, recipe.duplicates)
            for kind in recipe.duplicates.kinds
        )
        copies = tuple(run(storage, phase) for phase in phases)
        scored = tuple(replace(part, duplicates=copies) for part in scored)
    decisions = run(storage, Decision(recipe.dataset, scored, recipe.decide))
    return run(storage, document_phase(recipe, samples, decisions))


def score_operators(recipe: Recipe) -> tuple[Operator, ...]:
    language = recipe.text.language
    return (TextProbe(), *(() if language is None else (language,)))


def score_phase(recipe: Recipe, source: Source, samples: TableRecord) -> Phase:
    """The one score group of texts: no operator is dear enough for a gate."""
    operators = score_operators(recipe)
    return Phase(
        table=f"scores/{source.name}/text",
        key="sample_id",
        schema=score_schema(operators),
        input=SampleInput(source, samples),
        num_parts=len(samples.parts),
        stages=(recipe.text.pool.stage(*operators),),
        spec={"group": "text"},
        value_inputs=(samples,),
        unit_rows=recipe.text.pool.unit_rows,
    )


def document_phase(
    recipe: Recipe, samples: tuple[TableRecord, ...], decisions: TableRecord
) -> Phase:
    """A document per kept sample."""
    parts = dataset_parts(recipe.sources, samples, SAMPLES_PER_TEXT_PART)
    return Phase(
        table=f"documents/{recipe.dataset}",
        key="doc_id",
        schema=DOCUMENTS,
        input=KeptInput(parts, decisions, document=(recipe.dataset, "text")),
        num_parts=len(parts),
        stages=(recipe.text.pool.stage(TextDocument(recipe.text.loss_on)),),
        spec={"dataset": recipe.dataset},
        value_inputs=samples,
        row_inputs=(decisions,),
        unit_rows=recipe.text.pool.unit_rows,
        facts={"dataset": recipe.dataset},
    )
