"""A calibration of a tiny model over made-up packs, and the pieces that it measures."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.config import ConfigError
from infra.layout import Image, Text, count
from infra.schedules import SCHEDULES
from packing.calibration import read_calibration
from packing.cost import Coefficients
from packing.members import Document
from packing.packs import Facts, open_packs
from packing.shards import shard_name, write_shard
from pipelines.calibrate import Effort, main, pieces, settings

TRAIN = """\
packs: set by the command
output: set by the command
steps: 1
num_threads: 1
model: {hidden_size: 32, intermediate_size: 64, num_layers: 1, num_heads: 2, num_kv_heads: 2,
        head_dim: 16, mrope_sections: [2, 3, 3]}
"""


def write_packs(folder, document, num_packs=6):
    draw = np.random.default_rng(0)
    packs = [
        (p, [Document(f"{p}-{d}", 0, "t2i", "made-up", document(draw)) for d in range(8)])
        for p in range(num_packs)
    ]
    folder.mkdir(parents=True)
    with (folder / shard_name(0)).open("wb") as file:
        index = write_shard(file, shard_name(0), packs, Coefficients(1.0, 0.0, 0.0))
    pq.write_table(index, folder / "index.parquet")
    facts = Facts("tokenizer", "text", 40, 30, 256, "fixed_length", 4096, 0)
    (folder / "packs.json").write_bytes(facts.to_json())
    return folder


def alike(draw):
    """All documents of one length: nothing but what the pieces do tells the counts apart."""
    codes = draw.integers(0, 40, SCHEDULES[7].num_codes(6))
    return Text(draw.integers(0, 30, 20)), Image(7, 6, codes, codes)


def test_pieces_tell_tokens_pairs_and_targets_apart_and_none_exceeds_a_pack(tmp_path):
    packs = open_packs(write_packs(tmp_path / "packs", alike))
    counts = np.array([np.sum([count(d) for d in piece], axis=0) for piece in pieces(packs, 32)])
    assert len(counts) == 32
    scaled = np.column_stack([counts, np.ones(32)]) / (counts[:, :1] + 50)
    assert np.linalg.cond(scaled / np.linalg.norm(scaled, axis=0)) < 30
    assert counts[:, 0].max() == packs.index["num_tokens"][0].as_py()
    assert counts[:, 2].max() <= packs.index["num_pairs"][0].as_py()


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(TRAIN)
    return str(path)


def test_it_measures_prints_and_writes_what_a_recipe_takes(tmp_path, recipe, capsys):
    workspace = tmp_path / "workspace"
    write_packs(workspace / "packs" / "mine", alike)
    found = main("mine", str(workspace), recipe, (), Effort(16, 2))
    of = read_calibration(str(workspace / "calibration.json"))
    assert of == found.fitted.coefficients
    assert of.unit == "s"
    assert (found.device, found.dtype, found.num_ranks) == ("cpu", "float32", 1)
    assert found.model.hidden == 32
    assert found.model.vocabulary == 72
    assert 0 < found.fitted.residual < 1
    printed = capsys.readouterr().out
    for word in ("token", "pair", "target", "pack", "condition", "calibration.json"):
        assert word in printed


def test_settings_of_the_trainers_file_and_of_a_recipe_and_of_none(recipe):
    assert settings("p", recipe, ["micro_batches=2"]).model.hidden_size == 32
    assert settings("p", recipe, ["micro_batches=2"]).micro_batches == 2
    assert settings("p", None).model.hidden_size == 256
    assert settings("p", "demo").packs == "p"
    assert settings("p", "demo").model.hidden_size == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "none"}, "name packs of"),
        ({"output": "calibration.yaml"}, "ends in .json"),
        ({"recipe": "none.yaml"}, "none.yaml does not exist"),
        ({"overrides": ["model.hidden_size=0"]}, "hidden_size is 0"),
    ],
)
def test_mistakes_are_told_in_one_line_before_work(tmp_path, recipe, change, message):
    folder = write_packs(tmp_path / "packs", alike)
    given = {"source": str(folder), "workspace": str(tmp_path), "recipe": recipe} | change
    with pytest.raises(ConfigError, match=message) as error:
        main(**given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "calibration.json").exists()


def test_too_little_effort_is_refused():
    with pytest.raises(ConfigError, match="use at least 8 and 1"):
        Effort(num_packs=4)
