"""Raw images -> samples -> scores -> decisions -> captions -> documents.

    nextscale curate RECIPE [key=value ...]

Operators annotate, rules decide. Each step below is a phase: resumable, and skipped when nothing
that it depends on has changed.
"""

from collections.abc import Callable, Iterator

import pyarrow as pa

from infra import runs
from infra.config import ConfigError
from infra.runs import TableRecord
from infra.schema import CAPTIONS, DOCUMENTS, ERROR, SAMPLES, column
from infra.storage import Storage
from operators.caption_endpoint import check_endpoint
from operators.text_to_image import TextToImage
from pipelines.decide import Decision
from pipelines.inputs import KeptInput, SampleInput, dataset_parts
from pipelines.phase import TRANSIENT, Operator, Phase, Stage
from pipelines.recipe import Pool, Recipe
from pipelines.refresh import Made, refresh
from pipelines.rules import check_expression
from pipelines.scored import SAMPLE_COLUMNS, ScoredPart
from pipelines.source import Source
from pipelines.sources import index_phase, list_source

Run = Callable[[Storage, Made], TableRecord]
SAMPLE_ID = column("sample_id", pa.string(), "", "the sample")


def check(recipe: Recipe) -> None:
    """All that can be known before work starts; raises ConfigError with one clear line.

    Sources exist and are not empty, rules parse and name known columns, the endpoint answers.
    """
    cheap = score_schema(cheap_operators(recipe))
    if recipe.models and recipe.models.gate:
        kind = check_expression(recipe.models.gate, rule_columns(cheap), "models.gate")
        if kind != "BOOLEAN":
            raise ConfigError(f"models.gate: `{recipe.models.gate}` is {kind}, no condition")
    recipe.decide.check(rule_columns(cheap, score_schema(model_operators(recipe), cheap)))
    _check_weights(recipe)
    recipe.storage.check(writable=True)
    for source in recipe.sources:
        list_source(source)
    caption = recipe.captions.operator
    if caption.engine == "openai":
        check_endpoint(caption.base_url, caption.model, caption.api_key_env)


def _check_weights(recipe: Recipe) -> None:
    """Weights that an operator would load must be there; raises ConfigError."""
    operators = [*cheap_operators(recipe), *model_operators(recipe)]
    if recipe.tokenize is not None:
        operators.append(recipe.tokenize.operator)
    for operator in operators:
        try:
            runs.describe(operator)
        except ValueError as error:
            raise ConfigError(f"{type(operator).__name__}: {error}") from None


def curate(recipe: Recipe, run: Run = refresh) -> TableRecord:
    """Bring all tables up to the documents up to date; returns their record.

    Needs a Ray session. ``run`` is how a phase is done: `nextscale status` passes one that looks.
    """
    storage = recipe.storage
    samples = tuple(run(storage, index_phase(storage, source)) for source in recipe.sources)
    groups = {
        source.name: tuple(score(recipe, source, record, run))
        for source, record in zip(recipe.sources, samples, strict=True)
    }
    parts = dataset_parts(recipe.sources, samples)
    scored = tuple(ScoredPart(place, groups[place.source.name]) for place in parts)
    decisions = run(storage, Decision(recipe.dataset, scored, recipe.decide))
    captions = run(storage, caption_phase(recipe, samples, decisions))
    return run(storage, document_phase(recipe, samples, decisions, captions))


def score(
    recipe: Recipe, source: Source, samples: TableRecord, run: Run = refresh
) -> Iterator[TableRecord]:
    """The score groups of one source: cheap for every sample, models behind the gate."""
    operators = cheap_operators(recipe)
    every = SampleInput(source, samples)
    cheap = run(recipe.storage, _score_phase(every, "cheap", operators, recipe.cheap.pool))
    yield cheap
    if recipe.models is not None:
        gated = SampleInput(source, samples, earlier=(cheap,), gate=recipe.models.gate)
        stored = score_schema(operators)
        pool = recipe.models.pool
        phase = _score_phase(gated, "models", model_operators(recipe), pool, stored)
        yield run(recipe.storage, phase)


