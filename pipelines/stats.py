"""``nextscale stats RECIPE``: what became of every sample, and how its scores are distributed.

Aggregates only, computed by DuckDB; no table comes into this process.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from infra import catalog, runs
from infra.catalog import quote
from infra.runs import TableRecord
from infra.storage import Storage
from pipelines import decided as decisions
from pipelines.charts import number
from pipelines.class_counts import class_counts
from pipelines.decided import Decided
from pipelines.recipe import Recipe

NO_SAMPLES = ("frames ", "tokens ", "packs ")
"""Beginnings of steps of the funnel that count other things than samples."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Distribution:
    """A numeric score over the samples that did not fail; ``quantiles`` are approximate."""

    column: str
    low: float | None
    quantiles: tuple[float, ...]
    high: float | None
    missing: int


@dataclass(frozen=True)
class TopicCount:
    """Samples of a topic that passed all rules, that are left after balancing, and their copies.

    Shares are of all samples that passed and have a topic, and of all their copies.
    """

    topic: str
    passed: int
    share_passed: float
    kept: int
    copies: int
    share_copies: float


def funnel(storage: Storage, dataset: str) -> list[tuple[str, int]]:
    """(step, count) of a dataset, in the order of the flow; every step is named once.

    ``seen`` samples are ``failed <stage>:<type>``, ``rejected <rule>`` by the first rule that each
    fails, or ``kept``; what is kept may still have ``failed later <stage>:<type>`` (or be
    ``rejected later``, see `infra.schema.REJECTIONS`), else it makes ``documents``. Of clips,
    ``frames <table>`` counts kept frames; ``tokens <table>`` counts positions and ``packs <table>``
    packs. Raises ConfigError where there are no decisions.
    """
    rules = [rule.name for rule in decisions.rules(storage, dataset)]
    made = _records(storage, dataset)
    scan = catalog.scan(storage, made["decisions"][0])
    with catalog.connect(storage, views=False) as con:
        ends = con.execute(
            f"SELECT status, reason, count(*) AS n FROM {scan} GROUP BY ALL ORDER BY n DESC, reason"
        ).fetchall()
        later = _later_steps(con, storage, made)
    return steps_of(rules, ends) + later


def steps_of(
    rules: Sequence[str], ends: Sequence[tuple[str, str | None, int]]
) -> list[tuple[str, int]]:
    """The funnel's steps up to what is kept: (status, reason, count) of DECISIONS, most first."""
    steps = [("seen", sum(count for *_, count in ends))]
    steps += [(f"failed {reason}", n) for status, reason, n in ends if status == "failed"]
    rejected = {reason or "": n for status, reason, n in ends if status == "rejected"}
    balanced = sum(n for reason, n in rejected.items() if reason.startswith("balance:"))
    for rule in rules:
        steps.append((f"rejected {rule}", rejected.get(rule, 0)))
        if f"{rule}:missing" in rejected:
            steps.append((f"rejected {rule}:missing", rejected[f"{rule}:missing"]))
    if balanced:
        steps.append(("rejected balance", balanced))
    steps.append(("kept", sum(n for status, _, n in ends if status == "kept")))
    return steps


