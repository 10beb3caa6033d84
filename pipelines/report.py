"""``nextscale report RECIPE``: an HTML file that shows what became of a dataset, with pictures.

Funnel, every rule with its scores and its cut, pictures kept, rejected and just at a cut, failures,
topics, captions, tokens, packs and training, as far as the tables are there. Of clips there is a
page of filmstrips beside it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb

from infra import catalog, html, runs
from infra.runs import TableRecord
from infra.storage import Storage
from pipelines import report_tokens as later
from pipelines import stats
from pipelines.contact_sheets import PICK_ORDER, Choice, Picture, pictures
from pipelines.decided import Decided, decided
from pipelines.filmstrip import write_filmstrip
from pipelines.recipe import Recipe
from pipelines.report_cuts import rule_sections
from pipelines.train_packs import train_config
from pipelines.train_page import training_charts
from pipelines.what_if_page import write_what_if

TEMPLATES = Path(__file__).parent / "templates"
SHEET_PICTURES = 24
WHAT_IF = "-what-if.html"  # beside the report, after its name
FILMSTRIP = "-filmstrip.html"  # likewise, of clips
SHOWN = {"image": "Pictures", "video": "Clips", "text": "Texts", "interleaved": "Documents"}
EDGE_PICTURES = 6  # on either side of a cut
MAX_REASONS = 12
MAX_FAILURES = 100
FAILURES_OF_A_KIND = 10
LARGEST_GROUPS = 6  # of duplicates, by kind
GROUP_PICTURES = 4


@dataclass(frozen=True)
class Bar:
    """A step of the funnel as a bar: from ``start`` on, ``width`` wide, in percent of all seen."""

    kind: str
    name: str
    count: int
    start: float
    width: float


@dataclass(frozen=True)
class Sheet:
    """Pictures that share a fate, chosen out of ``total`` by their ids alone."""

    name: str
    total: int
    pictures: list[Picture]


@dataclass(frozen=True)
class Group:
    """Some pictures of a group of ``rows`` duplicates, the one to keep first."""

    rows: int
    pictures: list[Picture]


@dataclass(frozen=True)
class Copies:
    """Duplicates of a kind: ``groups`` of two of the ``rows`` compared and more.

    ``copies`` are in them beside those to keep. ``crowded``: comparisons that were left out.
    """

    kind: str
    rows: int
    groups: int
    copies: int
    crowded: int
    largest: list[Group]


@dataclass(frozen=True)
class Failure:
    key: str
    source: str
    stage: str
    type: str
    message: str


def write_report(recipe: Recipe, path: str | None = None, log: str | None = None) -> str:
    """Write the page to ``path`` (default: report.html in the workspace); return where it is.

    ``log`` is a trainer's log of JSON lines (default: that of the dataset's packs, if there).
    Raises ConfigError where there are no decisions yet, or no ``log`` at the path given.
    """
    storage = recipe.storage
    made = decided(storage, recipe.dataset, recipe.sources)
    path = path or storage.path("report.html")
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    what_if, filmstrip = stem + WHAT_IF, stem + FILMSTRIP
    clips = stats.frames_of(storage, recipe.dataset)
    with catalog.connect(storage) as con:
        sections = _sections(con, recipe, made, log)
    links = {"what_if": quote(what_if), "filmstrip": quote(filmstrip) if clips else None}
    page = html.render(TEMPLATES, "report.html", **links, **sections)
    write_what_if(recipe, made, os.path.join(folder, what_if))
    if clips:
        write_filmstrip(recipe, os.path.join(folder, filmstrip))
    return html.write_page(path, page)


def _sections(
    con: duckdb.DuckDBPyConnection, recipe: Recipe, made: Decided, log: str | None
) -> dict[str, Any]:
    """What the template shows."""
    storage, dataset = recipe.storage, recipe.dataset
    steps = stats.funnel(storage, dataset)
    captions = runs.load_record(storage, f"captions/{dataset}")
    tokens, packs = stats.tokens_of(storage, dataset), stats.packs_of(storage, dataset)
    training = [training_charts(found) for found in _logs(recipe, log)]

    def show(choices: list[Choice]) -> list[Picture]:
        return pictures(con, recipe.sources, dataset, choices)

    duplicates = {record.table: record for part in made.parts for record in part.duplicates}
    return {
        "dataset": dataset,
        "shown": SHOWN[recipe.media],
        "workspace": storage.path(),
        "stale": stats.STALE if made.stale else None,
        "steps": dict(steps),
        "bars": funnel_bars(steps),
        "rules": rule_sections(con, made, show, EDGE_PICTURES),
        "sheets": [
            Sheet(name, n, show(choices)) for name, n, choices in _chosen(con, storage, dataset)
        ],
        "duplicates": [_copies(con, storage, one, show) for one in duplicates.values()],
        "failures": _failures(con, storage, made),
        "topics": stats.topics(con, made),
        "captions": captions and later.caption_section(con, storage, captions),
        "tokens": [later.token_section(con, storage, record) for record in tokens],
        "packs": [later.pack_section(con, storage, record) for record in packs],
        "training": [section for section in training if section is not None],
    }


def funnel_bars(steps: list[tuple[str, int]]) -> list[Bar]:
    """The steps that count samples, each loss drawn where it is taken off what was left."""
    seen = max(steps[0][1], 1)
    bars = []
    left = 0
    for step, count in steps:
        kind, _, name = step.partition(" ")
        if step.startswith(stats.NO_SAMPLES):
            continue
        if kind in ("failed", "rejected"):
            left -= count
            start = left
        else:
            left, start = count, 0
        bars.append(Bar(kind, name, count, 100 * max(start, 0) / seen, 100 * count / seen))
    return bars


def _chosen(
    con: duckdb.DuckDBPyConnection, storage: Storage, dataset: str
) -> list[tuple[str, int, list[Choice]]]:
    """(name, samples, choice) for what is kept and for each reason of rejection, most first.

    What is kept by the decisions may be rejected later: by rules on captions, or as too small.
    """
    later = _rejected_later(storage, dataset)
    now = (
        f"SELECT sample_id, reason FROM decisions WHERE dataset = {catalog.literal(dataset)} "
        "AND status <> 'failed' "
        f"AND (status = 'rejected' OR sample_id NOT IN (SELECT sample_id FROM ({later})))"
    )
    found = []
    for word, ends in (("rejected", now), ("rejected later", later)):
        reasons = con.execute(
            f"SELECT reason, count(*) AS n FROM ({ends}) GROUP BY reason "
            "ORDER BY reason IS NOT NULL, n DESC, reason LIMIT ?",
            [MAX_REASONS + 1],
        ).fetchall()
        for reason, total in reasons:
            rows = con.execute(
                f"SELECT sample_id FROM ({ends}) WHERE reason IS NOT DISTINCT FROM ? "
                f"ORDER BY {PICK_ORDER} LIMIT ?",
                [reason, SHEET_PICTURES],
            ).fetchall()
            name = "kept" if reason is None else f"{word}: {reason}"
            found.append((name, total, [Choice(sample_id) for (sample_id,) in rows]))
    return found


def _rejected_later(storage: Storage, dataset: str) -> str:
    """SQL of samples that are kept at first, and why captions or documents reject them."""
    selects = ["SELECT sample_id, reason FROM decisions WHERE false"]
    judged = runs.load_record(storage, f"caption_decisions/{dataset}")
    documents = runs.load_record(storage, f"documents/{dataset}")
    if judged is not None:
        scan = catalog.scan(storage, judged)
        selects.append(f"SELECT sample_id, reason FROM {scan} WHERE status = 'rejected'")
    # Documents carry what frames say, but of clips that were judged some make none.
    if judged is not None or documents is None:
        for record in stats.frames_of(storage, dataset)[-1:]:
            selects.append(
                "SELECT sample_id, error.stage || ':' || error.type "
                f"FROM {catalog.scan(storage, record)} WHERE {catalog.is_rejection('error')}"
            )
    if documents is not None:
        selects.append(
            "SELECT unnest(sample_ids), error.stage || ':' || error.type "
            f"FROM {catalog.scan(storage, documents)} "
            f"WHERE {catalog.is_rejection('error')}"
        )
    return (
        f"SELECT sample_id, reason FROM ({' UNION '.join(selects)}) SEMI JOIN "
        f"(SELECT sample_id FROM decisions WHERE dataset = {catalog.literal(dataset)} "
        "AND status = 'kept') USING (sample_id)"
    )


def _copies(
    con: duckdb.DuckDBPyConnection,
    storage: Storage,
    record: TableRecord,
    show: Callable[[list[Choice]], list[Picture]],
) -> Copies:
    """A table of duplicates, with its largest groups."""
    facts = record.facts
    sizes = dict(facts["largest"][:LARGEST_GROUPS])
    members = con.execute(
        f'SELECT "group", sample_id FROM {catalog.scan(storage, record)} '
        'WHERE "group" IN (SELECT unnest($groups::VARCHAR[])) QUALIFY row_number() OVER '
        f'(PARTITION BY "group" ORDER BY NOT representative, {PICK_ORDER}) <= $pictures '
        f'ORDER BY "group", NOT representative, {PICK_ORDER}',
        {"groups": list(sizes), "pictures": GROUP_PICTURES},
    ).fetchall()
    shown = []
    for group, rows in sizes.items():
        shown.append(Group(rows, show([Choice(one) for of, one in members if of == group])))
    kind = record.table.rpartition("/")[2]
    crowded = facts.get("crowded", 0)
    return Copies(kind, record.num_rows, facts["groups"], facts["copies"], crowded, shown)


def _failures(con: duckdb.DuckDBPyConnection, storage: Storage, made: Decided) -> list[Failure]:
    """Some rows of every kind of failure, in the order of the flow."""
    tables = [f"SELECT key, source, error, sample_id FROM ({made.scores})"]
    captions = runs.load_record(storage, f"captions/{made.dataset}")
    documents = runs.load_record(storage, f"documents/{made.dataset}")
    of_samples = stats.frames_of(storage, made.dataset)[-1:]
    of_samples += [captions] if captions is not None else []
    for record in of_samples:
        tables.append(
            f"SELECT s.key, s.source, c.error, sample_id FROM {catalog.scan(storage, record)} AS c "
            "JOIN samples AS s USING (sample_id)"
        )
    later_tables: list[TableRecord] = [] if documents is None else [documents]
    for record in [*later_tables, *stats.tokens_of(storage, made.dataset)]:
        tables.append(
            "SELECT s.key, d.source, d.error, s.sample_id "
            f"FROM {catalog.scan(storage, record)} AS d "
            "JOIN samples AS s ON s.sample_id = d.sample_ids[1]"
        )
    found: list[Failure] = []
    known: set[tuple[str, str]] = set()
    for rows in tables:
        shown = con.execute(
            "SELECT key, source, error.stage, error.type, substr(error.message, 1, 1000) "
            f"FROM ({rows}) WHERE NOT {catalog.is_rejection('error')} "
            "QUALIFY row_number() OVER "
            f"(PARTITION BY error.stage, error.type ORDER BY {PICK_ORDER}) <= ? "
            f"ORDER BY error.stage, error.type, {PICK_ORDER} LIMIT ?",
            [FAILURES_OF_A_KIND, MAX_FAILURES],
        ).fetchall()
        # Failed rows are carried from table to table: each kind is shown where it arose.
        fresh = [Failure(*row) for row in shown if (row[2], row[3]) not in known]
        found += fresh
        known |= {(failure.stage, failure.type) for failure in fresh}
    return found[:MAX_FAILURES]


def _logs(recipe: Recipe, log: str | None) -> list[str]:
    """The trainer's log: the one that is named, else that of the recipe's packs if it is there."""
    if log is not None:
        return [log]
    packs = runs.load_record(recipe.storage, f"packs/{recipe.tokens_name}")
    config = None if packs is None else train_config(recipe, packs)
    found = Path(config.output) / "log.jsonl" if config is not None else None
    return [str(found)] if found is not None and found.exists() else []