def cheap_operators(recipe: Recipe) -> tuple[Operator, ...]:
    return (recipe.cheap.probe, recipe.cheap.perceptual_hash, recipe.cheap.clarity)


def model_operators(recipe: Recipe) -> tuple[Operator, ...]:
    if recipe.models is None:
        return ()
    models = (recipe.models.aesthetics, recipe.models.topics, recipe.models.similarity)
    # Pixels are not stored: this group decodes for itself, with the same settings.
    return (recipe.cheap.probe, *(model for model in models if model is not None))


def score_schema(operators: tuple[Operator, ...], stored: pa.Schema | None = None) -> pa.Schema:
    """The stored columns of a score group: what its operators write, less what is stored before."""
    known = set(TRANSIENT) | set(stored.names if stored else ()) - {"sample_id", "error"}
    fields = [f for operator in operators for f in operator.writes if f.name not in known]
    return pa.schema([SAMPLE_ID, *fields, ERROR])


def rule_columns(*groups: pa.Schema) -> pa.Schema:
    """The typed columns that rules may name."""
    fields = [SAMPLES.field(name) for name in SAMPLE_COLUMNS]
    fields += [f for group in groups for f in group if f.name not in ("sample_id", "error")]
    return pa.schema([field.remove_metadata() for field in fields])


def _score_phase(
    rows: SampleInput,
    group: str,
    operators: tuple[Operator, ...],
    pool: Pool,
    stored: pa.Schema | None = None,
) -> Phase:
    return Phase(
        table=f"scores/{rows.source.name}/{group}",
        key="sample_id",
        schema=score_schema(operators, stored),
        input=rows,
        num_parts=len(rows.samples.parts),
        stages=(_stage(operators, pool),),
        spec={"group": group},
        value_inputs=(rows.samples,),
        row_inputs=rows.earlier,
        row_filter=rows.gate,
        unit_rows=pool.unit_rows,
    )


def caption_phase(
    recipe: Recipe, samples: tuple[TableRecord, ...], decisions: TableRecord
) -> Phase:
    """Captions of the kept samples; only an endpoint needs their pixels."""
    operator, pool = recipe.captions.operator, recipe.captions.pool
    needs_pixels = operator.engine != "given"
    parts = dataset_parts(recipe.sources, samples)
    return Phase(
        table=f"captions/{recipe.dataset}",
        key="sample_id",
        schema=CAPTIONS,
        input=KeptInput(parts, decisions, media=needs_pixels),
        num_parts=len(parts),
        stages=(_stage((recipe.cheap.probe, operator) if needs_pixels else (operator,), pool),),
        spec={},
        value_inputs=samples,
        row_inputs=(decisions,),
        unit_rows=pool.unit_rows,
    )


def document_phase(
    recipe: Recipe,
    samples: tuple[TableRecord, ...],
    decisions: TableRecord,
    captions: TableRecord,
) -> Phase:
    """Text-to-image documents of the kept samples, pictures cut to their schedules."""
    section = recipe.documents
    parts = dataset_parts(recipe.sources, samples, sliced=True)
    operator = TextToImage(section.level, section.jpeg_quality)
    return Phase(
        table=f"documents/{recipe.dataset}",
        key="doc_id",
        schema=DOCUMENTS,
        input=KeptInput(parts, decisions, captions, document=(recipe.dataset, "t2i")),
        num_parts=len(parts),
        stages=(_stage((operator,), section.pool),),
        spec={"dataset": recipe.dataset},
        value_inputs=(*samples, captions),
        row_inputs=(decisions,),
        unit_rows=section.pool.unit_rows,
        facts={"level": section.level, "dataset": recipe.dataset},
    )


def _stage(operators: tuple[Operator, ...], pool: Pool) -> Stage:
    return Stage(operators, pool.workers, pool.num_cpus, pool.num_gpus, pool.batch_rows)
