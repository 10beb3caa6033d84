"""Writes infra/tables.md, the reference of all tables, from the schemas and the operators.

    python -m pipelines.tables_doc

Columns, types, units and meanings are those that the code declares; a test holds the file to them.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.schema import (
    CANDIDATE,
    CAPTIONS,
    DECISIONS,
    DOCUMENTS,
    DUPLICATES,
    FRAMES,
    SAMPLES,
    TOKENS,
    column,
)
from operators.aesthetics import Aesthetics
from operators.borders import Borders
from operators.clarity import Clarity
from operators.clip_probe import ClipProbe
from operators.colour import Colour
from operators.image_embedding import ImageEmbedding
from operators.language import Language
from operators.motion import Motion
from operators.motion_classes import STATISTICS
from operators.nsfw import Nsfw
from operators.perceptual_hash import PerceptualHash
from operators.probe import Probe
from operators.shots import Shots
from operators.similarity import CaptionSimilarity
from operators.text_in_image import TextInImage
from operators.text_probe import TextProbe
from operators.topics import Topics
from operators.watermark import Watermark
from operators.web_images import WebImages
from operators.web_text import WebText
from packing.plan import PLAN
from packing.shards import PACK_INDEX
from pipelines.phase import is_transient
from pipelines.scored import score_schema

PATH = Path(__file__).parents[1] / "infra/tables.md"

GROUPS: dict[str, tuple[Any, ...]] = {
    "cheap": (Probe, PerceptualHash, Clarity, Borders, Colour),
    "models": (Aesthetics, Topics, CaptionSimilarity("any"), Nsfw, Watermark),
    "ocr": (TextInImage,),
    "embeddings": (ImageEmbedding,),
    "text": (TextProbe, Language),
    "web": (WebText(), WebImages),
}
"""Score groups: the operators that may write into each (see pipelines/image_scores.py)."""

CLIP_SCORES: tuple[Any, ...] = (ClipProbe, Motion)
"""What clips have in their group ``cheap`` beside scores of pictures, over their frames."""

TOKEN_REPLICAS = TOKENS.insert(
    0,
    column("replica", pa.int32(), "", "from 1; `dataset` is that of `tokens`, which is replica 0"),
)

_OF_CANDIDATES = {
    "timestamp_s": ("s", "when the frame is shown, from the start of its file"),
    "class": ("", "static, camera, object or cut"),
    "evidence": ("", "why it is of this class, in a line"),
    "kept": ("", "whether it is a frame of the clip's document"),
    "rank": ("", "order of importance among those that qualify, 0 first; null for all others"),
    "flow": ("pixels/s", "8 x 8 vectors (x, y), row by row, at the size that flow is measured at"),
    "width": ("pixels", "of the picture that is kept"),
    "height": ("pixels", "of the picture that is kept"),
    "cropped": ("", "share of the frame's pixels cut away, of kept ones"),
    **{name: (unit, meaning) for name, unit, meaning in STATISTICS},
}

CANDIDATES = pa.schema(
    [
        column("sample_id", pa.string(), "", "the clip"),
        column("candidate", pa.int64(), "", "its number in the clip, from 0, in time order"),
        *(
            column(field.name, field.type, *_OF_CANDIDATES[field.name])
            for field in CANDIDATE
            if field.name != "image"
        ),
    ]
)
"""The view ``candidates``, with the statistics of `operators.motion_classes`."""

TABLES = (
    (
        "videos",
        "videos/<source>/",
        "Files and members that are cut into shots: one row per video, before `samples`.",
        SAMPLES,
    ),
    (
        "shots",
        "shots/<source>/",
        "Where videos are cut: one row per video.",
        score_schema((Shots(),)).insert(1, SAMPLES.field("source")),
    ),
    ("samples", "samples/<source>/", "What a source holds: one row per sample.", SAMPLES),
    ("decisions", "decisions/<dataset>/", "What the rules say: one row per sample.", DECISIONS),
    (
        "duplicates_<kind>",
        "duplicates/<dataset>/<kind>/",
        "Groups of exact, perceptual or semantic duplicates: one row per sample that can have any.",
        DUPLICATES,
    ),
    (
        "frames",
        "frames/<dataset>-<level>/",
        "One row per kept clip; `dataset` is `<dataset>-<level>`.",
        FRAMES,
    ),
    (
        "candidates",
        "frames/<dataset>-<level>/",
        "The same, one row per frame that was looked at, without its picture (which is read all "
        "the same).",
        CANDIDATES,
    ),
    ("captions", "captions/<dataset>/", "One row per kept sample.", CAPTIONS),
    (
        "caption_decisions",
        "caption_decisions/<dataset>/",
        "What the rules on captions say: one row per captioned sample.",
        DECISIONS,
    ),
    ("documents", "documents/<dataset>/", "The waist: one row per document.", DOCUMENTS),
    (
        "tokens",
        "tokens/<dataset>-<level>/",
        "One row per document; `dataset` is `<dataset>-<level>`.",
        TOKENS,
    ),
    (
        "token_replicas",
        "tokens/<dataset>-<level>-r<replica>/",
        "The documents of `tokens` again, with other noise: for `tokenize.replicas` above 1.",
        TOKEN_REPLICAS,
    ),
    ("packs", "packs/<name>/…/index.parquet", "One row per pack, where it lies.", PACK_INDEX),
    (
        "pack_plan",
        "packs/<name>/…/plan/",
        "One row per copy of a document, or piece of one, that is packed or rejected.",
        PLAN,
    ),
)

DUCKDB_TYPES = {
    "string": "varchar",
    "large_binary": "blob",
    "bool": "boolean",
    "int8": "tinyint",
    "int16": "smallint",
    "int32": "integer",
    "int64": "bigint",
    "uint64": "ubigint",
    "float": "float",
    "halffloat": "float",
    "double": "double",
}

LEDGER = {
    "dataset": "the dataset",
    "sample_id": "the sample",
    "source": "as in samples",
    "key": "as in samples",
    "status": "kept, rejected or failed, after all phases so far",
    "reason": "first failing rule, `<rule>:missing`, `balance:<topic>`, or `<stage>:<type>`",
    "failed_rules": "all failing rules, in order",
    "topic": "topic used for balancing",
    "copies": "how often the sample is used; 0 unless the rules keep it",
    "failed_stage": "where it failed",
    "failed_type": "how",
    "failed_message": "why, in a line",
    "num_kept": "frames of a clip that are kept, once there are frames",
    "caption": "the caption, once there are captions",
    "doc_id": "its document (the first, where there are several), once there are documents",
    "num_tokens": "positions of its documents, once there are tokens",
}

QUERIES = (
    (
        "What became of every sample?",
        """SELECT status, reason, count(*) AS samples
