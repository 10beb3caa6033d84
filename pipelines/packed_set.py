"""A set of packs of a workspace, and the phase that made it, as the record of its run says.

What was packed is the phase's tables and decisions: their versions are in its fingerprint, so that
an equal one proves that they are still those.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from infra import runs
from infra.config import ConfigError, build
from infra.runs import TableRecord
from infra.storage import Storage
from packing.cost import Coefficients
from packing.plan import Packing
from packing.slices import Slicing
from pipelines.decided import run_of
from pipelines.pack_phase import PackComponent, PackPhase

T = TypeVar("T")


@dataclass(frozen=True)
class PackedSet:
    """A set of packs of the workspace, with the phase that made it."""

    storage: Storage
    record: TableRecord
    phase: PackPhase

    @property
    def folder(self) -> str:
        return f"{self.record.table}/{self.record.parts[0].folder}"

    @property
    def plan(self) -> list[str]:
        """The files of the plan."""
        files: list[str] = self.record.facts["plan"]
        return files

    @property
    def is_limited(self) -> bool:
        """Whether documents are left out for a quota: of several components, or of all tokens."""
        return len(self.phase.components) > 1 or self.phase.num_tokens is not None


def find_packed(storage: Storage, name: str) -> PackedSet:
    """The packs ``packs/<name>``. Raises ConfigError, in one line, unless they can be verified."""
    table = f"packs/{name.removeprefix('packs/')}"
    record = runs.load_record(storage, table)
    if record is None:
        raise ConfigError(
            f"{storage.path(table)} is not there: name a table of packs of the workspace, or "
            "another one with --workspace"
        )
    run = run_of(storage, record)
    if run is None:
        raise ConfigError(
            f"{storage.path('runs')} does not say how {table} was made: what cannot be known "
            "cannot be verified, run `nextscale pack`"
        )
    if "components" not in run["config"]:
        raise ConfigError(f"{table} was made by an earlier version: run `nextscale pack`")
    phase = _phase(storage, table, run["config"])
    if phase.fingerprint != record.fingerprint:
        raise ConfigError(
            f"{', '.join(sorted({one.table for one in phase.inputs}))}: one of these has been made "
            f"anew since {table} was packed from it: run `nextscale pack`, or `nextscale mix`"
        )
    return PackedSet(storage, record, phase)


def _phase(storage: Storage, table: str, config: dict[str, Any]) -> PackPhase:
    """The phase of a run's record, over the tables that are there now."""

    def load(name: str) -> TableRecord:
        record = runs.load_record(storage, name)
        if record is None:
            raise ConfigError(f"{table} was packed from {name}, which is not there any more")
        return record

    def built(cls: type[T], name: str) -> T:
        said = config[name]
        return build(cls, {key: value for key, value in said.items() if key != "class"})

    components = []
    for said in config["components"]:
        tokens, *replicas = map(load, said["tables"])
        decisions = tuple(map(load, said["decisions"]))
        more = {key: said[key] for key in ("copies", "share", "max_epochs")}
        components.append(
            PackComponent(
                said["name"], tokens, tuple(replicas), decisions, tasks=tuple(said["tasks"]), **more
            )
        )
    return PackPhase(
        table.removeprefix("packs/"),
        tuple(components),
        built(Packing, "packing"),
        built(Coefficients, "coefficients"),
        built(Slicing, "slicing"),
        config["num_tokens"],
    )
