"""``nextscale retry RECIPE``: failed rows are tried again, alone, and what depends on them follows.

    nextscale retry web.yaml --stage load --type missing

A retry is a run of the recipe in which every table also computes its failed rows again; rows that
had not failed are taken over, and parts without a failed row stay the files that they are. Killed,
it leaves every table either as it was or retried; the same command goes on, and so does `curate`.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from infra import catalog
from infra.cluster import session
from infra.config import ConfigError
from infra.runs import TableRecord, canonical, load_record
from infra.storage import Storage
from pipelines.curate import check, curate
from pipelines.decide import Decision
from pipelines.decided import run_of
from pipelines.job import Retry
from pipelines.phase import Phase
from pipelines.progress import say
from pipelines.recipe import Recipe
from pipelines.refresh import Made, refresh
from pipelines.tokenize_documents import remove_other_replicas, tokenize_phases
from pipelines.whole_job import load, pack_phase, require_pools
from pipelines.work import Work


@dataclass(frozen=True)
class Outcome:
    """Rows of a table that had failed and were tried again, and how many now succeed."""

    table: str
    num_tried: int
    num_recovered: int


def main(
    name: str,
    overrides: Sequence[str] = (),
    what: Retry | None = None,
    address: str | None = None,
    num_cpus: int | None = None,
) -> list[Outcome]:
    """Retry what a recipe's tables hold of failed rows. Raises ConfigError before any work."""
    recipe, what = load(name, overrides), what or Retry()
    check(recipe)
    check_choice(recipe, what)
    with session(address, num_cpus, recipe.secrets):
        require_pools(recipe)
        outcomes = retry(recipe, what)
    catalog.write_catalog(recipe.storage)
    for one in outcomes:
        print(
            f"{one.table:<30} {one.num_recovered:,} of {one.num_tried:,} now succeed, "
            f"{one.num_tried - one.num_recovered:,} fail still"
        )
    if not outcomes:
        print("no failed row was tried: nothing that can be tried again has failed")
    return outcomes


def retry(recipe: Recipe, what: Retry) -> list[Outcome]:
    """Try failed rows again and bring up to date what depends on them, as far as it was made.

    Needs a Ray session, and `check_choice` before it.
    """
    outcomes: list[Outcome] = []

    def again(storage: Storage, made: Made) -> TableRecord:
        work = Work()
        record = refresh(storage, made, what, work)
        tried, recovered = work.counts["rows_retried"], work.counts["rows_recovered"]
        if tried:
            outcomes.append(Outcome(made.table, tried, recovered))
            say(f"  {made.table:<28} {recovered:,} of {tried:,} failed rows now succeed")
        return record

    if not recipe.captions.rules:
        recipe.storage.remove(f"caption_decisions/{recipe.dataset}")  # of rules that are no more
    documents = curate(recipe, run=again)
    if _made(recipe, "tokens") is not None:
        tokens = [again(recipe.storage, phase) for phase in tokenize_phases(recipe, documents)]
        remove_other_replicas(recipe)
        if _made(recipe, "packs") is not None and recipe.pack is not None:
            refresh(recipe.storage, pack_phase(recipe, *tokens))
    return outcomes


