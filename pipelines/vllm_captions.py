"""Captions by vLLM in the cluster's own processes, through `ray.data.llm`: answers before captions.

    units -> questions without an answer -> vLLM -> responses/<dataset>/… -> the caption phase

`fetch_answers` runs the questions of a caption phase through a processor and keeps the answers as
Parquet in the workspace, which every node reaches; then the phase itself runs as with any engine,
and `Caption` finds its answers in the column that `AnsweredInput` adds. So units, resume and checks
are those of all phases, and a rerun never pays twice: answers are committed file by file as they
come, a killed run loses those of the batches under way, and other rules, styles or checks ask only
what was not asked before. Answers go by sample and by a hash of the whole request.

vLLM needs GPUs and is no dependency: pip install 'ray[llm]'. Without it the tests build the
processor from a configuration for real, check its stages, and run it with these replaced that need
vLLM; they also run the whole way with Ray's HTTP processor. The engine itself is not in the tests.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from infra.runs import load_record
from infra.storage import Storage
from operators.caption import Caption
from operators.caption_answers import ANSWER
from pipelines.inputs import KeptInput
from pipelines.job import Retry
from pipelines.phase import Phase, check_columns
from pipelines.progress import say
from pipelines.responses import answered, answers_about, folder_of, keep_answers, merge_answers
from pipelines.sections import Vllm
from pipelines.vllm_engine import require_vllm, vllm_processor

WAVE_PARTS = 16
TELL_EVERY_S = 10.0


@dataclass(frozen=True)
class AnsweredInput:
    """Kept samples with the column ``answers``: what is known of the questions about each."""

    kept: KeptInput
    dataset: str
    vllm: Vllm  # how those that are not known are found out

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.kept.columns, "answers")

    @property
    def is_remote(self) -> bool:
        return self.kept.is_remote

    def folder(self, part: int) -> str:
        """Where the answers about a part's samples lie."""
        return folder_of(self.dataset, self.kept.parts[part])

    def rows(self, storage: Storage, part: int) -> pa.Table:
        return self.kept.rows(storage, part)

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        loaded = self.kept.load(storage, rows)
        answers: list[list[dict[str, Any]]] = []
        if len(rows):
            folder = self.folder(rows["_part"][0].as_py())
            answers = answers_about(storage, folder, loaded["sample_id"].to_pylist())
        return loaded.append_column("answers", pa.array(answers, pa.list_(ANSWER)))


def answer_with_vllm(storage: Storage, phase: Phase, retry: Retry | None = None) -> None:
    """`fetch_answers` by vLLM. Raises ConfigError for missing columns and too few GPUs."""
    check_columns(phase)
    if _is_done(storage, phase, retry):
        return
    caption, vllm = _caption_of(phase), _input_of(phase).vllm
    require_vllm(caption, vllm)
    fetch_answers(storage, phase, vllm_processor(caption, vllm), retry)


def fetch_answers(
    storage: Storage, phase: Phase, processor: Any, retry: Retry | None = None
) -> None:
    """Ask what a caption phase will want to know and is not known yet.

    Nothing if the phase is up to date, unless ``retry`` names some of its failed rows.
    ``processor`` maps rows of `Questions` to rows of RESPONSES with ``folder``; a question without
    an answer, of which ``__inference_error__`` tells, fails its row. Needs a Ray session.
    """
    if _is_done(storage, phase, retry):
        return
    workers = _input_of(phase).vllm.cpu_workers
    told_s = time.monotonic()
    kept = failed = 0
    message = ""
    for first in range(0, phase.num_parts, WAVE_PARTS):
        parts = range(first, min(first + WAVE_PARTS, phase.num_parts))
        # Few parts keep all workers busy too: each share of a part is a task of its own.
        shares = -(-workers // len(parts))
        tasks = [{"part": p, "share": i, "shares": shares} for p in parts for i in range(shares)]
        questions = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            Questions,
            fn_constructor_args=(storage, phase),
            batch_size=None,
            batch_format="pyarrow",
            concurrency=min(workers, len(tasks)),
        )
        answers = processor(questions).map_batches(
            keep_answers,
            fn_args=(storage,),
            batch_size=None,
            batch_format="pyarrow",
        )
        for row in answers.iter_rows():
            kept, failed = kept + row["kept"], failed + row["failed"]
            message = message or row["message"]
            if time.monotonic() - told_s > TELL_EVERY_S:
                told_s = time.monotonic()
                say(f"  {phase.table:<28} {kept:,} answers so far, {failed:,} without")
        for part in parts:
            merge_answers(storage, _input_of(phase).folder(part))
    say(f"  {phase.table:<28} {kept:,} new answers, {failed:,} without {message}".rstrip())


class Questions:
    """Makes the questions of a share of a part's rows that have no answer yet.

    Rows: folder, sample_id, key, max_tokens, and ``request``, the body of a chat completion as JSON
    with the picture in it. A picture that is two samples is asked about twice: answers are of
    samples, so that a row's do not depend on its neighbours.
    """

    def __init__(self, storage: Storage, phase: Phase) -> None:
        self.storage, self.batch_rows = storage, phase.stages[0].batch_rows
        self.input = _input_of(phase)
        self.caption = _caption_of(phase)
        self.before = phase.operators[: phase.operators.index(self.caption)]

    def __call__(self, task: pa.Table) -> Iterator[pa.Table]:
        part, share, shares = (task[name][0].as_py() for name in ("part", "share", "shares"))
        rows = self.input.rows(self.storage, part)
        folder = self.input.folder(part)
        known = answered(self.storage, folder)
        for number, start in enumerate(range(0, len(rows), self.batch_rows)):
            if number % shares == share:
                batch = self.input.kept.load(self.storage, rows.slice(start, self.batch_rows))
                yield self._questions(folder, batch, known)

    def _questions(self, folder: str, batch: pa.Table, known: set[tuple[str, str]]) -> pa.Table:
        for operator in self.before:
            batch = operator(batch)
        ids = batch["sample_id"].to_pylist()
        new = [
            {
                "folder": folder,
                "sample_id": ids[row],
                "key": key,
                "max_tokens": question.parameters["max_tokens"],
                "request": json.dumps(question.body()),
            }
            for row, key, question in self.caption.questions(batch)
            if (ids[row], key) not in known
        ]
        return pa.Table.from_pylist(new, schema=QUESTIONS)


QUESTIONS = pa.schema(
    [
        ("folder", pa.string()),
        ("sample_id", pa.string()),
        ("key", pa.string()),
        ("max_tokens", pa.int32()),
        ("request", pa.large_string()),
    ]
)


def _is_done(storage: Storage, phase: Phase, retry: Retry | None) -> bool:
    """Whether the phase's table is up to date, and no row of it is to be tried again."""
    record = load_record(storage, phase.table)
    if record is None or record.fingerprint != phase.fingerprint:
        return False
    for number, part in enumerate(record.parts):
        if retry is not None and part.num_failed:
            errors = storage.read_table(record.path(number), ["error"])["error"]
            if pc.any(retry.mask(errors)).as_py():
                return False
    return True


def _input_of(phase: Phase) -> AnsweredInput:
    assert isinstance(phase.input, AnsweredInput)
    return phase.input


def _caption_of(phase: Phase) -> Caption:
    return next(operator for operator in phase.operators if isinstance(operator, Caption))
