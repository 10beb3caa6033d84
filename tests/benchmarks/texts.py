"""How fast texts are indexed, read, scored and tokenised, on one core, and with how much memory.

    python tests/benchmarks/texts.py TEXT [--megabytes 1000]

Cuts the text file TEXT (any prose) into lines of JSONL until there are so many megabytes, indexes
the file piece by piece, then runs a sample of its lines through reading and every operator of
texts, in the batches of a recipe. CPU seconds of this process; the peak of its memory.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# Libraries read it when they are loaded.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pyarrow as pa

from infra.storage import Storage
from operators.language import Language
from operators.text_document import TextDocument
from operators.text_probe import TextProbe
from pipelines.source import Source
from pipelines.sources import index_phase, load_order, read_media
from tokenize_offline.extract_codes import ExtractCodes

CHARACTERS = 2_500  # of a line: about a page
SAMPLE = 4_096
BATCH_ROWS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--megabytes", type=int, default=1_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source/a.jsonl"
        write(path, args.text.read_text(encoding="utf-8"), args.megabytes)
        run(Source(name="texts", kind="jsonl", path=str(path.parent)), Storage(f"{folder}/ws"))


def write(path: Path, text: str, megabytes: int) -> None:
    """Pages of the text, each begun somewhere else, until the file is large enough."""
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while file.tell() < megabytes * 1_000_000:
            start = number * 997 % max(len(text) - CHARACTERS, 1)
            page = text[start : start + CHARACTERS]
            file.write(json.dumps({"text": page, "number": number}, ensure_ascii=False) + "\n")
            number += 1


def run(source: Source, storage: Storage) -> None:
    print(f"imported; peak {peak_mb():,} MB")
    phase = index_phase(source)
    assert phase.prepare is not None
    phase.prepare(storage)
    tables, seconds, size = [], 0.0, 0
    for part in range(phase.num_parts):
        pieces = phase.input.rows(storage, part)
        for number in range(len(pieces)):
            started = time.process_time()
            rows = phase.input.load(storage, pieces.slice(number, 1))
            seconds += time.process_time() - started
            size += sum(rows["length"].to_pylist())
            tables = [*tables, rows][-4:]  # the phase, too, lets go of what it has written
    report("index", size, seconds)
    sample = load_order(pa.concat_tables(tables)).slice(0, SAMPLE)
    batches = list(timed("read", media(source, sample)))
    batches = [b.append_column("doc_id", b["sample_id"]) for b in batches]
    for operator in (TextProbe(), Language()):
        operator(batches[0])
        list(timed(type(operator).__name__, ((b, operator(b)) for b in batches)))
    documents = list(timed("TextDocument", ((b, TextDocument()(b)) for b in batches)))
    extract = ExtractCodes()
    extract(documents[0])
    pairs = zip(batches, documents, strict=True)
    tokens = list(timed("ExtractCodes", ((b, extract(d)) for b, d in pairs)))
    count = sum(sum(t["num_tokens"].to_pylist()) for t in tokens)
    print(f"{count:,} tokens; peak {peak_mb():,} MB")


def media(source: Source, sample: pa.Table) -> Iterator[tuple[pa.Table, pa.Table]]:
    for start in range(0, len(sample), BATCH_ROWS):
        batch = read_media(source, sample.slice(start, BATCH_ROWS))
        yield batch, batch


def timed(name: str, steps: Iterator[tuple[pa.Table, pa.Table]]) -> Iterator[pa.Table]:
    """Pass on the results of the steps and print how fast they came."""
    size, started = 0, time.process_time()
    seconds = 0.0
    for batch, result in steps:
        seconds += time.process_time() - started
        size += batch["bytes"].nbytes
        yield result
        started = time.process_time()
    report(name, size, seconds)


def report(name: str, size_bytes: int, seconds: float) -> None:
    speed = size_bytes / 1e6 / seconds
    print(f"{name:<14}{speed:8.1f} MB/s  peak {peak_mb():,} MB", flush=True)


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
