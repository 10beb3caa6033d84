"""The loop on packs of made-up documents: learns, resumes bit for bit, refuses what is foreign."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.config import ConfigError
from packing.cost import flops
from packing.packs import CODEBOOK
from packing.reader import PackError, open_packs
from trainer import codebook
from trainer.config import TrainConfig
from trainer.engine import build_engine
from trainer.model import Decoder
from trainer.train import main, train

ROOT = Path(__file__).parents[2]
SCALES, NUM_CODES = 4, 40  # of `write_packs`


def test_loss_goes_down_in_both_modalities_and_every_scale(config, log_of):
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
    assert [entry["step"] for entry in log_of(config)] == list(range(1, 31))
    assert seen[-1][1] == 30


def test_a_finished_run_has_nothing_left_to_do(config, log_of):
    train(config)
    before = log_of(config)
    again = train(config)
    assert (again.steps, again.resumed_from, again.last) == (6, 6, None)
    assert log_of(config) == before


def test_packs_that_fill_no_step_are_left_out_of_every_epoch(config, log_of):
    train(replace(config, micro_batches=4, steps=3, epochs=3))  # 6 packs: 4 used, 2 dropped
    assert [entry["packs_consumed"] for entry in log_of(config)] == [4, 10, 16]
    one_epoch = replace(config, steps=100, epochs=1, output=config.output + "-2")
    assert train(one_epoch).steps == 3


def test_the_log_tells_tasks_sources_and_the_share_of_the_peak(config, log_of):
    train(replace(config, steps=4, micro_batches=4, peak_tflops=1e-3))
    entries = log_of(config)
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


def test_a_device_too_small_for_the_longest_pack_is_told_before_the_first_step(
    config, monkeypatch, log_of
):
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
    assert log_of(config) == []


def test_gradient_accumulation_weighs_all_positions_alike(config, log_of):
    """Pack weights differ, yet the first step's loss is the mean over all of its positions."""
    train(replace(config, steps=1, micro_batches=6))
    train(
        replace(config, steps=3, micro_batches=2, learning_rate=1e-12, output=config.output + "2")
    )
    together = log_of(config)[0]
    parts = log_of(replace(config, output=config.output + "2"))
    assert together["num_tokens"] == sum(part["num_tokens"] for part in parts)
    # the weights of an image add up to its codes; the last token of each document has no target
    weights = [part["num_tokens"] - 6 for part in parts]
    mean = np.average([part["loss"] for part in parts], weights=weights)
    assert together["loss"] == pytest.approx(mean, rel=1e-5)


@dataclass(frozen=True)
class Runs:
    """One run on one rank, on two, begun by one and ended by two, the other way; and a longer."""

    one: TrainConfig
    two: TrainConfig
    one_then_two: TrainConfig
    two_then_one: TrainConfig
    whole: TrainConfig


