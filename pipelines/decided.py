"""The decisions of a dataset as they stand: the rules that made them and the scores they saw.

Rules are taken from the run's record, not from the recipe: a recipe may have changed since, or have
been overridden on the command line, and pictures of cuts must show those that were made.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import duckdb
import pyarrow as pa

from infra import runs
from infra.config import ConfigError, build
from infra.runs import TableRecord
from infra.storage import Storage
from pipelines.decide import Decide, Decision, Stage, prepare_cuts
from pipelines.inputs import dataset_parts
from pipelines.rules import Rule
from pipelines.scored import ScoredPart, scores_sql
from pipelines.source import Source


@dataclass(frozen=True)
class Arrivals:
    """The rows that reached a rule, as SQL, and the rule's failure expression over them."""

    rule: Rule
    rows: str
    failure: str
    cut: str | None  # table (score, sample_id) of a quantile's last kept row


@dataclass(frozen=True)
class Decided:
    """Decisions with what they were made from. ``stale``: the inputs have changed since."""

    storage: Storage
    dataset: str
    config: Decide
    parts: tuple[ScoredPart, ...]
    stale: bool

    @cached_property
    def scores(self) -> str:
        """SQL of all samples with the columns of all score groups, and ``error``."""
        return scores_sql(self.storage, self.parts)

    def columns(self, con: duckdb.DuckDBPyConnection) -> pa.Schema:
        """The typed columns that rules may name."""
        bare = f"SELECT * EXCLUDE (error) FROM ({self.scores}) LIMIT 0"
        return con.sql(bare).to_arrow_table().schema

    def arrivals(self, con: duckdb.DuckDBPyConnection) -> list[Arrivals]:
        """What each rule saw, in order; makes the cuts of quantiles as tables of ``con``.

        Raises ConfigError for a rule that may not run over these columns.
        """
        self.config.check(self.columns(con))  # the workspace may be somebody else's
        failures = prepare_cuts(con, self.storage, self.parts, self.config)
        found = []
        passed = "error IS NULL"
        for number, (rule, failure) in enumerate(zip(self.config.rules, failures, strict=True)):
            rows = f"SELECT * FROM ({self.scores}) WHERE {passed}"
            cut = None if rule.top is None else f"cut_{number}"
            found.append(Arrivals(rule, rows, failure, cut))
            passed += f" AND ({failure}) IS NULL"
        return found


def decided(
    storage: Storage,
    dataset: str,
    sources: tuple[Source, ...],
    stage: Stage = "decisions",
) -> Decided:
    """The decisions of ``dataset`` over these sources. Raises ConfigError where there are none."""
    record, run = _last_run(storage, dataset, stage)
    config = _config(run)
    inputs = [table.split("/") for table in run["inputs"]]
    used = tuple(source for source in sources if ["samples", source.name] in inputs)
    if not used:
        raise ConfigError(
            f"{record.table} was made from {', '.join(run['inputs'])}, none of them a source of "
            "this recipe: run `nextscale curate`"
        )
    samples = tuple(_load(storage, f"samples/{source.name}") for source in used)
    groups = {
        source.name: tuple(
            _load(storage, "/".join(table))
            for table in inputs
            if table[:2] == ["scores", source.name]
        )
        for source in used
    }
    places = dataset_parts(used, samples)
    duplicates = _of_dataset(storage, "duplicates", inputs)
    captions = _of_dataset(storage, "captions", inputs)
    parts = tuple(
        ScoredPart(place, groups[place.source.name], duplicates, captions[0] if captions else None)
        for place in places
    )
    num_parts = {source.name: len(r.parts) for source, r in zip(used, samples, strict=True)}
    aligned = [(group, num_parts[name]) for name in groups for group in groups[name]]
    aligned += [(table, len(places)) for table in (*duplicates, *captions)]
    for table, count in aligned:
        if len(table.parts) != count:
            raise ConfigError(f"{table.table} is older than its samples: run `nextscale curate`")
    stale = Decision(dataset, parts, config, stage).fingerprint != record.fingerprint
    return Decided(storage, dataset, config, parts, stale)


def rules(storage: Storage, dataset: str, stage: Stage = "decisions") -> tuple[Rule, ...]:
    """The rules that made ``<stage>/<dataset>``, in order. Raises ConfigError."""
    return _config(_last_run(storage, dataset, stage)[1]).rules


def run_of(storage: Storage, record: TableRecord) -> dict[str, Any] | None:
    """The JSON record of the run that made a table; None if it is not there any more."""
    ending = f"-{record.table.replace('/', '-')}.json"
    for name in reversed(storage.names("runs")):
        if name.endswith(ending):
            run: dict[str, Any] = storage.read_json(f"runs/{name}")
            if run["table"] == record.table and run["fingerprint"] == record.fingerprint:
                return run
    return None


def _of_dataset(storage: Storage, kind: str, inputs: list[list[str]]) -> tuple[TableRecord, ...]:
    """The dataset's tables of a kind among the inputs of a run, in their order."""
    return tuple(_load(storage, "/".join(table)) for table in inputs if table[0] == kind)


def _last_run(storage: Storage, dataset: str, stage: Stage) -> tuple[TableRecord, dict[str, Any]]:
    table = f"{stage}/{dataset}"
    record = _load(storage, table)
    run = run_of(storage, record)
    if run is None:
        raise ConfigError(
            f"{storage.path('runs')} does not say how {table} was made: remove {table} and run "
            "`nextscale curate`"
        )
    return record, run


def _load(storage: Storage, table: str) -> TableRecord:
    record = runs.load_record(storage, table)
    if record is None:
        raise ConfigError(f"{storage.path(table)} is not there: run `nextscale curate` first")
    return record


def _config(run: dict[str, Any]) -> Decide:
    tree = run["config"]["decide"]
    balance = tree["balance"]
    return build(
        Decide,
        {
            "rules": [_plain(rule) for rule in tree["rules"]],
            "balance": None if balance is None else _plain(balance),
        },
    )


def _plain(described: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in described.items() if key != "class"}
