"""Web documents -> samples -> scores -> duplicates -> decisions -> documents.

    nextscale curate RECIPE [key=value ...]     # a recipe whose sources are interleaved

Interleaved data of the paper's section 5.4 beside clips. The tables are those of `curate_images`:
one score group, in which every picture of a document has its verdict, and no captions.
"""

from dataclasses import replace

import pyarrow as pa

from infra.config import ConfigError
from infra.runs import TableRecord
from infra.schema import DOCUMENTS
from operators.web_document import TASK, WebDocument
from operators.web_images import WebImages
from operators.web_text import WebText
from pipelines.curate_images import Run
from pipelines.decide import Decision
from pipelines.duplicates import DuplicatesPhase
from pipelines.inputs import KeptInput, SampleInput, dataset_parts
from pipelines.phase import Operator, Phase, check_weights
from pipelines.recipe import Recipe
from pipelines.refresh import refresh
from pipelines.scored import ScoredPart, duplicate_columns, rule_columns, score_schema
from pipelines.source import Source
from pipelines.sources import index_phase, list_source
from pipelines.web_input import KeptWebInput, WebInput

SAMPLES_PER_PART = 512  # x 4 pictures of 100 kB a page: about 200 MB a file


def check(recipe: Recipe) -> None:
    """All that can be known before work starts; raises ConfigError with one clear line.

    Sources exist and are not empty, rules parse and name known columns, weights are there.
    """
    check_rules(recipe)
    tokenizer = () if recipe.tokenize is None else (recipe.tokenize.operator,)
    check_weights((*score_operators(recipe), *tokenizer))
    recipe.storage.check(writable=True)
    for source in recipe.sources:
        list_source(source)


def check_rules(recipe: Recipe) -> None:
    """Rules and duplicates name known columns; raises ConfigError."""
    scores = score_schema(score_operators(recipe))
    kinds: tuple[str, ...] = ()
    if recipe.duplicates is not None:
        kinds = recipe.duplicates.kinds
        recipe.duplicates.check(rule_columns(scores))
    recipe.decide.check(pa.schema([*rule_columns(scores), *duplicate_columns(kinds)]))


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
    return run(storage, document_phase(recipe, samples, tuple(scores.values()), decisions))


def score_operators(recipe: Recipe) -> tuple[Operator, ...]:
    return WebText(recipe.web.language), _images(recipe)


def _images(recipe: Recipe) -> WebImages:
    """Pictures that the documents could not hold have their verdict with all others."""
    section, images = recipe.documents, recipe.web.images
    for name in ("level", "max_cropped"):
        if getattr(images, name) != getattr(WebImages(), name):
            raise ConfigError(
                f"web.images.{name} is {getattr(images, name)}: it is that of the documents, say "
                f"documents.{name}"
            )
    return replace(images, level=section.level, max_cropped=section.max_cropped)


def score_phase(recipe: Recipe, source: Source, samples: TableRecord) -> Phase:
    """The one score group of web documents: what they say, and their pictures' verdicts."""
    operators = score_operators(recipe)
    return Phase(
        table=f"scores/{source.name}/web",
        key="sample_id",
        schema=score_schema(operators),
        input=WebInput(SampleInput(source, samples), recipe.web.images.max_images),
        num_parts=len(samples.parts),
        stages=(recipe.web.pool.stage(*operators),),
        spec={"group": "web"},
        value_inputs=(samples,),
        unit_rows=recipe.web.pool.unit_rows,
    )


def document_phase(
    recipe: Recipe,
    samples: tuple[TableRecord, ...],
    scores: tuple[TableRecord, ...],
    decisions: TableRecord,
) -> Phase:
    """A document per kept sample, its kept pictures cut to their schedules."""
    section = recipe.documents
    parts = dataset_parts(recipe.sources, samples, SAMPLES_PER_PART)
    kept = KeptInput(parts, decisions, document=(recipe.dataset, TASK))
    return Phase(
        table=f"documents/{recipe.dataset}",
        key="doc_id",
        schema=DOCUMENTS,
        input=KeptWebInput(kept, scores),
        num_parts=len(parts),
        stages=(section.pool.stage(WebDocument(section.level, section.jpeg_quality)),),
        spec={"dataset": recipe.dataset},
        value_inputs=(*samples, *scores),
        row_inputs=(decisions,),
        unit_rows=section.pool.unit_rows,
        facts={"level": section.level, "dataset": recipe.dataset},
    )
