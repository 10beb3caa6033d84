"""How fast documents are sliced for the manifest, and what of the tokens is read for it.

    python tests/benchmarks/slices.py [documents] [seed]

Text-to-image documents of level 256 (text of 80 ids, an image, an end of text) in one Parquet part
like those of `nextscale tokenize`, random codes; and of five pictures in turn with texts, cut at a
cap that most are over. One thread.
"""

import os
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.schedules import SCHEDULES
from infra.schema import TOKENS
from infra.segments import Image, Segment, Text, count
from packing.cost import coefficients, qwen2_5_7b
from packing.slices import COLUMNS, SLICES, Slicing, slices_of

CAP = 20_480
ROWS = 1 << 14  # of a row group


def document(draw: np.random.Generator, num_images: int) -> list[Segment]:
    found: list[Segment] = []
    for _ in range(num_images):
        schedule = int(draw.integers(len(SCHEDULES)))
        codes = draw.integers(0, 16_384, (2, SCHEDULES[schedule].num_codes(12)), np.int32)
        found += [Text(draw.integers(0, 150_000, 80, np.int32), False), Image(schedule, 12, *codes)]
    return [*found, Text(np.array([151_643]), True)]


def as_row(segment: Segment) -> dict[str, object]:
    if isinstance(segment, Text):
        return {"kind": "text", "loss": segment.loss, "text_ids": segment.ids}
    return {
        "kind": "image",
        "role": segment.role,
        "loss": segment.loss,
        "schedule": segment.schedule,
        "num_scales": segment.num_scales,
        "input_codes": segment.input_codes.astype(np.uint32),
        "target_codes": segment.target_codes.astype(np.uint32),
    }


def write(path: str, draw: np.random.Generator, num_documents: int, num_images: int) -> None:
    task = "t2i" if num_images == 1 else "interleaved"
    schema = pa.schema([field.remove_metadata() for field in TOKENS])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, num_documents, ROWS):
            rows = []
            for _ in range(start, min(start + ROWS, num_documents)):
                segments = document(draw, num_images)
                row: dict[str, object] = count(segments)._asdict()
                row |= {"doc_id": draw.bytes(16).hex(), "task": task, "source": "drawn"}
                rows.append(row | {"segments": [as_row(segment) for segment in segments]})
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def num_bytes(path: str) -> tuple[int, int, int]:
    """Bytes of the file, of the columns read, and of the text ids among them."""
    metadata = pq.ParquetFile(path).metadata
    read = ids = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            size, name = column.total_compressed_size, column.path_in_schema
            if any(name == wanted or name.startswith(f"{wanted}.") for wanted in COLUMNS):
                read += size
                ids += size if "text_ids" in name else 0
    return os.path.getsize(path), read, ids


def main() -> None:
    pa.set_cpu_count(1)
    num_documents = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    draw = np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    of = coefficients(qwen2_5_7b())
    with tempfile.TemporaryDirectory() as folder:
        for name, images, rows, cap, slicing in (
            ("all whole", 1, num_documents, CAP, Slicing(drop_captions=0.0)),
            ("10% dropped", 1, num_documents, CAP, Slicing()),
            ("cut in 2", 5, num_documents // 10, 3_000, Slicing(split_at_images=True)),
        ):
            path = f"{folder}/{images}.parquet"
            if not os.path.exists(path):
                write(path, draw, rows, images)
            size, read, ids = num_bytes(path)
            start = time.perf_counter()
            tokens = pq.ParquetFile(path).read(columns=COLUMNS, use_threads=False)
            read_s = time.perf_counter() - start
            slices_of(tokens.slice(0, 9), 1, Slicing(drop_captions=1.0), cap, np.inf, of)  # warm
            middle = time.perf_counter()
            found = slices_of(tokens, 1, slicing, cap, np.inf, of)
            end = time.perf_counter()
            assert found.schema == SLICES
            print(
                f"{name:<12} {rows:,} documents, {len(found):,} slices: read "
                f"{rows / read_s:,.0f}/s, sliced {rows / (end - middle):,.0f}/s; bytes a "
                f"document {read / rows:,.0f} of {size / rows:,.0f}, {ids / rows:,.0f} of them "
                "text ids"
            )


if __name__ == "__main__":
    main()