@pytest.fixture(scope="module")
def elastic(two_ranks, launch, tmp_path_factory) -> dict[str, Runs]:
    """6 steps, then 3 more; the same packs per step, whatever the number of ranks."""
    made = {}
    for name, two in two_ranks.items():
        folder = tmp_path_factory.mktemp("elastic")
        one, one_then_two, two_then_one, whole = (
            replace(two, micro_batches=micro, steps=steps, output=str(folder / label))
            for label, micro, steps in (("a", 2, 6), ("b", 1, 9), ("c", 2, 9), ("d", 2, 9))
        )
        train(one)
        shutil.copytree(one.output, one_then_two.output)
        shutil.copytree(two.output, two_then_one.output)
        assert train(two_then_one).resumed_from == 6
        train(whole)
        made[name] = Runs(one, two, one_then_two, two_then_one, whole)
    launch(folder, *(runs.one_then_two for runs in made.values()))
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", ["zero 0", "zero 1", "zero 2", "zero 3", "alignment", "alignment 3"]
)
def test_two_ranks_equal_one_rank_and_each_goes_on_with_the_others_checkpoint(
    elastic, log_of, variant
):
    """The last pack has no image: one rank then trains on text alone beside one with images."""
    runs = elastic[variant]
    for found, expected in (
        (runs.two, runs.one),
        (runs.one_then_two, runs.whole),
        (runs.two_then_one, runs.whole),
    ):
        ours, theirs = log_of(found), log_of(expected)
        assert [entry["step"] for entry in ours] == list(range(1, found.steps + 1))
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["packs_consumed"] == other["packs_consumed"]
            assert mine["loss"] == pytest.approx(other["loss"], abs=1e-4)
            assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)


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
def test_zero_stages_recomputing_and_reader_processes_change_no_loss(config, settings, log_of):
    train(replace(config, steps=3))
    other = replace(config, steps=3, output=config.output + "-other", **settings)
    train(other)
    for ours, theirs in zip(log_of(config), log_of(other), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_in_bf16_as_on_a_gpu_it_learns_the_same_to_its_few_digits(
    config, zero_stage, log_of, monkeypatch
):
    config = replace(config, learning_rate=3e-3)  # at 1e-2 rounding errors grow from step 5 on
    train(config)
    monkeypatch.setattr("trainer.train.build_engine", partial(build_engine, bf16=True))
    other = replace(config, output=config.output + "-bf16", zero_stage=zero_stage)
    train(replace(other, steps=4))
    assert train(other).resumed_from == 4
    for ours, theirs in zip(log_of(config), log_of(other), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.005)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's compiler looks
def test_compiled_layers_give_the_same_losses_from_two_graphs_for_all_layers(config, log_of):
    train(config)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    others = [
        replace(config, compile=True, output=f"{config.output}-{recompute}", recompute=recompute)
        for recompute in (False, True)
    ]
    for other in others:
        train(other)
        for ours, theirs in zip(log_of(config), log_of(other), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_starts_from_the_tokenizers_codebook(config, tmp_path, weights_of):
    path = tmp_path / "codebook.safetensors"
    vectors = torch.randn(NUM_CODES, 6)
    codebook.write(path, vectors, "tokenizer-a")
    result = train(replace(config, steps=1, learning_rate=1e-12, codebook=str(path)))
    torch.testing.assert_close(weights_of(result.checkpoint)["vision.codebook"], vectors)


def test_the_codebook_beside_the_packs_is_taken_where_none_is_named(config, tmp_path, weights_of):
    beside, other = torch.randn(2, NUM_CODES, 6)
    codebook.write(Path(config.packs) / CODEBOOK, beside, "tokenizer-a")
    still = replace(config, steps=1, learning_rate=1e-12)
    found = weights_of(train(still).checkpoint)["vision.codebook"]
    torch.testing.assert_close(found, beside)
    codebook.write(tmp_path / "other.safetensors", other, "tokenizer-a")
    named = replace(
        still, codebook=str(tmp_path / "other.safetensors"), output=config.output + "-2"
    )
    torch.testing.assert_close(weights_of(train(named).checkpoint)["vision.codebook"], other)
    codebook.write(Path(config.packs) / CODEBOOK, beside, "tokenizer-b")
    with pytest.raises(ConfigError, match=r"of tokenizer tokenizer-b, the packs .* tokenizer-a"):
        train(replace(config, output=config.output + "-3"))


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
    with pytest.raises(
        ConfigError, match=r"warmup_steps is 50, but \d+ epochs of 6 packs are only"
    ):
        train(replace(config, steps=100, epochs=2, warmup_steps=50))
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        with pytest.raises(PackError, match=f"{name} is no folder of packs"):
            train(replace(config, packs=str(tmp_path / name)))


def test_what_can_be_told_at_once_is_told_before_all_packs_are_read(config, tmp_path):
    shard = next(Path(config.packs).glob("*.tar"))
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ConfigError, match="nowhere is no folder, and the hub"):
        train(replace(config, initialise_from=str(tmp_path / "nowhere")))
    with pytest.raises(PackError, match="pack again"):
        train(config)


def test_a_new_run_tells_what_it_lacks(config):
    told = []
    train(replace(config, steps=9, epochs=1), tell=told.append)
    assert told == [
        "epochs: 1 of these packs are 3 steps, fewer than the 9 of `steps`",
        "no codebook, no model to start from: visual embeddings start at random",
    ]
    told.clear()
    train(replace(config, steps=9, epochs=2), tell=told.append)
    assert not told


def test_another_number_of_packs_per_step_does_not_continue_a_run(config):
    train(replace(config, steps=2))
    with pytest.raises(ConfigError, match="made with packs_per_step 2, this run has 1"):
        train(replace(config, steps=3, micro_batches=1))


def test_settings_of_the_optimiser_are_those_of_the_run_that_goes_on(config, weights_of):
    """A larger decay from step 3 on is as if that step had been taken with it at once."""
    train(replace(config, steps=2, weight_decay=0.0))
    decayed = train(replace(config, steps=3, weight_decay=0.9))
    undecayed = train(replace(config, steps=3, output=config.output + "-0", weight_decay=0.0))
    norms = [
        weights_of(result.checkpoint)["layers.0.mlp.up_proj.weight"].norm()
        for result in (decayed, undecayed)
    ]
    assert norms[0] < 0.995 * norms[1]  # 1 - rate x decay = 0.991, once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a recipe"),
        (["nowhere.yaml"], "recipe nowhere.yaml does not exist"),
        (["RECIPE", "steps=0", "--local_rank=0"], "steps is 0: use at least 1"),
        (["RECIPE", "packs=nowhere"], "nowhere is no folder of packs"),
    ],
)
def test_mistakes_under_a_launcher_are_one_line(config, tmp_path, write_recipe, arguments, message):
    recipe = write_recipe(config, tmp_path / "recipe.yaml")
    with pytest.raises(SystemExit) as stopped:
        main([str(recipe) if word == "RECIPE" else word for word in arguments])
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_importing_the_trainer_stays_light():
    heavy = "{'ray', 'open_clip', 'duckdb', 'deepspeed', 'transformers'}"
    code = f"import sys, trainer.train; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
