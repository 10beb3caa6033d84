"""Which scores a recipe asks for: the groups of operators, their towers, and the columns of rules.

Operators are grouped by what they cost. A group is a table of its own, so that a new score never
redoes the others; its gate, asked over the groups before it, keeps its batches full of pictures
that are worth it.
"""

from dataclasses import dataclass, replace

import pyarrow as pa

from infra.config import ConfigError
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