def check_choice(recipe: Recipe, what: Retry) -> None:
    """Raises ConfigError unless all that the recipe makes is there and some row failed like that.

    Only failed rows are computed in a retry: what is missing, or was made with other parameters,
    gates or rules, is a matter of `nextscale curate`.
    """
    tables: list[TableRecord] = []
    behind: dict[str, set[str]] = {}  # all that a table is made from

    def look(storage: Storage, made: Made) -> TableRecord:
        record = load_record(storage, made.table)
        step = "tokenize" if made.table.startswith("tokens/") else "curate"
        if record is None:
            raise ConfigError(f"{made.table} was never made: run `nextscale {step}` first")
        if isinstance(made, Phase):
            if record.row_spec != made.row_spec:
                raise ConfigError(
                    f"{made.table}: its parameters, or the files that it comes from, have changed, "
                    f"so that all rows would be computed: `nextscale {step}` does that"
                )
            tables.append(record)
        inputs = (*made.value_inputs, *made.row_inputs) if isinstance(made, Phase) else made.inputs
        names = {one.table for one in inputs}
        behind[made.table] = names.union(*(behind.get(name, set()) for name in names))
        if record.fingerprint != made.fingerprint and not (
            _has_settings(storage, made, record) and _waits(storage, made, behind[made.table])
        ):
            raise ConfigError(
                f"{made.table} is not up to date with its gate, its rules or what it is made from, "
                f"so that other rows would be computed, too: `nextscale {step}` does that"
            )
        return record

    documents = curate(recipe, run=look)
    if _made(recipe, "tokens") is not None:
        for phase in tokenize_phases(recipe, documents):
            look(recipe.storage, phase)
    found = failed_rows(recipe.storage, tables)
    if not any(_fits(what, stage, type_) for stage, type_ in found):
        if what == Retry() or _was_tried(recipe.storage, what):
            return  # of a retry that was killed later on: what depends on it is left to do
        there = ", ".join(f"{s}:{t} ({n:,})" for (s, t), n in sorted(found.items())) or "none"
        raise ConfigError(f"no failed row is {what} (stage:type): there are {there}")


def failed_rows(storage: Storage, tables: Sequence[TableRecord]) -> Counter[tuple[str, str]]:
    """How many rows failed, by stage and type of their error.

    A row that failed in one table fails in those after it as well and is counted once, and so is
    one that failed in several replicas. Verdicts (`infra.schema.REJECTIONS`) are no failures.
    """
    kinds: dict[str, Counter[tuple[str, str]]] = {}
    for record in tables:
        kind, _, name = record.table.partition("/")
        # Sources add up; replicas of tokens, like all that follows, fail for the same documents.
        group = name if kind == "tokens" else name.partition("/")[2]
        counts = kinds.setdefault(f"{kind}/{group}", Counter())
        for number, part in enumerate(record.parts):
            if part.num_failed:
                errors = storage.read_table(record.path(number), ["error"])["error"]
                for error in errors.filter(Retry().mask(errors)).to_pylist():
                    counts[error["stage"], error["type"]] += 1
    most: Counter[tuple[str, str]] = Counter()
    for counts in kinds.values():
        most |= counts
    return most


def _has_settings(storage: Storage, made: Made, record: TableRecord) -> bool:
    """Whether a table of all rows was made by these settings, from tables of these names.

    Of a phase, its ``row_spec`` says so.
    """
    if isinstance(made, Phase):
        return True
    run = run_of(storage, record)
    if run is None:
        return False
    spec = {"decide": made.config} if isinstance(made, Decision) else made.spec
    same = json.dumps(run["config"], sort_keys=True) == canonical(spec)
    return same and run["inputs"] == [one.table for one in made.inputs]


def _waits(storage: Storage, made: Made, behind: set[str]) -> bool:
    """Whether a retry that was killed has mended rows of ``behind`` since the table was made."""
    for name in reversed(storage.names("runs")):
        run = storage.read_json(f"runs/{name}")
        if run["table"] == made.table:
            return False
        if run["table"] in behind and run.get("retry") and run["rows_recovered"]:
            return True
    return False


def _fits(what: Retry, stage: str, type_: str) -> bool:
    return what.stage in (None, stage) and what.type in (None, type_)


def _made(recipe: Recipe, kind: str) -> TableRecord | None:
    if recipe.tokenize is None:
        return None
    return load_record(recipe.storage, f"{kind}/{recipe.tokens_name}")


def _was_tried(storage: Storage, what: Retry) -> bool:
    names = reversed(storage.names("runs"))
    return any(storage.read_json(f"runs/{name}").get("retry") == str(what) for name in names)
