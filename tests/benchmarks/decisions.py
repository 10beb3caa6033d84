"""Decisions over millions of score rows: four thresholds, two quantiles and balanced topics.

    python tests/benchmarks/decisions.py [parts] [folder]

Tables as the phases leave them, in parts of 100,000 rows, at an eighth, a quarter, half and all of
the parts; each size is decided in a process of its own, whose peak memory counts. Beside it the
same rows bare: DuckDB reads every column and sorts one score, ties by id.
"""

import hashlib
import resource
import subprocess
import sys
import tempfile
import time

from infra import catalog
from infra.runs import Part, TableRecord
from infra.schema import SAMPLES
from infra.storage import Storage
from operators.aesthetics import Aesthetics
from operators.clarity import Clarity
from operators.perceptual_hash import PerceptualHash
from operators.probe import Probe
from operators.topics import Topics
from pipelines.balance import Balance
from pipelines.decide import Decide, Decision, decide
from pipelines.inputs import dataset_parts
from pipelines.rules import Rule
from pipelines.scored import ScoredPart, score_schema
from pipelines.source import Source

PART_ROWS = 100_000
CHEAP = score_schema((Probe(), PerceptualHash(), Clarity()))
MODELS = score_schema((Probe(), Aesthetics(), Topics()), [CHEAP])
TABLES = {"samples/web": SAMPLES, "scores/web/cheap": CHEAP, "scores/web/models": MODELS}
DECIDE = Decide(
    rules=(
        Rule(name="small", keep="least(width, height) >= 256"),
        Rule(name="shape", keep="aspect BETWEEN 0.2 AND 5"),
        Rule(name="heavy", keep="file_bytes < 8000000"),
        Rule(name="unclear", top=0.7, by="clarity"),
        Rule(name="ugly", keep="aesthetic > 3"),
        Rule(name="best", top=0.5, by="aesthetic"),
    ),
    balance=Balance(target={"human": 0.2, "landscape": 0.3}, max_copies=2),
)
# i: the row's number; u1 .. u4: uniform in [0, 1). Everything else of a table is null.
VALUES = {
    "sample_id": "md5(i::VARCHAR)",
    "source": "'web'",
    "key": "'photos/' || (i // 1000) || '/' || i || '.jpg'",
    "uri": "'shard-' || (i // 10000) || '.tar'",
    "offset": "(i % 10000) * 150000",
    "length": "100000 + (u1 * 50000)::BIGINT",
    "media": "'image'",
    "caption": "'a photograph of the thing with the number ' || i",
    "metadata": '\'{"licence": "CC0"}\'',
    "format": "'jpeg'",
    "width": "(100 + u1 * 3000)::INTEGER",
    "height": "(100 + u2 * 3000)::INTEGER",
    "aspect": "(100 + u2 * 3000) / (100 + u1 * 3000)",
    "file_bytes": "(u3 * 9000000)::BIGINT",
    "bytes_per_pixel": "u3 * 4",
    "mode": "'RGB'",
    "orientation": "1",
    "sha256": "sha256(i::VARCHAR)",
    "phash": "hash(i)",
    "clarity": "u4 ** 0.5",
    "aesthetic": "2 + 5 * (u1 + u2 + u3) / 3",
    "topic": "['human', 'human', 'human', 'landscape', 'food', 'animal', 'plant', 'other']"
    "[1 + (u4 * 977)::INTEGER % 8]",
    "topic_score": "u3",
}


def write_tables(storage: Storage, parts: int) -> None:
    con = catalog.connect(storage, views=False)
    for part in range(parts):
        # Hashes of numbers: uniform, and the same whatever the threads.
        con.execute(
            "CREATE OR REPLACE TEMP TABLE drawn AS SELECT i, "
            + ", ".join(f"(hash(i, {k}) / 2.0**64) AS u{k}" for k in range(1, 5))
            + f" FROM range({part * PART_ROWS}, {(part + 1) * PART_ROWS}) AS r(i)"
        )
        for table, schema in TABLES.items():
            columns = ", ".join(f'{VALUES.get(n, "NULL")} AS "{n}"' for n in schema.names)
            rows = con.sql(f"SELECT {columns} FROM drawn").to_arrow_table()
            storage.write_part(f"{table}/part-{part:05d}.parquet", rows, schema, "sample_id")


def records(parts: int) -> list[TableRecord]:
    """The records of the tables' first parts."""
    files = tuple(Part(f"part-{part:05d}.parquet", PART_ROWS) for part in range(parts))
    names = {table: hashlib.md5(f"{table} {parts}".encode()).hexdigest() for table in TABLES}
    return [TableRecord(table, name, name, "sample_id", files) for table, name in names.items()]


def decide_parts(storage: Storage, parts: int) -> str:
    samples, *groups = records(parts)
    places = dataset_parts((Source(name="web", kind="folder", path="x"),), (samples,))
    scored = tuple(ScoredPart(place, tuple(groups)) for place in places)
    record = decide(storage, Decision(f"first-{parts}", scored, DECIDE))
    with catalog.connect(storage, views=False) as con:
        [counts] = con.execute(
            "SELECT count(*) FILTER (status = 'kept'), sum(copies) FROM "
            + catalog.scan(storage, record)
        ).fetchall()
    return "{:,} kept, {:,} copies".format(*counts)


def sort_bare(storage: Storage, parts: int) -> str:
    with catalog.connect(storage, views=False) as con:
        for record, schema in zip(records(parts), TABLES.values(), strict=True):
            columns = ", ".join(f'max("{name}")' for name in schema.names if name != "error")
            con.execute(f"SELECT {columns} FROM {catalog.scan(storage, record)}").fetchall()
        scan = catalog.scan(storage, records(parts)[-1])
        con.execute(
            f"CREATE TEMP TABLE sorted AS SELECT aesthetic, sample_id FROM {scan} "
            "ORDER BY aesthetic DESC, sample_id"
        )
        [(rows,)] = con.execute("SELECT count(*) FROM sorted").fetchall()
    return f"{rows:,} sorted"


def in_own_process(what: str, parts: int, folder: str) -> float:
    """Seconds that one of the two works takes, after its imports."""
    done = subprocess.run(
        [sys.executable, __file__, what, str(parts), folder],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds, cpu_seconds, mib, told = done.stdout.split(maxsplit=3)
    print(
        f"{what:<8} {parts * PART_ROWS:>12,} rows {float(seconds):7.1f} s "
        f"(CPU {float(cpu_seconds):6.1f} s) {float(mib):7.0f} MiB  {told.strip()}",
        flush=True,
    )
    return float(seconds)


def work(what: str, parts: int, folder: str) -> None:
    storage = Storage(folder)
    start, cpu_start = time.perf_counter(), time.process_time()
    told = {"decide": decide_parts, "bare": sort_bare}[what](storage, parts)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(seconds, cpu_seconds, peak_mib, told)


def main(parts: int = 100, folder: str = "") -> None:
    with tempfile.TemporaryDirectory() as temporary:
        storage = Storage(folder or temporary)
        start = time.perf_counter()
        if len(storage.names("scores/web/models")) < parts:
            write_tables(storage, parts)
            print(f"tables written in {time.perf_counter() - start:.0f} s")
        for part in (parts // 8, parts // 4, parts // 2, parts):
            storage.remove(f"decisions/first-{part}")
            bare = in_own_process("bare", part, storage.path())
            ours = in_own_process("decide", part, storage.path())
            print(f"ratio {ours / bare:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] in (["bare"], ["decide"]):
        work(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