FROM ledger GROUP BY ALL ORDER BY status, samples DESC""",
    ),
    (
        "What failed, where, and with which words?",
        """SELECT failed_stage, failed_type, count(*) AS samples,
  min(key) AS for_example, min(failed_message) AS message
FROM ledger WHERE failed_stage IS NOT NULL GROUP BY ALL ORDER BY samples DESC""",
    ),
    (
        "Which rules do the work, and which are the only one against a sample?",
        """SELECT rule, count(*) AS samples, count(*) FILTER (alone) AS by_it_alone
FROM (SELECT unnest(failed_rules) AS rule, len(failed_rules) = 1 AS alone FROM decisions)
GROUP BY rule ORDER BY samples DESC""",
    ),
    (
        "How many samples would other thresholds keep?",
        """SELECT threshold, count(*) FILTER (clarity > threshold) AS kept, count(clarity) AS scored
FROM scores, unnest([0.2, 0.4, 0.6, 0.8]) AS t(threshold)
GROUP BY threshold ORDER BY threshold""",
    ),
    (
        "Which files are there twice, byte by byte?",
        """SELECT sha256, count(*) AS copies, list(key ORDER BY key) AS keys
FROM scores WHERE sha256 IS NOT NULL GROUP BY sha256 HAVING copies > 1 ORDER BY copies DESC""",
    ),
    (
        "Which pictures look the same? (All pairs: for thousands of samples, not for millions.)",
        """SELECT a.key, b.key AS other, bit_count(xor(a.phash, b.phash)) AS bits_apart
FROM scores AS a JOIN scores AS b ON a.sample_id < b.sample_id
WHERE bits_apart <= 6 ORDER BY bits_apart, a.key""",
    ),
    (
        "What has balancing done to the topics?",
        """SELECT topic, count(*) AS passed_the_rules, count(*) FILTER (status = 'kept') AS kept
FROM decisions WHERE status <> 'failed' AND len(failed_rules) = 0
GROUP BY topic ORDER BY passed_the_rules DESC""",
    ),
    (
        "How long are the shots that videos are cut into?",
        """SELECT source, count(*) AS clips, min(span.end_s - span.start_s) AS shortest_s,
  median(span.end_s - span.start_s) AS typical_s, max(span.end_s - span.start_s) AS longest_s
FROM (SELECT source, unnest(spans) AS span FROM shots) GROUP BY source ORDER BY source""",
    ),
    (
        "Which motion do the clips show, and how much of it is kept?",
        """SELECT dataset, class, count(*) AS frames, count(*) FILTER (kept) AS kept,
  count(DISTINCT sample_id) AS clips
FROM candidates GROUP BY ALL ORDER BY dataset, frames DESC""",
    ),
    (
        "How long are the documents?",
        """SELECT dataset, task, count(*) AS documents, sum(num_tokens) AS positions,
  min(num_tokens) AS shortest, median(num_tokens) AS typical, max(num_tokens) AS longest
FROM tokens WHERE error IS NULL GROUP BY ALL ORDER BY ALL""",
    ),
    (
        "How even are the packs?",
        """SELECT pack_set, count(*) AS packs, sum(num_tokens) AS positions,
  avg(num_documents) AS documents_a_pack, max(cost) / avg(cost) AS largest_over_mean
