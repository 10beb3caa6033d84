"""``nextscale status RECIPE``: which phases are done, stale or missing, and why."""

from dataclasses import dataclass
from typing import Protocol

from infra import runs
from infra.runs import TableRecord
from infra.storage import Storage


class Described(Protocol):
    """A phase of any kind: which table it writes, and from what."""

    @property
    def table(self) -> str: ...
    @property
    def row_spec(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


class NotDoneError(Exception):
    """A phase that later ones wait for; ends the walk."""


@dataclass(frozen=True)
class State:
    """How a table stands: done, stale, partial or missing, and the reason."""

    table: str
    state: str
    why: str


@dataclass(frozen=True)
class Look:
    """Stands in for running a phase: notes how its table stands and goes on if it is complete."""

    states: list[State]

    def __call__(self, storage: Storage, phase: Described) -> TableRecord:
        record = runs.load_record(storage, phase.table)
        self.states.append(describe(storage, phase, record))
        if record is None or record.fingerprint != phase.fingerprint:
            raise NotDoneError(phase.table)
        return record


def describe(storage: Storage, phase: Described, record: TableRecord | None) -> State:
    """Compare a phase with the table that is there."""
    folder = f"{phase.table}/{runs.version_of(phase.fingerprint)}"
    begun = [name for name in storage.names(folder) if name.startswith("part-")]
    units = storage.names(f"{folder}/_units")
    if record is not None and record.fingerprint == phase.fingerprint:
        failed = f", {record.num_failed:,} failed" if record.num_failed else ""
        used = {part.folder for part in record.parts}
        names = storage.names(phase.table) if record.num_failed else []
        if any(name.startswith("v-") and name not in used for name in names):
            failed += ", a retry is half done"
        return State(phase.table, "done", f"{record.num_rows:,} rows{failed}")
    if begun or units:
        return State(phase.table, "partial", f"{len(begun)} parts and {len(units)} units are there")
    if record is None:
        return State(phase.table, "missing", "never run")
    if record.row_spec == phase.row_spec:
        return State(phase.table, "stale", "other rows come in: only these will be computed")
    return State(phase.table, "stale", "its parameters or its input have changed")
