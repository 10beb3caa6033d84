"""Bring a table up to date, whatever makes it: operators on Ray, rules in SQL, or the planner."""

from infra.runs import TableRecord
from infra.storage import Storage
from pipelines.decide import Decision, decide
from pipelines.execution import run_phase
from pipelines.pack_tokens import PackPhase, write_packs
from pipelines.phase import Phase

Made = Phase | Decision | PackPhase


def refresh(storage: Storage, made: Made) -> TableRecord:
    """Make the table unless it is there, and return its record."""
    if isinstance(made, Decision):
        return decide(storage, made)
    if isinstance(made, PackPhase):
        return write_packs(storage, made)
    return run_phase(storage, made)
