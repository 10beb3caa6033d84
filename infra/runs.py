"""What has been computed, from what: completion records, run records and fingerprints.

A table lives in ``<table>/<folder>/part-00000.parquet …`` and becomes visible when its completion
record ``<table>/_table.json`` is written, last. The folder is named after the table's fingerprint,
so a table being recomputed never mixes with the one in use.

Three digests describe a table. ``row_spec`` says how a row's values come about; ``fingerprint``
says also which rows there are; ``version`` says besides which of them failed, and is what tables
made from this one build on. A phase whose ``row_spec`` is unchanged takes over the rows that it
already has and computes only the others, and those that had failed: a looser gate never pays twice.
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

import pyarrow as pa
import pyarrow.compute as pc

from infra.schema import digest
from infra.storage import Storage

LIBRARIES = (
    "numpy pyarrow ray duckdb pillow opencv-python-headless torch torchvision open-clip-torch "
    "transformers faiss-cpu rapidocr onnxruntime tiktoken py3langid"
).split()


@dataclass(frozen=True)
class Part:
    """One file of a table: name, rows, failed rows, and a digest of which failed and how."""

    file: str
    num_rows: int
    num_failed: int = 0
    failures: str = ""

    @property
    def folder(self) -> str:
        return self.file.partition("/")[0]


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

    @property
    def version(self) -> str:
        """Digest of the content: a retry may change which rows failed, under one fingerprint."""
        failures = [part.failures for part in self.parts]
        return digest(self.fingerprint, *failures) if any(failures) else self.fingerprint

    def path(self, part: int) -> str:
        return f"{self.table}/{self.parts[part].file}"


def version_of(fingerprint: str) -> str:
    """The folder of a table with this fingerprint."""
    return f"v-{fingerprint[:12]}"


def failures(key: str, failed: pa.Table) -> str:
    """Digest of the failed rows of a part, given with their ``key`` and ``error``; "" for none."""
    if not len(failed):
        return ""
    failed = failed.take(pc.sort_indices(failed[key]))
    return digest(*failed[key].to_pylist(), json.dumps(failed["error"].to_pylist()))


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
    used = {part.file for part in record.parts}
    folders = {part.folder for part in record.parts} or {version_of(record.fingerprint)}
    for name in storage.names(record.table):
        if name.startswith("v-") and name not in folders:
            storage.remove(f"{record.table}/{name}")
    storage.remove_unfinished(record.table)
    for folder in sorted(folders):
        # A retried table shares a folder with the version before it, for parts that are the same.
        for name in storage.names(f"{record.table}/{folder}") if len(folders) > 1 else ():
            if name.startswith("part-") and f"{folder}/{name}" not in used:
                storage.remove(f"{record.table}/{folder}/{name}")
        storage.remove_unfinished(f"{record.table}/{folder}")


def row_spec(spec: Mapping[str, Any], inputs: Sequence[TableRecord]) -> str:
    """Digest of all that determines a row's values: operators, parameters, input values."""
    return digest(canonical(spec), *(record.row_spec for record in inputs))


def fingerprint(row_spec: str, inputs: Sequence[TableRecord], row_filter: str | None = None) -> str:
    """Digest of the row values and of which rows there are."""
    return digest(row_spec, row_filter or "", *(record.version for record in inputs))


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
    work: Mapping[str, Any] | None = None,
) -> None:
    """Make a finished table visible and add one JSON record of the run to ``runs/``.

    ``work`` is what the run cost: counts and seconds, which are no part of the table.
    """
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
        **(work or {}),
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
