"""Training, layout and sampling agree: a model that has learnt eight photographs draws them again.

The proof of the whole: codes of real photographs without noise, packs, training on them until they
are known by heart, export, and greedy sampling, which must give the same codes.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from infra.layout import Image, Text
from infra.pixels import decode, resize_crop
from infra.schedules import NUM_SCALES, Schedule, nearest
from packing.cost import Coefficients
from packing.members import Document
from packing.packs import Facts
from packing.shards import shard_name, write_shard
from tokenize_offline import checkpoint
from tokenize_offline.codes import extract
from tokenize_offline.correction import Correction
from trainer.config import ModelConfig, TrainConfig
from trainer.export import export, load_model
from trainer.sampling import Sampling, sample_image
from trainer.train import train

SCALES = NUM_SCALES[256]
STEPS = 120
MODEL = ModelConfig(hidden_size=128, intermediate_size=256, num_layers=2, num_heads=4,
                    num_kv_heads=2, head_dim=32, init_std=0.08)  # fmt: skip


@pytest.fixture(scope="module")
def coded(photos: Path) -> list[tuple[Schedule, np.ndarray]]:
    """The photographs of the wheels, cropped to their nearest schedule, as codes without noise.

    Codes that no photograph has are left out and the others numbered anew: a quarter of the time
    would go into the head's rows for them.
    """
    tokenizer = checkpoint.load()
    found = []
    for path in sorted(p for p in photos.iterdir() if p.suffix in (".jpg", ".jpeg", ".png")):
        rgb = decode(path.read_bytes()).rgb
        schedule = nearest(*rgb.shape[:2])
        height, width = (16 * side for side in schedule.grids[SCALES - 1])
        pixels, _ = resize_crop(rgb, height, width)
        encoded = extract(tokenizer, [pixels], [path.name], schedule, SCALES, Correction(rate=0.0))
        assert np.array_equal(encoded.input_codes, encoded.target_codes)
        found.append((schedule, encoded.input_codes[0]))
    used = np.unique(np.concatenate([codes for _, codes in found]))
    return [(of, np.searchsorted(used, codes).astype(np.int32)) for of, codes in found]


@pytest.mark.slow
def test_greedy_sampling_gives_the_codes_of_photographs_learnt_by_heart(
    coded: list[tuple[Schedule, np.ndarray]], tmp_path: Path
) -> None:
    assert len(coded) == 8
    prompts = [Text(np.array([number, 9]), loss=False) for number in range(len(coded))]
    documents = [
        Document(str(number), 0, "t2i", "wheels", (prompt, Image(of.index, SCALES, codes, codes)))
        for number, (prompt, (of, codes)) in enumerate(zip(prompts, coded, strict=True))
    ]
    folder = tmp_path / "packs"
    folder.mkdir()
    with open(folder / shard_name(0), "wb") as file:
        index = write_shard(file, shard_name(0), [(0, documents)], Coefficients(1.0, 0.0, 0.0))
    pq.write_table(index, folder / "index.parquet")
    num_codes = 1 + max(int(codes.max()) for _, codes in coded)
    facts = Facts("carried", "none", num_codes, 16, 256, "fixed_compute", 10_000, 0)
    (folder / "packs.json").write_bytes(facts.to_json())
    config = TrainConfig(
        packs=str(folder),
        output=str(tmp_path / "run"),
        steps=STEPS,
        epochs=STEPS,
        model=MODEL,
        learning_rate=8e-3,
        warmup_steps=10,
        decay="cosine",
        weight_decay=0.0,
        scale_alpha=0.5,
        checkpoint_every=STEPS,
    )
    export(train(config).checkpoint, tmp_path / "model", torch.float32)
    model = load_model(tmp_path / "model")
    equal = [
        codes == sample_image(model, [prompt], of.index, SCALES, Sampling(temperature=0))
        for prompt, (of, codes) in zip(prompts, coded, strict=True)
    ]
    assert np.concatenate(equal).mean() >= 0.99
