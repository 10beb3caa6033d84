"""Duplicates of a dataset: equal files, pictures that look the same, pictures that mean the same.

Each kind is a phase of its own that writes ``duplicates/<dataset>/<kind>``: the group of every row
that the gate lets through and that has a hash (or an embedding), and which row of it to keep. No
row is dropped here: rules do that, by the columns ``exact_duplicate``, ``perceptual_duplicate`` and
``semantic_duplicate``.
"""

import tempfile
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import duckdb
import pyarrow as pa

from infra import catalog, runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.schema import DUPLICATES
from infra.storage import Storage
from pipelines import duplicate_groups, near_embeddings, near_hashes, near_vectors
from pipelines.near_embeddings import Semantic
from pipelines.progress import Progress, say
from pipelines.rules import Rule, check_expression, check_rule
from pipelines.scored import ScoredPart, scores_sql

Kind = Literal["exact", "perceptual", "semantic"]

PREFER = ("width * height", "aesthetic")
KEYS: dict[Kind, str] = {"exact": "sha256", "perceptual": "phash", "semantic": "sample_id"}
VERSION = 1  # of the grouping: part of every fingerprint


@dataclass(frozen=True, kw_only=True)
class Perceptual:
    """Pictures whose perceptual hashes differ in at most ``radius`` of 64 bits.

    4 finds what is encoded, scaled or coloured anew, 8 also slight crops and thin borders; no
    radius finds mirrored, turned and well cropped ones. Pictures without any detail are all alike.
    """

    radius: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 8:
            raise ValueError(f"radius is {self.radius}: choose 0 to 8; beyond, keys are thousands")


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Which kinds of duplicates are looked for, among which rows, and which row of a group stays.

    ``gate``: SQL over scores; rows that it does not let through neither are duplicates nor have
    any, so it should ask what the rules will: else a row is dropped for one that is rejected.
    ``prefer``: SQL scores, larger first, the second decides ties of the first, and so on; NULL is
    last, then the lower sample_id wins. Of the default, what the recipe does not score is left out.
    ``memory_gb``: about what a phase may use, the rest goes to the folder for temporary files; the
    semantic search has bounds of its own (`near_embeddings`).
    """

    gate: str | None = None
    prefer: tuple[str, ...] = PREFER
    exact: bool = True
    perceptual: Perceptual | None = field(default_factory=Perceptual)
    semantic: Semantic | None = None
    memory_gb: float = 4.0

    def __post_init__(self) -> None:
        if self.memory_gb < 0.5:
            raise ValueError(f"memory_gb is {self.memory_gb}: give at least 0.5")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(kind for kind in KEYS if getattr(self, kind))

    def check(self, columns: pa.Schema) -> None:
        """Raises ConfigError before any work unless gate and preferences fit these columns."""
        if self.gate is not None:
            kind = check_expression(self.gate, columns, "duplicates.gate")
            if kind != "BOOLEAN":
                raise ConfigError(f"duplicates.gate: `{self.gate}` is {kind}, no condition")
        for expression in self.preferences(columns):
            check_rule(Rule(name="duplicates.prefer", top=1, by=expression), columns)
        if self.semantic is not None:
            near_vectors.library()
        for name in self.kinds:
            if KEYS[name] not in columns.names:
                raise ConfigError(
                    f"duplicates.{name} compares `{KEYS[name]}`, which nothing writes here: say "
                    f"`{name}: {'false' if name == 'exact' else 'null'}`"
                )

    def preferences(self, columns: pa.Schema) -> tuple[str, ...]:
        """``prefer``, less what of the default these columns do not allow."""
        if self.prefer != PREFER:
            return self.prefer
        return tuple(expression for expression in PREFER if _may_run(expression, columns))


def _may_run(expression: str, columns: pa.Schema) -> bool:
    try:
        check_expression(expression, columns, "duplicates.prefer")
    except ConfigError:
        return False
    return True


@dataclass(frozen=True)
class DuplicatesPhase:
    """One kind of duplicates of a dataset: what is looked at, and how.

    Parts are those of the dataset, with every score group that may fail a row or that gate and
    preferences name; ``embeddings``, one table a source, matter to the semantic kind only.
    """

    dataset: str
    kind: Kind
    parts: tuple[ScoredPart, ...]
    config: Duplicates
    embeddings: tuple[TableRecord, ...] = ()

    @property
    def table(self) -> str:
        return f"duplicates/{self.dataset}/{self.kind}"

    @property
    def inputs(self) -> tuple[TableRecord, ...]:
        found = {record.table: record for part in self.parts for record in part.tables}
        embeddings = self.embeddings if self.kind == "semantic" else ()
        return (*found.values(), *embeddings)

    @property
    def spec(self) -> dict[str, Any]:
        """What of the configuration this kind depends on: a new radius leaves equal files be."""
        return {
            "duplicates": self.kind,
            "gate": self.config.gate,
            "prefer": self.config.prefer,
            "near": getattr(self.config, self.kind),
            "version": VERSION,
        }

    @property
    def row_spec(self) -> str:
        # A group depends on all rows, so a row's values depend on which rows there are.
        return runs.fingerprint(runs.row_spec(self.spec, []), self.inputs)

    @property
    def fingerprint(self) -> str:
        return self.row_spec

    def embedding_path(self, part: ScoredPart) -> str:
        """The file with the embeddings of a part's samples."""
        table = f"scores/{part.place.source.name}/"
        [record] = [record for record in self.embeddings if record.table.startswith(table)]
        return record.path(part.place.part)


