"""Codes of documents on one core: images/s, where the time goes, and the memory of a large picture.

    python tests/benchmarks/extraction.py FOLDER [documents_level] [rounds]

Documents are made of the folder's pictures at ``documents_level`` (256) and tokenised at level 256.
The parts are the operator's own functions on the same pictures; what they leave over of the whole
is Python around them. CPU time, rounds interleaved. The memory is of a process of its own.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from infra import layout, pixels
from infra.pixels import Pixels
from infra.schedules import NUM_SCALES, Schedule, nearest
from infra.schema import DOCUMENTS, ERROR_TYPE, TOKENS
from operators.image_text import ImageText
from tokenize_offline import checkpoint, codes
from tokenize_offline.correction import Correction, encode
from tokenize_offline.extract_codes import ExtractCodes, _as_layout
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import to_unit

LEVEL = 256
CAPTION = "A photograph of something, in some forty words that say what is to be seen in it: " * 2


def main(folder: str, documents_level: int = LEVEL, rounds: int = 5) -> None:
    torch.set_num_threads(1)
    documents = read(Path(folder), documents_level)
    count = len(documents)
    operator, in_fours = ExtractCodes(device="cpu"), ExtractCodes(batch_rows=4, device="cpu")
    operator(documents.slice(0, 2))
    in_fours(documents.slice(0, 2))
    parts = parts_of(documents, operator)
    whole: dict[str, Callable[[], object]] = {
        "all of it": lambda: operator(documents),
        "batches of 4": lambda: in_fours(documents),
    }
    seconds: dict[str, list[float]] = {name: [] for name in whole | parts}
    for _ in range(rounds):
        for name, part in (whole | parts).items():
            start = process_time()
            part()
            seconds[name].append((process_time() - start) / count)
    times = {name: statistics.median(values) for name, values in seconds.items()}
    times["self-correction"] = times.pop("quantiser, corrected") - times["quantiser"]
    all_of_it = times.pop("all of it")
    print(f"{count} pictures of level {documents_level} at level {LEVEL}, median of {rounds}")
    print(f"  {1 / all_of_it:.1f} images/s a core, {1 / times.pop('batches of 4'):.1f} in fours")
    times["all else"] = all_of_it - sum(times.values())
    for name, spent in times.items():
        print(f"  {name:16} {spent * 1e3:7.2f} ms a picture  {spent / all_of_it:6.1%}")
    for level, num_codes in ((256, 4096), (1024, 4096), (1024, 32_768)):
        with get_context("spawn").Pool(1) as pool:
            before, after = pool.apply(peak_memory, (level, num_codes))
        print(f"  level {level}, {num_codes} codes: {before} MB loaded, at most {after} MB")


def parts_of(documents: pa.Table, operator: ExtractCodes) -> dict[str, Callable[[], object]]:
    """What the operator does, function by function, each over all pictures."""
    segments = [segment for row in documents["segments"].to_pylist() for segment in row]
    files = [segment["image"] for segment in segments if segment["kind"] == "image"]
    texts = [segment["text"] for segment in segments if segment["kind"] == "text"]
    stored = [pixels.decode(data).rgb for data in files]
    pictures = [codes.read_stored(data, LEVEL) for data in files]
    tokenizer, words = operator._tokenizer, operator._text
    quantizer, num_scales = tokenizer.quantizer, NUM_SCALES[LEVEL]

    def reduce(rgb: Pixels, schedule: Schedule) -> Pixels:
        return codes.reduce_by_area(rgb, len(rgb) // schedule.image_size(LEVEL)[0])

    with torch.inference_mode():
        features = [tokenizer.features(to_unit([rgb])) for _, rgb in pictures]

    def corrected(correction: Correction) -> None:
        with torch.inference_mode():
            for number, (schedule, _) in enumerate(pictures):
                grids = schedule.grids[:num_scales]
                encode(quantizer, features[number], grids, [str(number)], correction)

    def encoder() -> None:
        with torch.inference_mode():
            for _, rgb in pictures:
                tokenizer.features(to_unit([rgb]))

    made: list[list[dict[str, Any]]] = operator(documents)["segments"].to_pylist()
    for segment in (segment for document in made for segment in document):
        for name in ("input_codes", "target_codes", "sampled", "flipped"):
            if segment[name] is not None:
                segment[name] = np.array(segment[name], np.uint32)

    def assemble() -> None:
        for document in made:
            layout.count(map(_as_layout, document))
        pa.array(made, TOKENS.field("segments").type)

    return {
        "read documents": lambda: documents["segments"].to_pylist(),
        "decode": lambda: [pixels.decode(data) for data in files],
        "reduce": lambda: [reduce(rgb, of) for rgb, (of, _) in zip(stored, pictures, strict=True)],
        "texts": lambda: [words.encode(text) for text in texts],
        "encoder": encoder,
        "quantiser": lambda: corrected(Correction(rate=0.0)),
        "quantiser, corrected": lambda: corrected(operator.corrections["target"]),
        "Arrow and counts": assemble,
    }


def peak_memory(level: int, num_codes: int) -> tuple[int, int]:
    """Most MB of this process before and after one square picture of this level was tokenised.

    The network has the carried one's shape and so many codes, with random weights.
    """
    torch.set_num_threads(1)
    schedule = nearest(1, 1)
    size = schedule.image_size(level)
    noise = torch.randint(0, 256, (*size, 3), dtype=torch.uint8).numpy()
    tokenizer = Tokenizer(replace(checkpoint.read_settings(), num_codes=num_codes))
    before = high_water_mb()
    codes.extract(tokenizer, [noise], ["noise"], schedule, NUM_SCALES[level], Correction())
    return before, high_water_mb()


def high_water_mb() -> int:
    """Most memory that this process has had (getrusage counts its parent's as well)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def read(folder: Path, level: int) -> pa.Table:
    """Documents of the folder's pictures that are large enough."""
    files = [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()]
    count = len(files)
    columns = {
        "doc_id": [f"{i:04d}" for i in range(count)],
        "sample_id": [f"{i:04d}" for i in range(count)],
        "task": ["t2i"] * count,
        "source": ["folder"] * count,
        "text": [CAPTION] * count,
        "bytes": pa.array(files, pa.large_binary()),
        "error": pa.nulls(count, ERROR_TYPE),
    }
    made = ImageText(level)(pa.table(columns))
    made = made.filter(made["error"].is_null())
    return made.select([name for name in DOCUMENTS.names if name in made.column_names])


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
