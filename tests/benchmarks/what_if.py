"""What-if over millions of score rows: the funnel under another rule, and the data of the page.

    python tests/benchmarks/what_if.py [parts] [folder]

The tables and rules of decisions.py, in parts of 100,000 rows. Beside it a bare scan: DuckDB reads
every column of the same tables once.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable

from decisions import DECIDE, PART_ROWS, TABLES, records, write_tables

from infra import catalog
from infra.storage import Storage
from pipelines import what_if_page
from pipelines.decided import Decided
from pipelines.inputs import dataset_parts
from pipelines.scored import ScoredPart
from pipelines.source import Source
from pipelines.what_if import changed, outcome


def decided(storage: Storage, parts: int) -> Decided:
    samples, *groups = records(parts)
    places = dataset_parts((Source(name="web", kind="folder", path="x"),), (samples,))
    scored = tuple(ScoredPart(place, tuple(groups)) for place in places)
    return Decided(storage, "web", DECIDE, scored, stale=False)


def scan_bare(storage: Storage, parts: int) -> str:
    with catalog.connect(storage, views=False) as con:
        for record, schema in zip(records(parts), TABLES.values(), strict=True):
            columns = ", ".join(f'max("{name}")' for name in schema.names if name != "error")
            con.execute(f"SELECT {columns} FROM {catalog.scan(storage, record)}").fetchall()
    return "every column"


def what_if(storage: Storage, parts: int) -> str:
    made = decided(storage, parts)
    with catalog.connect(storage, views=False) as con:
        config = changed(made.config, ["aesthetic > 4"], made.columns(con))
        found = outcome(con, made, config)
    return f"{found.kept.total():,} kept, {found.copies.total():,} copies"


def page_rows(storage: Storage, parts: int) -> str:
    """The rows that a page carries, without its pictures: these have no media here."""
    made = decided(storage, parts)
    columns: what_if_page.Columns = {}
    with catalog.connect(storage, views=False) as con:
        for rule in made.config.rules:
            what_if_page._rule(con, made, rule, columns)
        share = what_if_page.MAX_ROWS / (parts * PART_ROWS)
        rows = what_if_page._rows(con, made, columns, share)
    return f"{len(rows):,} rows drawn"


def main(parts: int = 10, folder: str = "") -> None:
    with tempfile.TemporaryDirectory() as temporary:
        storage = Storage(folder or temporary)
        if len(storage.names("scores/web/models")) < parts:
            write_tables(storage, parts)
        works: tuple[Callable[[Storage, int], str], ...] = (scan_bare, what_if, page_rows)
        bare = 0.0
        for work in works:
            start, cpu_start = time.perf_counter(), time.process_time()
            told = work(storage, parts)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            bare = bare or seconds
            peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{work.__name__:<10} {parts * PART_ROWS:>12,} rows {seconds:6.1f} s "
                f"(CPU {cpu_seconds:6.1f} s), {seconds / bare:5.2f} x bare, peak so far "
                f"{peak_mib:5.0f} MiB  {told}",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
