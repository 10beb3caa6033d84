"""Packs as the pipeline writes them are sound: mixed, cut, without captions, in several epochs."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra import runs
from infra.runs import Part, TableRecord
from infra.schedules import SCHEDULES
from infra.schema import DECISIONS, TOKENS
from infra.segments import Image, Text, count
from infra.storage import Storage
from packing.cost import coefficients, qwen2_5_7b
from packing.packs import open_packs
from packing.plan import Packing
from packing.slices import Slicing
from pipelines.pack_phase import PackComponent, PackPhase
from pipelines.pack_tokens import write_packs
from pipelines.packed_set import find_packed
from pipelines.verify import describe, verify

FACTS = {
    "tokenizer_id": "t",
    "vocabulary_id": "v",
    "num_codes": 64,
    "text_vocab_size": 100,
    "level": 256,
}


def document(number: int, rng: np.random.Generator, task: str) -> dict[str, Any]:
    """A caption and a picture, some of several; texts are texts alone."""
    of: list[Text | Image] = []
    for _ in range(1 if number % 4 else 12):
        of.append(Text(rng.integers(0, 100, int(rng.integers(1, 25)))))
        if task == "t2i":
            schedule = int(rng.integers(len(SCHEDULES)))
            codes = rng.integers(0, 64, (2, SCHEDULES[schedule].num_codes(4)))
            of.append(Image(schedule, 4, codes[0], codes[1]))
    segments = [
        {"kind": "text", "loss": s.loss, "text_ids": s.ids.tolist()}
        if isinstance(s, Text)
        else {
            "kind": "image",
            "role": s.role,
            "loss": s.loss,
            "schedule": s.schedule,
            "num_scales": s.num_scales,
            "input_codes": s.input_codes.tolist(),
            "target_codes": s.target_codes.tolist(),
        }
        for s in of
    ]
    names = {"task": task, "source": "web", "sample_ids": [f"{task}{number}"]}
    doc_id = hashlib.md5(f"{task}{number}".encode()).hexdigest()
    return {"doc_id": doc_id, "segments": segments, **names, **count(of)._asdict()}


def write_tokens(storage: Storage, name: str, task: str, noise: int = 0) -> TableRecord:
    rng, parts = np.random.default_rng(len(task)), []
    schema = pa.schema([field.remove_metadata() for field in TOKENS])
    for part in range(2):
        rows = [document(100 * part + i, rng, task) for i in range(30)]
        for segment in (s for row in rows for s in row["segments"] if s["kind"] == "image"):
            segment["input_codes"] = [(code + noise) % 64 for code in segment["input_codes"]]
        file = f"v/part-{part:05d}.parquet"
        table = pa.Table.from_pylist(rows, schema=schema)
        storage.write_part(f"tokens/{name}/{file}", table, TOKENS, "doc_id")
        parts.append(Part(file, len(rows)))
    spec = hashlib.md5(f"{name}".encode()).hexdigest()
    record = TableRecord(f"tokens/{name}", spec, spec, "doc_id", tuple(parts), FACTS)
    runs.save_record(storage, record)
    return record


def write_decisions(storage: Storage) -> TableRecord:
    rows = [{"sample_id": f"t2i{n}", "copies": n % 3} for n in range(100)]
    schema = pa.schema([field.remove_metadata() for field in DECISIONS])
    table = pa.Table.from_pylist(rows, schema=schema)
    storage.write_part("decisions/photos/v/part-00000.parquet", table, DECISIONS, "sample_id")
    part = Part("v/part-00000.parquet", len(rows))
    record = TableRecord("decisions/photos", "d" * 32, "d" * 32, "sample_id", (part,))
    runs.save_record(storage, record)
    return record


@pytest.mark.parametrize("mixed", [False, True])
def test_packs_of_the_pipeline_are_sound(tmp_path: Path, ray_session: None, mixed: bool) -> None:
    storage = Storage(str(tmp_path))
    photos = write_tokens(storage, "photos-256", "t2i")
    replica = write_tokens(storage, "photos-256-r1", "t2i", noise=1)
    component = PackComponent("photos", photos, (replica,), (write_decisions(storage),), 2)
    components = [component]
    if mixed:
        texts = PackComponent("texts", write_tokens(storage, "texts-256", "text"), max_epochs=4)
        components = [dataclasses.replace(component, share=2.0), texts]
    packing = Packing("fixed_compute", 220, 1.2)
    of = coefficients(qwen2_5_7b(64))
    slicing = Slicing(drop_captions=0.4, split_at_images=True, seed=3)
    num_tokens = 9_000 if mixed else None
    phase = PackPhase("all", tuple(components), packing, of, slicing, num_tokens)
    record = write_packs(storage, phase)
    verified = verify(find_packed(storage, "all"))
    lines = list(describe(verified))
    assert not verified.damages.count, lines
    assert verified.totals is not None
    index = open_packs(storage.path("packs/all")).index
    assert verified.totals.num_packs == record.num_rows == len(index)
    assert verified.totals.documents == sum(index["num_documents"].to_pylist())
    assert record.facts["cut"] > 0
    assert record.facts["dropped_captions"] > 0
