"""Raw images -> samples -> scores -> duplicates -> decisions -> captions -> documents.

    nextscale curate RECIPE [key=value ...]

Operators annotate, rules decide. Each step below is a phase: resumable, and skipped when nothing
that it depends on has changed.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa

from infra.config import ConfigError
from infra.runs import TableRecord
from infra.schema import DOCUMENTS
from infra.storage import Storage
from operators.caption_endpoint import check_endpoint
from operators.image_features import ImageFeatures
from operators.response_cache import check_cache
from operators.topics import OTHER
from pipelines.balance import check_topics
from pipelines.caption_phase import (
    SCORES_IN_PROMPTS,
    caption_decision,
    caption_phase,
    seen_by,
)
from pipelines.decide import Decide, Decision
from pipelines.duplicates import Duplicates, DuplicatesPhase
from pipelines.image_scores import (
    ScoreGroup,
    caption_columns,
    caption_scorers,
    check_gates,
    score_groups,
)
from pipelines.inputs import (
    SAMPLES_PER_MEDIA_PART,
    KeptInput,
    SampleInput,
    dataset_parts,
)
from pipelines.phase import Phase, check_weights
from pipelines.recipe import Recipe
from pipelines.refresh import Made, refresh
from pipelines.scored import SAMPLE_COLUMNS, ScoredPart, duplicate_columns, score_schema
from pipelines.source import Source
from pipelines.sources import index_phase, list_source
from pipelines.status import Look, NotDoneError
from pipelines.vllm_engine import check_vllm

Run = Callable[[Storage, Made], TableRecord]


def check(recipe: Recipe) -> None:
    """All that can be known before work starts; raises ConfigError with one clear line.

    Sources exist and are not empty, rules parse and name known columns, weights are there, the
    endpoint answers and its cache takes answers, vLLM is there and its settings are possible.
    """
    check_rules(recipe)
    _check_weights(recipe)
    recipe.storage.check(writable=True)
    for source in recipe.sources:
        list_source(source)
    caption = recipe.captions.operator
    if caption.engine == "given" or not captions_are_due(recipe):
        return
    if caption.engine == "vllm":
        check_vllm(caption, recipe.captions.vllm)
        return
    if caption.ask:
        check_endpoint(caption.base_url, caption.model, caption.api_key_env)
    if caption.cache:
        check_cache(caption.cache)


def captions_are_due(
    recipe: Recipe, pipeline: Callable[[Recipe, Run], TableRecord] | None = None
) -> bool:
    """Whether a run would come to ask for captions: they or an earlier table are not up to date.

    ``pipeline`` curates the recipe (default: the one of pictures).
    """
    try:
        (pipeline or curate)(recipe, Look([]))
    except NotDoneError as first:
        return str(first).partition("/")[0] not in ("caption_decisions", "documents")
    return False


def check_rules(recipe: Recipe) -> None:
    """Gates, rules, balancing, prompts and texts name what there is; raises ConfigError."""
    columns = check_gates(recipe)
    if recipe.duplicates is not None:
        recipe.duplicates.check(columns)
        columns = pa.schema([*columns, *duplicate_columns(recipe.duplicates.kinds)])
    recipe.decide.check(columns)
    if recipe.models is not None and recipe.models.topics is not None:
        check_topics(recipe.decide.balance, (*recipe.models.topics.names, OTHER))
    captioned = [field for field in caption_columns(recipe) if field.name not in columns.names]
    Decide(rules=recipe.captions.rules).check(pa.schema([*columns, *captioned]))
    for name in recipe.captions.operator.reads:
        if name in SCORES_IN_PROMPTS and name not in columns.names:
            section = "models: {topics: {}}" if name == "topic" else "ocr: {}"
            raise ConfigError(
                f"captions: a prompt names {{{name}}}, which no score gives: add `{section}`"
            )
    _check_text(recipe)


def _check_text(recipe: Recipe) -> None:
    """The text of documents is made of known columns; raises ConfigError."""
    known = [*SAMPLE_COLUMNS, "text", *(recipe.ocr.operator.writes.names if recipe.ocr else ())]
    for name in recipe.documents.operator.text_columns:
        if name not in known:
            hint = "" if recipe.ocr else "; text in the pictures needs an `ocr` section"
            raise ConfigError(
                f"documents.text names `{name}`: choose among {', '.join(known)}{hint}"
            )


def _check_weights(recipe: Recipe) -> None:
    """Weights that an operator would load must be there; raises ConfigError."""
    operators = [operator for group in score_groups(recipe) for operator in group.operators]
    operators += caption_scorers(recipe)
    if recipe.tokenize is not None:
        operators.append(recipe.tokenize.operator)
    # Those that need a tower tell of its weights, by the name that the recipe says.
    check_weights([one for one in operators if not isinstance(one, ImageFeatures)])


def curate(recipe: Recipe, run: Run = refresh) -> TableRecord:
    """Bring all tables up to the documents up to date; returns their record.

    Needs a Ray session. ``run`` is how a phase is done: `nextscale status` passes one that looks.
    """
    storage = recipe.storage
    samples = tuple(run(storage, index_phase(source)) for source in recipe.sources)
    groups = {
        source.name: score(recipe, source, record, run)
        for source, record in zip(recipe.sources, samples, strict=True)
    }
    scored = tuple(
        ScoredPart(place, for_rules(groups[place.source.name]))
        for place in dataset_parts(recipe.sources, samples)
    )
    if recipe.duplicates is not None:
        scored = find_duplicates(recipe, recipe.duplicates, scored, groups, run)
    decisions = run(storage, Decision(recipe.dataset, scored, recipe.decide))
    every = tuple(group for of_source in groups.values() for group in for_rules(of_source))
    captions = run(storage, captions_of(recipe, samples, decisions, every))
    if recipe.captions.rules:
        rules = recipe.captions.rules
        decisions = run(storage, caption_decision(recipe.dataset, scored, captions, rules))
    elif run is refresh:
        storage.remove(f"caption_decisions/{recipe.dataset}")  # of rules that are no more
    return run(storage, document_phase(recipe, samples, decisions, captions, every))


def score(
    recipe: Recipe, source: Source, samples: TableRecord, run: Run = refresh
) -> tuple[TableRecord, ...]:
    """The score groups of one source, in order: cheap for every sample, others behind gates."""
    made: list[TableRecord] = []
    stored: list[pa.Schema] = []
    for group in score_groups(recipe):
        rows = SampleInput(source, samples, earlier=tuple(made), gate=group.gate)
        phase = _score_phase(rows, group, stored)
        made.append(run(recipe.storage, phase))
        stored.append(phase.schema)
    return tuple(made)


def for_rules(groups: tuple[TableRecord, ...]) -> tuple[TableRecord, ...]:
    """The score groups less that of embeddings, which no rule can name."""
    return tuple(group for group in groups if not group.table.endswith("/embeddings"))


def find_duplicates(
    recipe: Recipe,
    config: Duplicates,
    scored: tuple[ScoredPart, ...],
    groups: dict[str, tuple[TableRecord, ...]],
    run: Run = refresh,
) -> tuple[ScoredPart, ...]:
    """The scored parts with the tables of duplicates, kind by kind."""
    every = [group for of_source in groups.values() for group in of_source]
    embeddings = tuple(group for group in every if group.table.endswith("/embeddings"))
    found = tuple(
        run(recipe.storage, DuplicatesPhase(recipe.dataset, kind, scored, config, embeddings))
        for kind in config.kinds
    )
    return tuple(replace(part, duplicates=found) for part in scored)


def _score_phase(rows: SampleInput, group: ScoreGroup, stored: Sequence[pa.Schema]) -> Phase:
    return Phase(
        table=f"scores/{rows.source.name}/{group.name}",
        key="sample_id",
        schema=score_schema(group.operators, stored),
        input=rows,
        num_parts=len(rows.samples.parts),
        stages=(group.pool.stage(*group.operators),),
        spec={"group": group.name},
        value_inputs=(rows.samples,),
        row_inputs=rows.earlier,
        row_filter=rows.gate,
        unit_rows=group.pool.unit_rows,
    )


def captions_of(
    recipe: Recipe,
    samples: tuple[TableRecord, ...],
    decisions: TableRecord,
    scores: tuple[TableRecord, ...],
) -> Phase:
    """Captions of the kept samples, scored if the recipe says so; prompts may name scores."""
    section = recipe.captions
    return caption_phase(
        recipe.dataset,
        dataset_parts(recipe.sources, samples),
        decisions,
        section.operator,
        probe=recipe.cheap.probe,
        pool=section.pool,
        scorers=caption_scorers(recipe),
        scores=scores,
        gates=_gates(recipe),
        vllm=section.vllm,
    )


def document_phase(
    recipe: Recipe,
    samples: tuple[TableRecord, ...],
    decisions: TableRecord,
    captions: TableRecord,
    scores: tuple[TableRecord, ...] = (),
) -> Phase:
    """Documents of the kept samples and their captions, pictures cut to their schedules."""
    section = recipe.documents
    parts = dataset_parts(recipe.sources, samples, SAMPLES_PER_MEDIA_PART)
    own = {*SAMPLE_COLUMNS, "text"}
    read = tuple(name for name in section.operator.text_columns if name not in own)
    ocr = tuple(group for group in scores if group.table.endswith("/ocr")) if read else ()
    return Phase(
        table=f"documents/{recipe.dataset}",
        key="doc_id",
        schema=DOCUMENTS,
        input=KeptInput(
            parts,
            decisions,
            captions,
            document=(recipe.dataset, section.task),
            inversion=section.inversion,
            inversion_seed=section.inversion_seed,
            extra=ocr,
            extra_columns=read,
        ),
        num_parts=len(parts),
        stages=(section.pool.stage(section.operator),),
        spec={"dataset": recipe.dataset, **seen_by(_gates(recipe), scores, ocr)},
        value_inputs=(*samples, captions, *ocr),
        row_inputs=(decisions,),
        row_filter=section.tasks,
        unit_rows=section.pool.unit_rows,
        facts={"level": section.level, "dataset": recipe.dataset},
    )


def _gates(recipe: Recipe) -> dict[str, str | None]:
    return {group.name: group.gate for group in score_groups(recipe)}
