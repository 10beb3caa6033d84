"""The loop on packs of made-up documents: learns, resumes bit for bit, refuses what is foreign."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from infra import config as recipes
from infra.config import ConfigError
from packing.cost import flops
from packing.reader import PackError, open_packs
from packing.shards import shard_name
from trainer import codebook
from trainer.config import TrainConfig
from trainer.model import Decoder
from trainer.train import main, train

ROOT = Path(__file__).parents[2]
SCALES, NUM_CODES = 4, 40  # of `write_packs`


def _log(config: TrainConfig) -> list[dict]:
    lines = (Path(config.output) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _untimed(entries: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in e.items() if k not in ("duration_s", "data_s", "tokens_per_s")}
        for e in entries
    ]


def test_loss_goes_down_in_both_modalities_and_every_scale(config):
    seen = []
    result = train(replace(config, steps=30), lambda entry, steps: seen.append((entry, steps)))
    first, last = seen[0][0], seen[-1][0]
    assert first.loss == pytest.approx(np.log(72), abs=0.1)  # 30 text ids, <boi>, <eoi>, 40 codes
    assert last.loss < first.loss - 1
    assert last.text_loss < first.text_loss - 1
    assert last.vision_loss < first.vision_loss - 1
    for before, after in zip(first.scale_losses[:SCALES], last.scale_losses[:SCALES], strict=True):
        assert after < before - 1
    assert last.scale_losses[SCALES:] == [None] * (18 - SCALES)
    assert last == result.last
    assert (result.steps, result.packs_consumed) == (30, 60)
    assert [entry["step"] for entry in _log(config)] == list(range(1, 31))
    assert seen[-1][1] == 30


def test_a_finished_run_has_nothing_left_to_do(config):
    train(config)
    before = _log(config)
    again = train(config)
    assert (again.steps, again.resumed_from, again.last) == (6, 6, None)
    assert _log(config) == before


def test_packs_that_fill_no_step_are_left_out_of_every_epoch(config):
    train(replace(config, micro_batches=4, steps=3, epochs=3))  # 6 packs: 4 used, 2 dropped
    assert [entry["packs_consumed"] for entry in _log(config)] == [4, 10, 16]
    one_epoch = replace(config, steps=100, epochs=1, output=config.output + "-2")
    assert train(one_epoch).steps == 3


def test_the_log_tells_tasks_sources_and_the_share_of_the_peak(config):
    train(replace(config, steps=4, micro_batches=4, peak_tflops=1e-3))
    entries = _log(config)
    packs = open_packs(config.packs)
    shape = config.model.shape(packs.facts.vocabulary)
    for entry in entries:
        assert entry["tasks"]["t2i"] == entry["sources"]["made-up"]
        assert entry["tasks"]["t2i"]["loss"] == pytest.approx(entry["loss"])
        assert entry["data_s"] < entry["duration_s"]
        # 6 packs: every epoch takes its first 4
        index = packs.index.slice(0, 4)
        counts = (index[name].to_numpy() for name in ("num_tokens", "num_loss", "num_pairs"))
        done = entry["mfu"] * 1e9 * entry["duration_s"]
        assert done == pytest.approx(flops(*counts, shape).sum())


def test_a_device_too_small_for_the_longest_pack_is_told_before_the_first_step(config, monkeypatch):
    """Stands in for a GPU: the longest of the packs has no room there."""
    index = open_packs(config.packs).index
    sizes = index["num_tokens"].to_pylist()
    forward = Decoder.forward

    def small(self, pack):
        if pack.num_tokens == max(sizes):
            raise torch.OutOfMemoryError
        return forward(self, pack)

    monkeypatch.setattr(Decoder, "forward", small)
    place = sizes.index(max(sizes))
    with pytest.raises(ConfigError, match=f"the longest pack, {place} with {max(sizes)} tokens"):
        train(config)
    assert _log(config) == []


def test_gradient_accumulation_weighs_all_positions_alike(config):
    """Pack weights differ, yet the first step's loss is the mean over all of its positions."""
    train(replace(config, steps=1, micro_batches=6))
    train(
        replace(config, steps=3, micro_batches=2, learning_rate=1e-12, output=config.output + "2")
    )
    together = _log(config)[0]
    parts = _log(replace(config, output=config.output + "2"))
    assert together["num_tokens"] == sum(part["num_tokens"] for part in parts)
    # the weights of an image add up to its codes; the last token of each document has no target
    weights = [part["num_tokens"] - 6 for part in parts]
    mean = np.average([part["loss"] for part in parts], weights=weights)
    assert together["loss"] == pytest.approx(mean, rel=1e-5)


