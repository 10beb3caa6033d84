"""Captions of the kept samples, scores of what was written, and the rules that judge both.

    decisions -> captions (text, style, checks, …, text_similarity) -> caption_decisions

The second judgement sees captioned samples only, with all their scores and the columns of their
captions: ``len(checks) = 0``, ``text_similarity >= 0.2``, ``style <> 'tags'``. A sample whose
caption failed has failed there.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from infra.runs import TableRecord
from infra.schema import CAPTIONS
from operators.caption import Caption
from operators.probe import Probe
from pipelines.decide import Decide, Decision
from pipelines.inputs import DatasetPart, KeptInput
from pipelines.phase import Input, Operator, Phase, is_transient
from pipelines.rules import Rule
from pipelines.scored import ScoredPart
from pipelines.sections import Pool, Vllm
from pipelines.vllm_captions import AnsweredInput

SCORES_IN_PROMPTS = {"topic": "models", "ocr_text": "ocr"}
"""Columns that a prompt may hold beside those of the sample, and their score groups."""


def caption_schema(scorers: tuple[Operator, ...] = ()) -> pa.Schema:
    """Columns of ``captions/<dataset>``: CAPTIONS, and what ``scorers`` say of the new text."""
    scores = [
        field for scorer in scorers for field in scorer.writes if not is_transient(field.name)
    ]
    error = CAPTIONS.get_field_index("error")
    return pa.schema([*list(CAPTIONS)[:error], *scores, CAPTIONS.field(error)])


def caption_phase(
    dataset: str,
    parts: tuple[DatasetPart, ...],
    decisions: TableRecord,
    caption: Caption,
    *,
    probe: Probe,
    pool: Pool,
    scorers: tuple[Operator, ...] = (),
    scores: tuple[TableRecord, ...] = (),
    gates: Mapping[str, str | None] | None = None,
    vllm: Vllm | None = None,
) -> Phase:
    """Captions of the kept samples; their pixels are read only if something looks at them.

    ``parts`` are those of the dataset, unsliced. ``scorers`` run after ``caption`` on the picture
    and the columns that it writes, such as a `CaptionSimilarity` of ``text`` behind its tower.
    ``scores`` are the groups that prompts may ask for the sample's topic or the text in its
    picture, ``gates`` those of all groups (`seen_by`). ``vllm`` is how that engine runs; its
    answers are fetched before (`answer_with_vllm`).
    """
    sees = caption.engine != "given" or bool(scorers)
    asked = tuple(name for name in caption.reads if name in SCORES_IN_PROMPTS)
    named = {SCORES_IN_PROMPTS[name] for name in asked}
    groups = tuple(group for group in scores if _group(group) in named)
    kept = KeptInput(parts, decisions, media=sees, extra=groups, extra_columns=asked)
    rows: Input = AnsweredInput(kept, dataset, vllm or Vllm()) if caption.engine == "vllm" else kept
    operators = (*((probe,) if sees else ()), caption, *scorers)
    samples = {part.samples.table: part.samples for part in parts}
    return Phase(
        table=f"captions/{dataset}",
        key="sample_id",
        schema=caption_schema(scorers),
        input=rows,
        num_parts=len(parts),
        stages=(pool.stage(*operators),),
        spec=seen_by(gates or {}, scores, groups),
        value_inputs=(*samples.values(), *groups),
        row_inputs=(decisions,),
        unit_rows=pool.unit_rows,
    )


def seen_by(
    gates: Mapping[str, str | None],
    scores: tuple[TableRecord, ...],
    read: tuple[TableRecord, ...],
) -> dict[str, Any]:
    """What decides which samples the groups ``read`` saw: for the spec of who reads their values.

    A sample that a group did not see has NULL there, so that what is made of it depends on the
    gates up to that group's and on the scores that they ask, beside the group's own operators.
    ``gates``: of all groups by name, in order; ``scores``: the groups of all sources.
    """
    order, names = list(gates), {_group(record) for record in read}
    upto = order[: 1 + max((order.index(name) for name in names & gates.keys()), default=-1)]
    if not any(gates[name] for name in upto):
        return {}
    asked = [record.row_spec for record in scores if _group(record) in upto[:-1]]
    return {"seen_by": {"gates": [gates[name] for name in upto], "asked": asked}}


def _group(record: TableRecord) -> str:
    return record.table.rpartition("/")[2]


def caption_decision(
    dataset: str, scored: tuple[ScoredPart, ...], captions: TableRecord, rules: tuple[Rule, ...]
) -> Decision:
    """What `decide` judges captioned samples by; ``scored`` are the parts of the first decision."""
    parts = tuple(replace(part, captions=captions) for part in scored)
    return Decision(dataset, parts, Decide(rules=rules), "caption_decisions")
