"""What a phase is: rows that come in, operators that annotate them, the table that they make.

A phase turns part k of its input into part k of its output; `pipelines.execution` runs it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from infra import runs
from infra.config import ConfigError
from infra.runs import TableRecord
from infra.storage import Storage

TRANSIENT = ("bytes", "image", "file", "frames", "pictures")


def is_transient(column: str) -> bool:
    """Whether a column lives inside a phase only: files, pixels and the features of towers."""
    return column in TRANSIENT or column.startswith("features:")


class Operator(Protocol):
    """Arrow table in, Arrow table out; annotate, never drop, never raise for a row."""

    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def writes(self) -> pa.Schema: ...
    def __call__(self, batch: pa.Table, /) -> pa.Table: ...


class Input(Protocol):
    """Where a phase's rows come from; picklable, so that workers read for themselves."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What `load` returns, for the check before the start."""

    @property
    def is_remote(self) -> bool:
        """Whether loading waits for a network, so that it should run ahead of the operators."""

    def rows(self, storage: Storage, part: int) -> pa.Table:
        """All rows that the output part must have, in load order, without media."""

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        """These rows with all that the operators read."""


@dataclass(frozen=True)
class Stage:
    """Operators that run together in one pool of workers, and what each worker may use."""

    operators: tuple[Operator, ...]
    workers: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch_rows: int = 64  # rows whose pixels are in memory at a time


@dataclass(frozen=True)
class Phase:
    """One arrow of the flow: which table it writes, from what, by which operators."""

    table: str
    key: str
    schema: pa.Schema
    input: Input
    num_parts: int
    stages: tuple[Stage, ...]
    spec: Mapping[str, Any]
    value_inputs: tuple[TableRecord, ...]  # their values are in our values
    row_inputs: tuple[TableRecord, ...] = ()  # they only say which rows there are
    row_filter: str | None = None  # as does a gate
    unit_rows: int = 256
    facts: dict[str, Any] = field(default_factory=dict)
    # Called once before work, with the storage; not when a phase is only looked at.
    prepare: Callable[[Storage], None] | None = None

    @property
    def row_spec(self) -> str:
        return runs.row_spec({"operators": self.operators, **self.spec}, self.value_inputs)

    @property
    def fingerprint(self) -> str:
        inputs = (*self.value_inputs, *self.row_inputs)
        return runs.fingerprint(self.row_spec, inputs, self.row_filter)

    @property
    def operators(self) -> list[Operator]:
        return [operator for stage in self.stages for operator in stage.operators]


def check_columns(phase: Phase) -> None:
    """Walk the columns through the operators; raises ConfigError naming stage and column."""
    columns = set(phase.input.columns)
    for operator in phase.operators:
        missing = [name for name in operator.reads if name not in columns]
        if missing:
            raise ConfigError(
                f"phase {phase.table}: {type(operator).__name__} reads `{missing[0]}`, which no "
                "earlier step writes: put the operator that writes it before it"
            )
        columns.update(operator.writes.names)
    for name in phase.schema.names:
        if name not in columns:
            raise ConfigError(
                f"phase {phase.table}: nothing writes its column `{name}`: add its operator"
            )


def check_weights(operators: Iterable[Operator]) -> None:
    """Weights and packages that operators would load must be there; raises ConfigError."""
    for operator in operators:
        try:
            runs.describe(operator)
        except ValueError as error:
            raise ConfigError(f"{type(operator).__name__}: {error}") from None
