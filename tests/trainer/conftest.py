"""A tiny decoder, packs of made-up documents, tiny runs over them in one process and in two."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from infra import config as recipes
from infra.layout import Image, Text, Vocabulary
from infra.schedules import SCHEDULES
from packing.cost import Coefficients
from packing.members import Document
from packing.reader import Facts
from packing.shards import shard_name, write_shard
from trainer.config import ModelConfig, TrainConfig
from trainer.export import export, load_model
from trainer.model import Decoder

ROOT = Path(__file__).parents[2]
TINY = ModelConfig(hidden_size=48, intermediate_size=64, num_layers=2, num_heads=4,
                   num_kv_heads=2, head_dim=16, mrope_sections=(2, 3, 3))  # fmt: skip
SCALES, NUM_CODES, TEXT_SIZE = 4, 40, 30


@pytest.fixture(scope="module")
def model():
    """Untrained, with weights so large that everything matters to the logits."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(num_codes=NUM_CODES, text_size=TEXT_SIZE)
    return Decoder(replace(TINY, init_std=0.3), vocabulary, code_dim=6).eval()


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


@pytest.fixture(scope="session")
def log_of():
    """The lines of a run's log; without what differs from run to run if told so."""

    def read(config: TrainConfig, timed: bool = True) -> list[dict]:
        lines = (Path(config.output) / "log.jsonl").read_text().splitlines()
        times = () if timed else ("duration_s", "data_s", "tokens_per_s")
        return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]

    return read


@pytest.fixture
def weights_of(tmp_path_factory):
    """The weights of a checkpoint by name, as they were trained."""

    def read(checkpoint: Path) -> dict[str, torch.Tensor]:
        folder = tmp_path_factory.mktemp("weights") / "model"
        export(checkpoint, folder, torch.float32)
        return load_model(folder).state_dict()

    return read


@pytest.fixture(scope="session")
def write_recipe():
    def write(config: TrainConfig, path: Path) -> Path:
        path.write_text(yaml.safe_dump(recipes.as_dict(config)))
        return path

    return write


LAUNCHED = """
import sys
from infra.config import load
from trainer.config import TrainConfig
from trainer.engine import process_group
from trainer.train import train
with process_group():  # one for all runs: starting it takes longer than they do
    for recipe in sys.argv[1:]:
        train(load(TrainConfig, recipe))
"""


@pytest.fixture(scope="session")
def launch(write_recipe):
    """Runs on two ranks, one after the other in one launch; or the trainer's own entry point."""

    def run(folder: Path, *configs: TrainConfig, module: str | None = None) -> None:
        script = folder / "launched.py"
        script.write_text(LAUNCHED)
        recipes = [write_recipe(of, folder / f"{i}.yaml") for i, of in enumerate(configs)]
        what = ["-m", module] if module else [str(script)]
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *what]
        subprocess.run(
            [sys.executable, *command, *map(str, recipes)],
            cwd=ROOT,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def two_ranks(run_config, launch, tmp_path_factory) -> dict[str, TrainConfig]:
    """Runs of 6 steps on two ranks; copy their output before you go on with them."""
    folder = tmp_path_factory.mktemp("two")
    made = run_config(folder, micro_batches=1)
    variants = {
        "zero 0": {"zero_stage": 0},
        "zero 1": {"zero_stage": 1},
        "zero 2": {"zero_stage": 2},
        "zero 3": {"zero_stage": 3},
        "alignment": {"zero_stage": 2, "trainable": "new", "weight_decay": 0.5},
        "alignment 3": {"zero_stage": 3, "trainable": "new", "weight_decay": 0.5},
    }
    runs = {
        name: replace(made, output=str(folder / name.replace(" ", "-")), **settings)
        for name, settings in variants.items()
    }
    launch(folder, *runs.values())
    return runs