KILLED = """
import os, signal, sys
from infra.config import load
from trainer.config import TrainConfig
from trainer.model import Decoder
from trainer.train import main, train
def kill(entry, steps):
    if entry.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
train(load(TrainConfig, sys.argv[1]), kill)
"""


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path):
    config = replace(config, steps=9)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipes.as_dict(config)))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(recipe)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert [entry["step"] for entry in _log(config)] == [1, 2, 3, 4, 5]
    # what a kill in the middle of writing leaves
    (Path(config.output) / "checkpoints/.step-00000006.writing/engine").mkdir(parents=True)
    with (Path(config.output) / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')

    resumed = train(config)
    whole = replace(config, output=config.output + "-whole")
    uninterrupted = train(whole)

    assert (resumed.resumed_from, uninterrupted.resumed_from) == (4, 0)
    assert _untimed(_log(config)) == _untimed(_log(whole))
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        ours, theirs = (
            torch.load(result.checkpoint / "engine" / name, weights_only=False)
            for result in (resumed, uninterrupted)
        )
        tensors = list(_tensors(ours))
        assert tensors
        assert all(map(torch.equal, tensors, _tensors(theirs)))
    assert len(list((Path(config.output) / "checkpoints").iterdir())) == 2


def _tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(value)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_ranks_equal_one_rank_and_each_goes_on_with_the_others_checkpoint(
    config, tmp_path, zero_stage
):
    """The last pack has no image: one rank then trains on text alone beside one with images."""
    config = replace(config, zero_stage=zero_stage)
    two = replace(config, micro_batches=1, output=config.output + "-two")
    _launch(two, tmp_path)
    train(config)
    _compare(config, two)

    # The same packs per step on another number of ranks, in both directions.
    train(replace(two, micro_batches=2, steps=9))
    _launch(replace(config, micro_batches=1, steps=9), tmp_path)
    whole = replace(config, steps=9, output=config.output + "-whole")
    train(whole)
    for resumed in (two, config):
        assert [entry["step"] for entry in _log(resumed)] == list(range(1, 10))
        _compare(whole, resumed)


def _launch(config: TrainConfig, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipes.as_dict(config)))
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*run, "-m", "trainer.train", str(recipe)],
        cwd=ROOT,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def _compare(one: TrainConfig, other: TrainConfig) -> None:
    for ours, theirs in zip(_log(one), _log(other), strict=True):
        assert ours["packs_consumed"] == theirs["packs_consumed"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 3},
        {"recompute": True},
        {"recompute": True, "zero_stage": 3},
        {"reader_workers": 1},
    ],
)
def test_zero_stages_recomputing_and_reader_processes_change_no_loss(config, settings):
    train(replace(config, steps=3))
    other = replace(config, steps=3, output=config.output + "-other", **settings)
    train(other)
    for ours, theirs in zip(_log(config), _log(other), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_starts_from_the_tokenizers_codebook(config, tmp_path):
    path = tmp_path / "codebook.safetensors"
    vectors = torch.randn(NUM_CODES, 6)
    codebook.write(path, vectors, "tokenizer-a")
    result = train(replace(config, steps=1, learning_rate=1e-12, codebook=str(path)))
    states = torch.load(result.checkpoint / "engine/mp_rank_00_model_states.pt", weights_only=False)
    torch.testing.assert_close(states["module"]["vision.codebook"], vectors)


def test_a_codebook_of_another_tokenizer_is_refused_by_name(config, tmp_path):
    path = tmp_path / "codebook.safetensors"
    codebook.write(path, torch.randn(NUM_CODES, 6), "tokenizer-b")
    with pytest.raises(ConfigError, match=r"of tokenizer tokenizer-b, the packs .* tokenizer-a"):
        train(replace(config, codebook=str(path)))
    assert not Path(config.output).exists()


def test_another_model_or_other_packs_do_not_continue_a_run(config, write_packs, tmp_path):
    train(replace(config, steps=2))
    with pytest.raises(ConfigError, match=r"was made with model .*'num_layers': 2.*num_layers': 3"):
        train(replace(config, model=replace(config.model, num_layers=3)))
    others = write_packs(tmp_path / "others", seed=1)
    with pytest.raises(ConfigError, match="was made with packs"):
        train(replace(config, packs=str(others)))
    facts = json.loads((others / "packs.json").read_text())
    for fact, name in (("tokenizer_id", "tokenizer"), ("vocabulary_id", "vocabulary")):
        (others / "packs.json").write_text(json.dumps(facts | {fact: "id-b"}))
        with pytest.raises(ConfigError, match=rf"with {name} {facts[fact]}, this run has id-b"):
            train(replace(config, packs=str(others)))


def test_too_few_packs_or_none_stop_before_work(config, tmp_path):
    with pytest.raises(ConfigError, match=r"holds 6 packs, one step .* takes 7"):
        train(replace(config, micro_batches=7))
    with pytest.raises(PackError, match="is no folder of packs"):
        train(replace(config, packs=str(tmp_path / "nowhere")))


def test_another_number_of_packs_per_step_does_not_continue_a_run(config):
    train(replace(config, steps=2))
    with pytest.raises(ConfigError, match="made with packs_per_step 2, this run has 1"):
        train(replace(config, steps=3, micro_batches=1))


def test_settings_of_the_optimiser_are_those_of_the_run_that_goes_on(config):
    """A larger decay from step 3 on is as if that step had been taken with it at once."""
    train(replace(config, steps=2, weight_decay=0.0))
    train(replace(config, steps=3, weight_decay=0.9))
    undecayed = replace(config, output=config.output + "-0", weight_decay=0.0)
    train(replace(undecayed, steps=3))
    norms = []
    for run in (config, undecayed):
        file = next(Path(run.output).glob("checkpoints/step-00000003/engine/mp_rank_00*"))
        weights = torch.load(file, weights_only=False)["module"]
        norms.append(float(weights["layers.0.mlp.up_proj.weight"].norm()))
    assert norms[0] < 0.995 * norms[1]  # 1 - rate x decay = 0.991, once


def test_shards_that_are_cut_or_missing_stop_before_the_first_step(config):
    shard = Path(config.packs) / shard_name(0)
    data = shard.read_bytes()
    shard.write_bytes(data[:-5000])
    with pytest.raises(PackError, match=rf"{shard.name} .* has {len(data) - 5000:,} bytes, needed"):
        train(config)
    shard.unlink()
    with pytest.raises(PackError, match=rf"{shard.name} .* is not there"):
        train(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a recipe"),
        (["nowhere.yaml"], "recipe nowhere.yaml does not exist"),
        (["RECIPE", "steps=0", "--local_rank=0"], "steps is 0: use at least 1"),
        (["RECIPE", "packs=nowhere"], "nowhere is no folder of packs"),
    ],
)
def test_mistakes_under_a_launcher_are_one_line(config, tmp_path, arguments, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipes.as_dict(config)))
    with pytest.raises(SystemExit) as stopped:
        main([str(recipe) if word == "RECIPE" else word for word in arguments])
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_codes_outside_the_vocabulary_stop_the_run(config):
    path = Path(config.packs) / "packs.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_codes": 5}))
    with pytest.raises(ValueError, match=r"input codes reach from 0 to 9: they must lie in 0\.\.4"):
        train(config)


def test_importing_the_trainer_stays_light():
    heavy = "{'ray', 'open_clip', 'duckdb', 'deepspeed', 'transformers'}"
    code = f"import sys, trainer.train; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
