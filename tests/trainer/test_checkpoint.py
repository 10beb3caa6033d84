"""Killed at any moment, a run goes on bit for bit; what is not whole, or not its own, is not used.

On other numbers of ranks: test_train.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.config import ConfigError
from trainer import checkpoint
from trainer.train import train


def test_only_renamed_checkpoints_count_oldest_first(tmp_path):
    for name in ("step-00000020", "step-00000003", ".step-00000021.writing"):
        (tmp_path / name).mkdir()
    assert [c.name for c in checkpoint.complete(tmp_path)] == ["step-00000003", "step-00000020"]
    assert checkpoint.complete(tmp_path / "nowhere") == []


def test_what_differs_is_named_with_both_values(tmp_path):
    identity = {"tokenizer": "a", "model": {"mrope_sections": (4, 6, 6)}}
    state = {"step": 1, "packs_consumed": 1, "ranks": 1, "identity": identity}
    (tmp_path / "state.json").write_text(json.dumps(state))
    checkpoint.check(tmp_path, identity)
    with pytest.raises(ConfigError, match="tokenizer a, this run has b"):
        checkpoint.check(tmp_path, identity | {"tokenizer": "b"})
    with pytest.raises(ConfigError, match="zero_stage None, this run has 2"):
        checkpoint.check(tmp_path, identity | {"zero_stage": 2})


def test_a_damaged_checkpoint_is_one_line_with_the_remedy(config):
    short = replace(config, steps=2, checkpoint_every=1)
    train(short)
    [*_, newest] = checkpoint.complete(Path(config.output) / "checkpoints")
    told = "is damaged .*: remove it to go on from the one before"
    optimizer = next(newest.rglob("*optim_states.pt"))
    whole = optimizer.read_bytes()
    optimizer.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=told) as raised:
        train(replace(short, steps=3))
    assert "\n" not in str(raised.value)
    for text in ("", "{}", "[]"):
        (newest / "state.json").write_text(text)
        with pytest.raises(ConfigError, match=told):
            train(replace(short, steps=3))
    (newest / "state.json").unlink()
    with pytest.raises(ConfigError, match=told):
        train(replace(short, steps=3))
    shutil.rmtree(newest)
    assert train(replace(short, steps=3)).last.step == 3


KILLED = """
import io, os, signal, subprocess, sys, time
from pathlib import Path
import torch
from infra.config import load
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.train import train

recipe, moment = sys.argv[1:]
calls = 0

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def after_step_5(entry, steps):
    if moment == "after a step" and entry.step == 5:
        die()

def kill_at(owner, name, call, first=lambda *_: None):
    # the call of this number does what `first` does, and no more
    whole = getattr(owner, name)
    def counted(*given, **options):
        global calls
        calls += 1
        if calls == call:
            first(*given)
            die()
        return whole(*given, **options)
    setattr(owner, name, counted)

def half_of_the_last(state, path, *given, **options):
    if "step-00000004" in str(path) and "optim_states" in str(path):
        buffer = io.BytesIO()
        save(state, buffer)
        Path(path).write_bytes(buffer.getvalue()[: buffer.tell() // 2])
        die()
    return save(state, path, *given, **options)

def half_converted(command, **_):
    # it runs in processes of its own: all of them are killed once it has written something
    conversion = subprocess.Popen(command, start_new_session=True)
    [folder] = [Path(word) for word in command if "/.universal." in word]
    while not list(folder.rglob("fp32.pt")):
        assert conversion.poll() is None
        time.sleep(0.002)
    os.killpg(conversion.pid, signal.SIGKILL)

save = torch.save
if moment == "in a file of DeepSpeed's":
    torch.save = half_of_the_last
elif moment == "before it is renamed":
    kill_at(Path, "rename", 2)
elif moment == "while an old one is removed":
    kill_at(checkpoint.shutil, "rmtree", 1, lambda folder: (folder / "state.json").unlink())
elif moment == "in a conversion":
    kill_at(subprocess, "run", 1, half_converted)
train(load(TrainConfig, recipe), after_step_5)
"""


@pytest.fixture
def killed(write_recipe, tmp_path):
    """Starts the run in a process that kills itself at some moment."""

    def run(config, moment: str) -> None:
        recipe = write_recipe(config, tmp_path / "killed.yaml")
        root = Path(__file__).parents[2]
        command = [sys.executable, "-c", KILLED, str(recipe), moment]
        assert subprocess.run(command, cwd=root, check=False).returncode == -9

    return run


@pytest.fixture(scope="module")
def uninterrupted(run_config, tmp_path_factory):
    config = run_config(tmp_path_factory.mktemp("whole"), steps=9)
    return config, train(config)


@pytest.mark.parametrize(
    ("moment", "resumed_from"),
    [
        ("after a step", 4),
        pytest.param("in a file of DeepSpeed's", 2, marks=pytest.mark.slow),
        pytest.param("before it is renamed", 2, marks=pytest.mark.slow),
        pytest.param("while an old one is removed", 6, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(
    uninterrupted, killed, log_of, tmp_path, moment, resumed_from
):
    whole, expected = uninterrupted
    config = replace(whole, output=str(tmp_path / "run"))
    killed(config, moment)
    checkpoints = Path(config.output) / "checkpoints"
    if moment == "after a step":
        assert [entry["step"] for entry in log_of(config)] == [1, 2, 3, 4, 5]
        with (Path(config.output) / "log.jsonl").open("a") as file:
            file.write('{"step": 6, "lo')
    elif resumed_from == 2:
        [unfinished] = checkpoints.glob(".step-*")
        assert {file.name for file in (unfinished / "engine").iterdir()} == {
            file.name for file in (expected.checkpoint / "engine").iterdir()
        }
    resumed = train(config)
    assert (resumed.resumed_from, expected.resumed_from) == (resumed_from, 0)
    assert log_of(config, timed=False) == log_of(whole, timed=False)
    assert_equal(resumed.checkpoint, expected.checkpoint)
    names = [path.name for path in sorted(checkpoints.iterdir())]
    assert names == ["step-00000008", "step-00000009"]


@pytest.mark.slow
def test_killed_in_a_conversion_it_is_made_again(two_ranks, killed, log_of, tmp_path):
    """A run of two ranks goes on with one, which needs it; beside one that nobody killed."""
    two = two_ranks["zero 2"]
    runs = [
        replace(two, micro_batches=2, steps=8, output=str(tmp_path / name))
        for name in ("killed", "not")
    ]
    for run in runs:
        shutil.copytree(two.output, run.output)
    killed(runs[0], "in a conversion")
    newest = checkpoint.complete(Path(runs[0].output) / "checkpoints")[-1]
    [begun] = newest.glob(".universal.*")
    assert list(begun.rglob("fp32.pt"))
    assert not (newest / "universal").exists()
    resumed, expected = map(train, runs)
    assert (resumed.resumed_from, expected.resumed_from) == (6, 6)
    assert log_of(runs[0], timed=False) == log_of(runs[1], timed=False)
    assert_equal(resumed.checkpoint, expected.checkpoint)


def assert_equal(ours: Path, theirs: Path) -> None:
    """The same parameters, optimiser and random states, bit for bit."""
    names = sorted(path.name for path in (ours / "engine").glob("*.pt"))
    assert names == sorted(path.name for path in (theirs / "engine").glob("*.pt"))
    for name in names:
        mine, other = (
            list(tensors(torch.load(folder / "engine" / name, weights_only=False)))
            for folder in (ours, theirs)
        )
        assert mine
        assert all(map(torch.equal, mine, other))


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(value)
