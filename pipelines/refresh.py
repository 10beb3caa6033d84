"""Bring a table up to date, whatever makes it: operators on Ray, SQL, or the planner."""

from infra.runs import TableRecord
from infra.storage import Storage
from pipelines.decide import Decision, decide
from pipelines.duplicates import DuplicatesPhase, find_duplicates
from pipelines.execution import run_phase
from pipelines.job import Retry
from pipelines.pack_tokens import PackPhase, write_packs
from pipelines.phase import Phase
from pipelines.vllm_captions import AnsweredInput, answer_with_vllm
from pipelines.work import Work

Made = Phase | DuplicatesPhase | Decision | PackPhase


def refresh(
    storage: Storage, made: Made, retry: Retry | None = None, work: Work | None = None
) -> TableRecord:
    """Make the table unless it is there, and return its record.

    ``retry`` and ``work`` are for phases of operators, see `execution.run_phase`.
    """
    if isinstance(made, Decision):
        return decide(storage, made)
    if isinstance(made, DuplicatesPhase):
        return find_duplicates(storage, made)
    if isinstance(made, PackPhase):
        return write_packs(storage, made)
    if isinstance(made.input, AnsweredInput):
        answer_with_vllm(storage, made, retry)
    return run_phase(storage, made, retry, work)
