"""Videos -> clips -> scores -> decisions -> frames -> transitions -> interleaved documents.

    nextscale curate RECIPE [key=value ...]     # a recipe whose sources are videos

Interleaved data of the paper's section 5.4, by the phases of `curate_images` and two of its own:
frames chooses those of a clip that tell its story, transitions writes what leads from one to the
next. A clip is one row from its samples to its document.
"""

import pyarrow as pa

from infra.config import ConfigError
from infra.runs import TableRecord
from infra.schema import FRAMES
from operators.caption_endpoint import check_endpoint
from operators.clip_probe import ClipProbe
from operators.frame_scores import FrameTower
from operators.frame_selection import FrameSelection
from operators.response_cache import check_cache
from operators.topics import OTHER
from pipelines.balance import check_topics
from pipelines.caption_phase import caption_decision
from pipelines.clip_samples import clip_phase, shot_phase
from pipelines.curate_images import Run, captions_are_due, find_duplicates, score
from pipelines.decide import Decide, Decision
from pipelines.image_scores import check_gates, score_groups
from pipelines.inputs import SAMPLES_PER_MEDIA_PART, DatasetPart, KeptInput, dataset_parts
from pipelines.phase import Operator, Phase, check_weights
from pipelines.recipe import Recipe
from pipelines.refresh import refresh
from pipelines.scored import ScoredPart, duplicate_columns, rule_columns
from pipelines.source import Source
from pipelines.sources import index_phase, list_source
from pipelines.transition_phase import clip_document_phase, transition_phase, transition_schema


def check(recipe: Recipe) -> None:
    """All that can be known before work starts; raises ConfigError with one clear line."""
    try:
        selecting = frame_operators(recipe)
    except ValueError as error:
        raise ConfigError(f"`frames`: {error}") from None
    check_rules(recipe)
    operators: list[Operator] = [one for group in score_groups(recipe) for one in group.operators]
    operators += selecting
    if recipe.clips.shots is not None:
        operators.append(recipe.clips.shots)
    if recipe.tokenize is not None:
        operators.append(recipe.tokenize.operator)
    # Those that need a tower tell of its weights, by the name that the recipe says.
    check_weights([one for one in operators if not isinstance(one, FrameTower)])
    recipe.storage.check(writable=True)
    for source in recipe.sources:
        list_source(source)
    _check_endpoint(recipe)


def _check_endpoint(recipe: Recipe) -> None:
    texts = recipe.transitions.operator
    if texts.engine != "openai" or not captions_are_due(recipe, curate):
        return
    if texts.ask:
        check_endpoint(texts.base_url, texts.model, texts.api_key_env)
    if texts.cache:
        check_cache(texts.cache)


def check_rules(recipe: Recipe) -> None:
    """Gates, rules and balancing name what there is; raises ConfigError."""
    columns = check_gates(recipe)
    if recipe.duplicates is not None:
        recipe.duplicates.check(columns)
        columns = pa.schema([*columns, *duplicate_columns(recipe.duplicates.kinds)])
    recipe.decide.check(columns)
    if recipe.models is not None and recipe.models.topics is not None:
        check_topics(recipe.decide.balance, (*recipe.models.topics.names, OTHER))
    captioned = [f for f in rule_columns(transition_schema()) if f.name not in columns.names]
    Decide(rules=recipe.transitions.rules).check(pa.schema([*columns, *captioned]))


def curate(recipe: Recipe, run: Run = refresh) -> TableRecord:
    """Bring all tables up to the documents up to date; returns their record.

    Needs a Ray session. ``run`` is as for `curate_images.curate`.
    """
    storage, texts = recipe.storage, recipe.transitions
    samples = tuple(clips_of(recipe, source, run) for source in recipe.sources)
    groups = {
        source.name: score(recipe, source, record, run)
        for source, record in zip(recipe.sources, samples, strict=True)
    }
    scored = tuple(
        ScoredPart(place, groups[place.source.name])
        for place in dataset_parts(recipe.sources, samples)
    )
    if recipe.duplicates is not None:
        scored = find_duplicates(recipe, recipe.duplicates, scored, groups, run)
    decisions = run(storage, Decision(recipe.dataset, scored, recipe.decide))
    parts = dataset_parts(recipe.sources, samples, SAMPLES_PER_MEDIA_PART)
    frames = run(storage, frame_phase(recipe, parts, decisions))
    captions = run(
        storage, transition_phase(recipe.dataset, parts, frames, texts.operator, pool=texts.pool)
    )
    judged = None
    if texts.rules:
        judged = run(storage, caption_decision(recipe.dataset, scored, captions, texts.rules))
    elif run is refresh:
        storage.remove(f"caption_decisions/{recipe.dataset}")  # of rules that are no more
    documents = clip_document_phase(
        recipe.dataset,
        parts,
        frames,
        captions,
        level=recipe.documents.level,
        pool=recipe.documents.pool,
        decisions=judged,
    )
    return run(storage, documents)


def clips_of(recipe: Recipe, source: Source, run: Run) -> TableRecord:
    """``samples/<source>``: a row per clip; the recipe may cut its videos into shots."""
    storage, shots = recipe.storage, recipe.clips.shots
    if shots is None:
        return run(storage, index_phase(source))
    videos = run(storage, index_phase(source, table=f"videos/{source.name}"))
    cuts = run(storage, shot_phase(source, videos, shots, recipe.clips.pool))
    return run(storage, clip_phase(source, videos, cuts))


def frame_operators(recipe: Recipe) -> tuple[Operator, ...]:
    """What finds a clip's candidates, and what chooses among them."""
    section, documents = recipe.frames, recipe.documents
    probe = ClipProbe(
        # Half as large again keeps the reduction to the level's exact size a true area mean.
        short_side=documents.level * 3 // 2,
        every_s=section.every_s,
        partner_gap_s=section.partner_gap_s,
        partner_short_side=section.flow.short_side,
        limit_s=section.limit_s,
        max_candidates=section.max_candidates,
    )
    selection = FrameSelection(
        level=documents.level,
        max_frames=section.max_frames,
        min_frames=section.min_frames,
        flow=section.flow,
        rule=section.rule,
        jpeg_quality=documents.jpeg_quality,
        max_cropped=documents.max_cropped,
    )
    return probe, selection


def frame_phase(recipe: Recipe, parts: tuple[DatasetPart, ...], decisions: TableRecord) -> Phase:
    """Candidates of the kept clips, with class and statistics, and the pictures of those kept."""
    section, level = recipe.frames, recipe.documents.level
    samples = {part.samples.table: part.samples for part in parts}
    return Phase(
        table=f"frames/{recipe.dataset}-{level}",
        key="sample_id",
        schema=FRAMES,
        input=KeptInput(parts, decisions),
        num_parts=len(parts),
        stages=(section.pool.stage(*frame_operators(recipe)),),
        spec={},
        value_inputs=tuple(samples.values()),
        row_inputs=(decisions,),
        unit_rows=section.pool.unit_rows,
        facts={"level": level, "dataset": recipe.dataset},
    )