def _later_steps(
    con: duckdb.DuckDBPyConnection, storage: Storage, made: dict[str, list[TableRecord]]
) -> list[tuple[str, int]]:
    steps: list[tuple[str, int]] = []
    known: set[str] = set()

    def losses(record: TableRecord, name: str) -> None:
        found = con.execute(
            f"SELECT if({catalog.is_rejection('error')}, 'rejected', 'failed') AS word, "
            "error.stage || ':' || error.type AS reason, count(*) AS n "
            f"FROM {catalog.scan(storage, record)} WHERE error IS NOT NULL "
            "GROUP BY word, reason ORDER BY n DESC, reason"
        ).fetchall()
        steps.extend((f"{word} {name} {why}", n) for word, why, n in found if why not in known)
        known.update(why for _, why, _ in found)

    # A failed row is carried from table to table: documents know all failures of captions.
    # Where captions were judged, those that failed make no documents.
    for record in made["captions"] if made["caption_decisions"] else ():
        losses(record, "later")
    for record in made["caption_decisions"]:
        rejected = con.execute(
            f"SELECT reason, count(*) AS n FROM {catalog.scan(storage, record)} "
            "WHERE status = 'rejected' GROUP BY reason ORDER BY n DESC, reason"
        ).fetchall()
        steps += [(f"rejected later {reason}", n) for reason, n in rejected]
    for record in made["documents"] or made["captions"] or made["frames"][-1:]:
        losses(record, "later")
    for record in made["frames"]:
        scan = catalog.scan(storage, record)
        [(total,)] = con.execute(f"SELECT coalesce(sum(num_kept), 0) FROM {scan}").fetchall()
        steps.append((record.table.replace("/", " ", 1), int(total)))
    for record in made["documents"]:
        steps.append(("documents", record.num_rows - record.num_failed))
    carried = set(known)
    for record in made["tokens"]:
        known = set(carried)
        losses(record, record.table)
        [(total,)] = con.execute(
            f"SELECT coalesce(sum(num_tokens), 0) FROM {catalog.scan(storage, record)} "
            "WHERE error IS NULL"
        ).fetchall()
        steps.append((record.table.replace("/", " ", 1), int(total)))
    return steps + [(p.table.replace("/", " ", 1), p.num_rows) for p in made["packs"]]


def _records(storage: Storage, dataset: str) -> dict[str, list[TableRecord]]:
    """The complete tables of a dataset by kind; packs belong to it by their run's inputs."""
    found = {}
    for kind in ("decisions", "captions", "caption_decisions", "documents"):
        record = runs.load_record(storage, f"{kind}/{dataset}")
        found[kind] = [] if record is None else [record]
    found["frames"] = frames_of(storage, dataset)
    found["tokens"] = tokens_of(storage, dataset)
    found["packs"] = packs_of(storage, dataset)
    return found


def frames_of(storage: Storage, dataset: str) -> list[TableRecord]:
    """The complete tables ``frames/<dataset>-<level>``, the lowest level first."""
    return _by_level(storage, "frames", dataset)


def tokens_of(storage: Storage, dataset: str) -> list[TableRecord]:
    """The complete tables ``tokens/<dataset>-<level>``; no replicas, which are as long."""
    return _by_level(storage, "tokens", dataset)


def _by_level(storage: Storage, kind: str, dataset: str) -> list[TableRecord]:
    names = [name.rpartition("-") for name in storage.names(kind)]
    levels = [level for of, _, level in names if of == dataset and level.isdigit()]
    records = [
        runs.load_record(storage, f"{kind}/{dataset}-{level}") for level in sorted(levels, key=int)
    ]
    return [record for record in records if record is not None]


def packs_of(storage: Storage, dataset: str) -> list[TableRecord]:
    """The complete packs that were made from the tokens of a dataset, by name."""
    tables = {record.table for record in tokens_of(storage, dataset)}
    found = []
    for name in storage.names("packs"):
        record = runs.load_record(storage, f"packs/{name}")
        if record is None:
            continue
        run = decisions.run_of(storage, record)
        if run is not None and tables & set(run["inputs"]):
            found.append(record)
    return found


def distributions(con: duckdb.DuckDBPyConnection, made: Decided) -> list[Distribution]:
    """Every numeric score of a dataset, in one scan."""
    names = [f.name for f in made.columns(con) if _is_quantity(f.type)]
    if not names:
        return []
    # Quantiles by t-digest: exact ones would hold every value of every column in memory.
    wanted = ", ".join(
        f"min({name}), approx_quantile({name}, {list(QUANTILES)}), max({name}), "
        f"count(*) - count({name})"
        for name in map(quote, names)
    )
    [row] = con.execute(f"SELECT {wanted} FROM ({made.scores}) WHERE error IS NULL").fetchall()
    cells = [row[i : i + 4] for i in range(0, len(row), 4)]
    return [
        Distribution(name, low, tuple(quantiles or ()), high, missing)
        for name, (low, quantiles, high, missing) in zip(names, cells, strict=True)
    ]


