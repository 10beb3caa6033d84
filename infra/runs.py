"""What has been computed, from what: completion records, run records and fingerprints.

A table lives in ``<table>/<version>/part-00000.parquet …`` and becomes visible when its completion
record ``<table>/_table.json`` is written, last. The version is named after the table's fingerprint,
so a table being recomputed never mixes with the one in use.

Two digests describe a table. ``row_spec`` says how a row's values come about; ``fingerprint`` says
also which rows there are. A phase whose ``row_spec`` is unchanged takes over the rows that it
already has and computes only the others: a looser gate never pays twice.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from infra.schema import digest
from infra.storage import Storage

LIBRARIES = (
    "numpy pyarrow ray duckdb pillow opencv-python-headless torch torchvision open-clip-torch "
    "transformers"
).split()


@dataclass(frozen=True)
class Part:
    """One file of a table: name, rows and failed rows."""

    file: str
    num_rows: int
    num_failed: int = 0


@dataclass(frozen=True)
class TableRecord:
    """The completion record of a table: the list of its files is the table."""

    table: str
    fingerprint: str
    row_spec: str
    key: str
    parts: tuple[Part, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts)

    @property
    def num_failed(self) -> int:
        return sum(part.num_failed for part in self.parts)

    def path(self, part: int) -> str:
        return f"{self.table}/{self.parts[part].file}"


def version_of(fingerprint: str) -> str:
    return f"v-{fingerprint[:12]}"


def load_record(storage: Storage, table: str) -> TableRecord | None:
    """The record of a complete table, or None."""
    try:
        raw = storage.read_json(f"{table}/_table.json")
    except FileNotFoundError:
        return None
    raw["parts"] = tuple(Part(**part) for part in raw["parts"])
    return TableRecord(**raw)


def save_record(storage: Storage, record: TableRecord) -> None:
    """Make a finished table visible, then drop what it replaces and what killed runs left."""
    storage.write_json(f"{record.table}/_table.json", asdict(record))
    for name in storage.names(record.table):
        if name.startswith("v-") and name != version_of(record.fingerprint):
            storage.remove(f"{record.table}/{name}")
    for folder in (record.table, f"{record.table}/{version_of(record.fingerprint)}"):
        storage.remove_unfinished(folder)


def row_spec(spec: Mapping[str, Any], inputs: Sequence[TableRecord]) -> str:
    """Digest of all that determines a row's values: operators, parameters, input values."""
    return digest(canonical(spec), *(record.row_spec for record in inputs))


def fingerprint(row_spec: str, inputs: Sequence[TableRecord], row_filter: str | None = None) -> str:
    """Digest of the row values and of which rows there are."""
    return digest(row_spec, row_filter or "", *(record.fingerprint for record in inputs))


def canonical(value: Any) -> str:
    """A JSON text that is equal for equal specifications."""
    return json.dumps(describe(value), sort_keys=True)


def describe(value: Any) -> Any:
    """Plain JSON values for a specification; operators become class, version and parameters.

    An operator with weights has an ``identity``: the hash of the weights it would load. Parameters
    that change how and not what it computes (paths, timeouts) are named in its ``not_in_output``.
    """
    if is_dataclass(value) and not isinstance(value, type):
        left_out = getattr(value, "not_in_output", ())
        described = {
            f.name: describe(getattr(value, f.name))
            for f in fields(value)
            if f.name not in left_out
        }
        described["class"] = type(value).__name__
        for extra in ("version", "identity"):
            if hasattr(value, extra):
                described[extra] = getattr(value, extra)
        return described
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"cannot describe {type(value).__name__} in a fingerprint")


def finish(
    storage: Storage,
    record: TableRecord,
    spec: Mapping[str, Any],
    inputs: Sequence[TableRecord],
    started_unix_s: float,
) -> None:
    """Make a finished table visible and add one JSON record of the run to ``runs/``."""
    save_record(storage, record)
    name = f"{int(started_unix_s * 1000):013d}-{record.table.replace('/', '-')}.json"
    run = {
        "table": record.table,
        "fingerprint": record.fingerprint,
        "row_spec": record.row_spec,
        "config": describe(spec),
        "inputs": [r.table for r in inputs],
        "rows_in": inputs[0].num_rows if inputs else None,
        "rows_out": record.num_rows,
        "rows_failed": record.num_failed,
        "started_unix_s": started_unix_s,
        "duration_s": time.time() - started_unix_s,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "device_class": f"{platform.machine()} {'cuda' if 'cuda' in canonical(spec) else 'cpu'}",
        "num_cpus": os.cpu_count(),
        "versions": _versions(),
    }
    storage.write_json(f"runs/{name}", run)


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    root = Path(__file__).parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