def find_duplicates(storage: Storage, phase: DuplicatesPhase) -> TableRecord:
    """Write ``duplicates/<dataset>/<kind>`` and return its record; skip if it is up to date.

    The record's facts: ``groups`` of two rows and more, ``copies`` in them beside the one to keep,
    the ``largest`` groups as [id, rows], and what `near_hashes.search_facts` tells. Needs no Ray.
    """
    table = phase.table
    folder = f"{table}/{runs.version_of(phase.fingerprint)}"
    old = runs.load_record(storage, table)
    if old is not None and old.fingerprint == phase.fingerprint:
        say(f"  {table:<28} up to date ({old.num_rows:,} rows)")
        storage.remove(f"{folder}/_units")  # of a run that was killed after its last step
        return old
    started = time.time()
    files = [f"{folder}/part-{number:05d}.parquet" for number in range(len(phase.parts))]
    there = {f"{folder}/{name}" for name in storage.names(folder)}
    missing = [number for number, file in enumerate(files) if file not in there]
    if missing:
        _write_parts(storage, phase, folder, files, missing)
    facts = duplicate_groups.group_facts(storage, files)
    if phase.kind == "perceptual":
        facts |= near_hashes.search_facts(storage, f"{folder}/_units")
    parts = tuple(
        Part(file.removeprefix(f"{table}/"), len(storage.read_table(file, ["representative"])))
        for file in files
    )
    record = TableRecord(table, phase.fingerprint, phase.row_spec, "sample_id", parts, facts)
    runs.finish(storage, record, phase.spec, phase.inputs, started)
    storage.remove(f"{folder}/_units")
    return record


def _write_parts(
    storage: Storage, phase: DuplicatesPhase, folder: str, files: list[str], missing: list[int]
) -> None:
    """Group all rows and write the missing parts."""
    # DuckDB has half of the memory, the search for pairs the other half.
    half = int(phase.config.memory_gb * 2**30 / 2)
    with tempfile.TemporaryDirectory(prefix="nextscale-duplicates-") as temporary:
        con = duplicate_groups.open_database(storage, temporary, half)
        preferences = phase.config.preferences(_columns(con, storage, phase))
        selects = [_members(storage, phase, part, preferences) for part in phase.parts]
        duplicate_groups.gather(con, selects, len(preferences))
        paths = _find_pairs(con, storage, phase, f"{folder}/_units", half)
        if paths:
            scans = ", ".join(catalog.literal(storage.path(path)) for path in paths)
            duplicate_groups.link(con, f"SELECT a, b FROM read_parquet([{scans}])")
        duplicate_groups.mark_copies(con)
        progress = Progress(phase.table, len(missing), "parts")
        for number in missing:
            rows = duplicate_groups.group_part(con, number, selects[number])
            storage.write_part(files[number], rows, DUPLICATES, "sample_id")
            progress.add(1)
        progress.close()
        con.close()


def _columns(con: duckdb.DuckDBPyConnection, storage: Storage, phase: DuplicatesPhase) -> pa.Schema:
    """The typed columns of the dataset; raises ConfigError unless the configuration fits them."""
    scores = scores_sql(storage, phase.parts[:1])
    columns = con.sql(f"SELECT * EXCLUDE (error) FROM ({scores}) LIMIT 0").to_arrow_table().schema
    phase.config.check(columns)
    return columns


def _members(
    storage: Storage, phase: DuplicatesPhase, part: ScoredPart, preferences: tuple[str, ...]
) -> str:
    rows = f"SELECT * FROM ({scores_sql(storage, (part,))})"
    if phase.kind == "semantic":
        file = catalog.literal(storage.path(phase.embedding_path(part)))
        embedded = f"SELECT sample_id FROM read_parquet({file}) WHERE embedding IS NOT NULL"
        rows += f" SEMI JOIN ({embedded}) USING (sample_id)"
    return duplicate_groups.members_sql(rows, KEYS[phase.kind], phase.config.gate, preferences)


def _find_pairs(
    con: duckdb.DuckDBPyConnection,
    storage: Storage,
    phase: DuplicatesPhase,
    folder: str,
    memory_bytes: int,
) -> list[str]:
    """Files with pairs of near keys, written to ``folder`` unless they are there; paths."""
    if phase.kind == "perceptual":
        assert phase.config.perceptual is not None
        radius = phase.config.perceptual.radius
        return near_hashes.find_pairs(con, storage, folder, radius, memory_bytes)
    if phase.kind == "semantic":
        assert phase.config.semantic is not None
        paths = [phase.embedding_path(part) for part in phase.parts]
        return near_embeddings.find_pairs(storage, paths, phase.config.semantic, folder)
    return []
