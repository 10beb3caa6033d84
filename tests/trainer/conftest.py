"""Packs of made-up documents, and a tiny run over them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.layout import Image, Text
from infra.schedules import SCHEDULES
from packing.cost import Coefficients
from packing.members import Document
from packing.reader import Facts
from packing.shards import shard_name, write_shard
from trainer.config import ModelConfig, TrainConfig

TINY = ModelConfig(hidden_size=48, intermediate_size=64, num_layers=2, num_heads=4,
                   num_kv_heads=2, head_dim=16, mrope_sections=(2, 3, 3))  # fmt: skip
SCALES, NUM_CODES, TEXT_SIZE = 4, 40, 30


def _write_packs(folder: Path, num_packs: int = 6, seed: int = 0) -> Path:
    """Packs that use a quarter of the codes, a third of the text ids; the last holds no image."""
    rng = np.random.default_rng(seed)

    def document(name: str, with_image: bool) -> Document:
        schedule = int(rng.integers(len(SCHEDULES)))
        codes = rng.integers(0, NUM_CODES // 4, SCHEDULES[schedule].num_codes(SCALES))
        text = Text(rng.integers(0, TEXT_SIZE // 3, 6))
        image = (Image(schedule, SCALES, codes, codes),) if with_image else ()
        return Document(name, 0, "t2i", "made-up", (text, *image))

    packs = [
        (p, [document(f"{p}-{d}", p < num_packs - 1) for d in range(3)]) for p in range(num_packs)
    ]
    folder.mkdir(parents=True)
    with (folder / shard_name(0)).open("wb") as file:
        index = write_shard(file, shard_name(0), packs, Coefficients(1.0, 0.0, 0.0))
    pq.write_table(index, folder / "index.parquet")
    facts = Facts("tokenizer-a", "text-a", NUM_CODES, TEXT_SIZE, 256, "fixed_compute", 4096, seed)
    (folder / "packs.json").write_bytes(facts.to_json())
    return folder


@pytest.fixture
def write_packs():
    return _write_packs


@pytest.fixture(scope="session")
def run_config():
    def make(folder: Path, **settings) -> TrainConfig:
        made = TrainConfig(
            packs=str(_write_packs(folder / "packs")),
            output=str(folder / "run"),
            steps=6,
            epochs=100,
            model=TINY,
            micro_batches=2,
            learning_rate=1e-2,
            checkpoint_every=2,
            num_threads=1,
        )
        return replace(made, **settings)

    return make


@pytest.fixture
def config(run_config, tmp_path) -> TrainConfig:
    return run_config(tmp_path)
