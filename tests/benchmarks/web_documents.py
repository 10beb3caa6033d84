"""Web documents on one core: what judging and making them costs beside bare decoding and scoring.

    python tests/benchmarks/web_documents.py FOLDER [--documents 60]

Pages of five paragraphs and four of the pictures in FOLDER, at level 256. CPU seconds of this
process per picture: judging (`Probe`, `Clarity`, verdicts, words), the same pictures through
`Probe` and `Clarity` alone, and making documents of what was kept. Before that a page that names
10,000 pictures, with the peak of the memory; later it holds the files of all pages.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

# Libraries read it when they are loaded.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pyarrow as pa

from infra.runs import Part, TableRecord
from infra.schema import ERROR_TYPE
from infra.storage import Storage
from operators.clarity import Clarity
from operators.probe import Probe
from operators.web_document import WebDocument
from operators.web_images import WebImages
from operators.web_text import WebText
from pipelines.inputs import SampleInput
from pipelines.source import Source
from pipelines.sources import index_phase
from pipelines.web_input import WebInput

PICTURES = 4
BATCH_ROWS = 16
PARAGRAPH = "The boats came home with the tide, and the harbour smelled of salt and tar. " * 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=60)
    args = parser.parse_args()
    names = sorted(str(p.resolve()) for p in args.folder.glob("*.[jp][pn]*g"))
    print(f"imported; peak {peak_mb():,} MB")
    many, seconds = run(samples([[names[0], *(f"{i}.png" for i in range(9_999))]]))
    print(
        f"a page of {many['num_images'][0].as_py():,} pictures: {seconds:.2f} s, "
        f"peak {peak_mb():,} MB"
    )
    pages = [
        [names[(PICTURES * page + i) % len(names)] for i in range(PICTURES)]
        for page in range(args.documents)
    ]
    rows = samples(pages)
    judged, judge_s = run(rows)
    counted = sum(judged["num_images"].to_pylist())
    kept = sum(judged["num_images_kept"].to_pylist())
    files = [[Path(name).read_bytes() for name in page] for page in pages]
    started = time.process_time()
    for data in files:
        some = {
            "bytes": pa.array(data, pa.large_binary()),
            "error": pa.nulls(len(data), ERROR_TYPE),
        }
        Clarity()(Probe()(pa.table(some)))
    bare_s = time.process_time() - started
    started = time.process_time()
    for start in range(0, len(judged), BATCH_ROWS):
        made = WebDocument()(judged.slice(start, BATCH_ROWS))
        assert made["error"].null_count == len(made)
    make_s = time.process_time() - started
    print(f"{len(pages)} pages, {counted} pictures, {kept} kept")
    print(f"judged {1e3 * judge_s / counted:.1f} ms a picture, bare {1e3 * bare_s / counted:.1f}")
    print(f"made {1e3 * make_s / kept:.1f} ms a kept picture")


def samples(pages: list[list[str]]) -> pa.Table:
    """Judgeable rows of these pages, with the files of their pictures."""
    with tempfile.TemporaryDirectory() as folder:
        root, storage = Path(folder) / "web", Storage(f"{folder}/workspace")
        root.mkdir()
        with (root / "pages.jsonl").open("w") as file:
            for names in pages:
                images = [one for name in names for one in (None, name)] + [None]
                texts = [None if image else PARAGRAPH for image in images]
                file.write(json.dumps({"texts": texts, "images": images}) + "\n")
        source = Source(name="web", kind="jsonl", media="interleaved", path=str(root))
        phase = index_phase(source)
        assert phase.prepare is not None
        phase.prepare(storage)
        indexed = phase.input.load(storage, phase.input.rows(storage, 0))
        storage.write_part("samples/web/v/part.parquet", indexed, phase.schema, phase.key)
        record = TableRecord(
            "samples/web", "", "", "sample_id", (Part("v/part.parquet", len(indexed)),), {}
        )
        given = WebInput(SampleInput(source, record), WebImages().max_images)
        return given.load(storage, given.rows(storage, 0))


def run(rows: pa.Table) -> tuple[pa.Table, float]:
    started = time.process_time()
    judge = WebImages(level=256)
    done = [
        judge(WebText(language=None)(rows.slice(start, BATCH_ROWS)))
        for start in range(0, len(rows), BATCH_ROWS)
    ]
    table = pa.concat_tables(done)
    ids = pa.array([f"d{i}" for i in range(len(table))])
    tasks = pa.array(["interleaved"] * len(table))
    table = table.append_column("doc_id", ids).append_column("task", tasks)
    return table, time.process_time() - started


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