def topics(con: duckdb.DuckDBPyConnection, made: Decided) -> list[TopicCount]:
    """Topics before and after balancing, the most frequent first; at most 100."""
    record = runs.load_record(made.storage, f"decisions/{made.dataset}")
    assert record is not None
    if made.config.balance is not None:
        rows = (
            "SELECT topic, (status = 'rejected' AND NOT starts_with(reason, 'balance:')) AS out, "
            f"status, copies FROM {catalog.scan(made.storage, record)} WHERE status <> 'failed'"
        )
    elif "topic" in made.columns(con).names:
        rows = (
            "SELECT s.topic, d.status = 'rejected' AS out, d.status, d.copies "
            f"FROM ({made.scores}) AS s JOIN {catalog.scan(made.storage, record)} AS d "
            "USING (sample_id) WHERE d.status <> 'failed'"
        )
    else:
        return []
    counts = con.execute(
        "SELECT topic::VARCHAR AS topic, count(*) AS passed, passed / sum(passed) OVER (), "
        "count(*) FILTER (status = 'kept') AS kept, sum(copies)::BIGINT AS used, "
        f"coalesce(used / nullif(sum(used) OVER (), 0), 0) FROM ({rows}) "
        "WHERE topic IS NOT NULL AND NOT out GROUP BY topic ORDER BY passed DESC, topic LIMIT 100"
    ).fetchall()
    return [TopicCount(*row) for row in counts]


def _is_quantity(type_: pa.DataType) -> bool:
    # 64 unsigned bits are a hash.
    number = pa.types.is_integer(type_) or pa.types.is_floating(type_)
    return number and type_ != pa.uint64()


def print_funnel(recipe: Recipe) -> None:
    """Print what became of the recipe's samples. Raises ConfigError."""
    for line in funnel_lines(funnel(recipe.storage, recipe.dataset)):
        print(line)


def print_stats(recipe: Recipe) -> None:
    """Print funnel, distributions and topics of the recipe's dataset. Raises ConfigError."""
    for line in stats_lines(recipe):
        print(line)


def stats_lines(recipe: Recipe) -> Iterable[str]:
    storage = recipe.storage
    made = decisions.decided(storage, recipe.dataset, recipe.sources)
    steps = funnel(storage, recipe.dataset)
    with catalog.connect(storage, views=False) as con:
        scores, counts = distributions(con, made), topics(con, made)
    frames = [(one.table, class_counts(storage, one)) for one in frames_of(storage, recipe.dataset)]
    yield f"dataset {recipe.dataset} in {storage.path()}"
    if made.stale:
        yield STALE
    yield ""
    yield from funnel_lines(steps)
    yield ""
    heads = ("score", "min", *(f"~{q:.0%}" for q in QUANTILES), "max", "missing")
    cells = [
        (d.column, *map(number, (d.low, *(d.quantiles or (None,) * 5), d.high)), f"{d.missing:,}")
        for d in scores
    ]
    yield from table(heads, cells)
    for name, classes in frames:
        yield ""
        heads = (name, "candidates", "kept", "share kept")
        yield from table(
            heads,
            [
                (c.class_, f"{c.candidates:,}", f"{c.kept:,}", f"{c.kept / c.candidates:.1%}")
                for c in classes
            ],
        )
    if counts:
        yield ""
        heads = ("topic", "passed the rules", "share", "kept", "copies", "share")
        shown = [
            (
                t.topic,
                f"{t.passed:,}",
                f"{t.share_passed:.1%}",
                f"{t.kept:,}",
                f"{t.copies:,}",
                f"{t.share_copies:.1%}",
            )
            for t in counts
        ]
        yield from table(heads, shown)


def funnel_lines(steps: Sequence[tuple[str, int]]) -> list[str]:
    """The funnel as text columns; frames, positions and packs have no share of the samples."""
    seen = max(steps[0][1], 1)
    rows = [
        (step, f"{n:,}", "" if step.startswith(NO_SAMPLES) else f"{n / seen:.1%}")
        for step, n in steps
    ]
    return table(("step", "count", "of seen"), rows)


STALE = "note: samples or scores have changed since these decisions: run `nextscale curate`"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: bool = True) -> list[str]:
    """Text columns: the first to the left, the others to the right unless they are texts, too."""
    shown = [[" ".join(str(cell).split())[:60] for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(heads))]
    return [
        "  ".join(
            cell.rjust(width) if i and right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]