FROM packs GROUP BY pack_set ORDER BY pack_set""",
    ),
    (
        "In which pack, and where in it, is a sample?",
        """SELECT l.key, p.pack_set, p.pack, p.position, i.shard, i."offset"
FROM ledger AS l JOIN pack_plan AS p USING (doc_id)
JOIN packs AS i ON i.pack_set = p.pack_set AND i.pack = p.pack
ORDER BY l.key, p.pack_set, p.copy LIMIT 20""",
    ),
    (
        "How many of the tokens drawn did self-correction change, per scale of the targets?",
        """SELECT scale, sum(sampled)::BIGINT AS drawn, sum(flipped)::BIGINT AS changed
FROM (SELECT generate_subscripts(s.sampled, 1) AS scale, unnest(s.sampled) AS sampled,
        unnest(s.flipped) AS flipped
      FROM (SELECT unnest(segments) AS s FROM tokens) WHERE s.role = 'target')
GROUP BY scale ORDER BY scale""",
    ),
)

INTRODUCTION = """\
# Tables

Written by `python -m pipelines.tables_doc` from the schemas and the operators: change those.

All tables of a workspace are views in DuckDB: `nextscale sql "…"`, or `duckdb -init catalog.sql`
from the workspace's folder. A view covers every dataset or source that has such a table, so a
column `dataset` (for packs `pack_set`) says whose row it is. Views list the files of finished
tables only: while a phase runs, its table stays as it was. Ids are unique within a table.
"""

LEDGER_HEAD = """\
## ledger

One row per dataset and sample, through all phases: every sample ends once.

| column | meaning |
|---|---|
"""

RUNS = """\
## runs

`runs/*.json` One row per run of a phase: the `table` it wrote, with its `fingerprint` and
`row_spec` (digests of what its rows, and its values, come from), the resolved `config`, `inputs`,
`rows_in`, `rows_out`, `rows_failed`, `started_unix_s`, `duration_s`, `git_commit`, `device_class`,
`num_cpus`, and the `versions` of libraries and of `python`. Phases of operators also tell `units`,
`rows_computed`, `rows_retried`, `rows_recovered`, `retry` (what was tried, stage:type), and the
workers' seconds: `load_s`, `operators_s`, `write_s`, and `cpu_s`, `gpu_s` (busy seconds times
reserved CPUs, GPUs).
"""


def document() -> str:
    """The text of infra/tables.md."""
    sections = [INTRODUCTION]
    for name, path, meaning, schema in TABLES:
        if name == "decisions":
            sections += _scores()
        sections.append(_section(name, f"`{path}` {meaning}", list(schema)))
    ledger = [f"| {column} | {meaning} |" for column, meaning in LEDGER.items()]
    sections += [LEDGER_HEAD + "\n".join(ledger) + "\n", RUNS]
    queries = [f"{question}\n\n```sql\n{sql};\n```\n" for question, sql in QUERIES]
    sections.append("## Useful queries\n\n" + "\n".join(queries))
    return "\n".join(sections)


def _scores() -> list[str]:
    meaning = (
        "`scores/<source>/<group>/` Scores come in groups, each a table with one row per sample "
        "that\nthe group saw: its scores, or its `error`. The view `scores` has one row per sample "
        "with the\ncolumns of all groups side by side, and their errors as `<group>_error`.\n"
    )
    sections = [f"## scores, scores_<group>\n\n{meaning}"]
    for group, operators in GROUPS.items():
        sections.append(_group(f"scores_{group}", operators))
    of_clips = _group("scores_cheap of clips", CLIP_SCORES)
    sections.append(of_clips + "\nScores of pictures are those over a clip's frames.\n")
    return sections


def _group(title: str, operators: tuple[Any, ...]) -> str:
    named = [
        (field, getattr(operator, "__name__", type(operator).__name__))
        for operator in operators
        for field in operator.writes
        if not is_transient(field.name)
    ]
    rows = [f"{_row(field)} {operator} |" for field, operator in named]
    head = "| column | type | unit | meaning | operator |\n|---|---|---|---|---|\n"
    return f"### {title}\n\n{head}" + "\n".join(rows) + "\n"


def _section(name: str, meaning: str, fields: list[pa.Field]) -> str:
    head = "| column | type | unit | meaning |\n|---|---|---|---|\n"
    return f"## {name}\n\n{meaning}\n\n{head}" + "\n".join(map(_row, fields)) + "\n"


def _row(field: pa.Field) -> str:
    told = {key.decode(): text.decode() for key, text in (field.metadata or {}).items()}
    cells = (field.name, _type(field.type), told["unit"], told["meaning"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(of: pa.DataType) -> str:
    """A type as DuckDB shows it, nested fields by name only."""
    if pa.types.is_list(of):
        return f"{_type(of.value_type)}[]"
    if pa.types.is_struct(of):
        return f"struct({', '.join(of.field(i).name for i in range(of.num_fields))})"
    return DUCKDB_TYPES[str(of)]


def main() -> None:
    PATH.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
