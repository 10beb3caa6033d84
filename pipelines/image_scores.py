"""Which scores a recipe asks for: the groups of operators, their towers, and the columns of rules.

Operators are grouped by what they cost. A group is a table of its own, so that a new score never
redoes the others; its gate, asked over the groups before it, keeps its batches full of pictures
that are worth it.
"""

from dataclasses import dataclass, replace

import pyarrow as pa

from infra.config import ConfigError
from operators.frame_scores import FrameScores
from pipelines.caption_phase import caption_schema
from pipelines.phase import Operator
from pipelines.recipe import Recipe
from pipelines.rules import check_expression
from pipelines.scored import rule_columns, score_schema
from pipelines.sections import Pool


@dataclass(frozen=True)
class ScoreGroup:
    """Operators whose scores are one table a source; ``gate`` says which samples they see."""

    name: str
    operators: tuple[Operator, ...]
    pool: Pool
    gate: str | None = None

    @property
    def is_for_rules(self) -> bool:
        return self.name != "embeddings"


def score_groups(recipe: Recipe) -> tuple[ScoreGroup, ...]:
    """The groups of a recipe in order; a gate may ask all groups before its own."""
    if recipe.media == "video":
        return clip_scores(recipe)
    cheap, probe = recipe.cheap, recipe.cheap.probe
    scores = (cheap.perceptual_hash, cheap.clarity, cheap.borders, cheap.colour)
    groups = [ScoreGroup("cheap", (probe, *scores), cheap.pool)]
    # Pixels are not stored: every group decodes for itself, with the same settings.
    if (models := recipe.models) is not None:
        asked = (models.aesthetics, models.topics, models.similarity, models.nsfw, models.watermark)
        found = behind_towers(*(operator for operator in asked if operator is not None))
        groups.append(ScoreGroup("models", (probe, *found), models.pool, models.gate))
    if (ocr := recipe.ocr) is not None:
        groups.append(ScoreGroup("ocr", (probe, ocr.operator), ocr.pool, ocr.gate))
    if (section := recipe.embeddings) is not None:
        found = behind_towers(section.operator)
        groups.append(ScoreGroup("embeddings", (probe, *found), section.pool, section.gate))
    return tuple(groups)


def clip_scores(recipe: Recipe) -> tuple[ScoreGroup, ...]:
    """The groups of clips: the same operators, on frames of theirs."""
    probe, given = recipe.clips.probe, recipe.clips.given
    motion = recipe.clips.motion
    if motion is not None:  # both frames of a pair at the size that the flow asks for
        side = max(probe.partner_short_side, motion.flow.short_side)
        probe = replace(probe, partner_short_side=side)
    scores = [FrameScores(recipe.cheap.clarity, given.get("clarity"))]
    moves = () if motion is None else (replace(motion, given=given.get("motion")),)
    groups = [ScoreGroup("cheap", (probe, *scores, *moves), recipe.cheap.pool)]
    if (models := recipe.models) is not None:
        asked = (models.aesthetics, models.topics, models.nsfw, models.watermark)
        scores = [
            FrameScores(one, given.get("aesthetic") if one is models.aesthetics else None)
            for one in asked
            if one is not None
        ]
        groups.append(
            ScoreGroup("models", (probe, *behind_towers(*scores)), models.pool, models.gate)
        )
    return tuple(groups)


def behind_towers(*operators: Operator) -> tuple[Operator, ...]:
    """The operators, and before them each image tower that they need, once."""
    asked = (getattr(operator, "tower", None) for operator in operators)
    return (*dict.fromkeys(tower for tower in asked if tower is not None), *operators)


def caption_scorers(recipe: Recipe) -> tuple[Operator, ...]:
    similarity = recipe.captions.similarity
    return () if similarity is None else behind_towers(replace(similarity, of="text"))


def caption_columns(recipe: Recipe) -> list[pa.Field]:
    """What the rules on captions may ask beside all scores."""
    schema = caption_schema(caption_scorers(recipe))
    return [f.remove_metadata() for f in schema if f.name not in ("sample_id", "error")]


def check_gates(recipe: Recipe) -> pa.Schema:
    """The columns that rules may name, after every gate has been checked over those before it."""
    stored: list[pa.Schema] = []
    for group in score_groups(recipe):
        if group.gate:
            place = f"{group.name}.gate"
            kind = check_expression(group.gate, rule_columns(*stored), place)
            if kind != "BOOLEAN":
                raise ConfigError(f"{place}: `{group.gate}` is {kind}, no condition")
        if group.is_for_rules:
            stored.append(score_schema(group.operators, stored))
    return rule_columns(*stored)
