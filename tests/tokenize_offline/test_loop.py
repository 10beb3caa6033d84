"""Steps, resume and processes, on tiny networks; what is killed is a real process."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from infra.config import ConfigError, build
from tokenize_offline import training
from tokenize_offline.learning import Learning
from tokenize_offline.loop import Loop, learning_rate
from tokenize_offline.training import train_tokenizer
from tokenize_offline.training_recipe import TrainTokenizer

ROOT = Path(__file__).parents[2]
Tree = dict[str, Any]

# Runs the recipe argv[1] in forked processes, so that torch is imported once: in each but the last
# a thread sends SIGKILL soon after the log has got the line of a stage and step in argv[2:].
KILLED_AND_RESUMED = """
import os, random, signal, sys, threading, time
from tokenize_offline import training
recipe, log, *kills = sys.argv[1:]

def kill_after(line):
    while not os.path.exists(log) or line not in open(log).read():
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.08))
    os.kill(os.getpid(), signal.SIGKILL)

for kill in (*kills, ""):
    pid = os.fork()
    if not pid:
        if kill:
            threading.Thread(target=kill_after, args=(kill,), daemon=True).start()
        training.main(recipe)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    print("exit", os.waitstatus_to_exitcode(status), open(log).read().splitlines()[-1], flush=True)
    if kill:  # what a kill in the middle of writing leaves
        open(os.path.join(os.path.dirname(log), ".state.pt.writing"), "wb").write(b"PK torn")
        open(log, "a").write('{"stage": "joi')
"""

# With the variables that torchrun sets, so that torch is imported once: two processes train the
# recipe argv[1]; two others the recipe argv[2] and are killed, both at once, after the state of
# joint step 3 is saved, two again go on. At last two find the folder of argv[2] taken.
TWO_KILLED_AND_RESUMED = """
import os, signal, socket, sys
from tokenize_offline import training, training_state
from infra.config import ConfigError
save = training_state.save

def save_and_kill(folder, state):
    save(folder, state)
    if (state["stage"], state["step"]) == ("joint", 3):
        os.killpg(0, signal.SIGKILL)

def both(recipe, kill=False):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = []
    for rank in (0, 1):
        process = os.fork()
        if not process:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            if kill:
                training_state.save = save_and_kill
            try:
                training.main(recipe)
            except ConfigError as error:
                os.write(1, f"told {rank} {error}\\n".encode())  # whole, beside the other's
            sys.stdout.flush()
            os._exit(0)
        processes.append(process)
        os.setpgid(process, processes[0])
    ends = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    print("ends", *ends, flush=True)

whole, killed = sys.argv[1:]
both(whole)
both(killed, kill=True)
both(killed)
with training_state.held(__import__("pathlib").Path(killed).parent / "tokenizer.training"):
    both(killed)
"""

# Runs the recipe argv[1]; every process keeps its gradients and the weights it ends with.
EVERY_RANK = """
import sys, torch
from tokenize_offline import loop, training
train, step, gradients = loop.Loop.train, torch.optim.AdamW.step, []

def note(self):
    parameters = [p for group in self.param_groups for p in group["params"]]
    gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
    step(self)

def keep(self, settings):
    tokenizer = train(self, settings)
    torch.save((gradients, tokenizer.state_dict()), f"{self.recipe.folder}/rank{self.ranks.rank}")
    return tokenizer

torch.optim.AdamW.step, loop.Loop.train = note, keep
training.main(sys.argv[1])
"""


def write_recipe(tree: Tree, folder: Path, **learning: object) -> Path:
    """The recipe as a file, with its output in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = tree | {"output": str(folder / "tokenizer.safetensors")}
    tree["learning"] = tree["learning"] | learning
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def train(tree: Tree, folder: Path, **learning: object) -> dict[str, torch.Tensor]:
    """Train in this process; the weights, in float32."""
    path = write_recipe(tree, folder, **learning)
    train_tokenizer(build(TrainTokenizer, yaml.safe_load(path.read_text())), lambda line: None)
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "tokenizer.training/state.pt", weights_only=True)
    return state["networks"]["tokenizer"]


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "tokenizer.training/log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def run(code: str, *arguments: str, processes: int = 1) -> str:
    script = Path(arguments[0]).parent / "script.py"
    script.write_text(code)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(script), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ADVERSARIAL = {"weight": 0.5, "start_step": 2, "channels": 8, "layers": 2}


def test_killed_in_every_stage_and_resumed_gives_the_same_bits(
    tiny_training: Tree, tmp_path: Path
) -> None:
    whole = train(tiny_training, tmp_path / "whole", adversarial=ADVERSARIAL)
    recipe = write_recipe(tiny_training, tmp_path / "killed", adversarial=ADVERSARIAL)
    steps = {stage: random.randint(1, 4) for stage in ("branches", "joint", "decoders")}
    lines = [f'"stage": "{stage}", "step": {step},' for stage, step in steps.items()]
    log = recipe.parent / "tokenizer.training/log.jsonl"
    ends = [line for line in run(KILLED_AND_RESUMED, str(recipe), str(log), *lines).splitlines()
            if line.startswith("exit")]  # fmt: skip
    assert [end.split()[1] for end in ends] == ["-9", "-9", "-9", "0"], steps
    for end, stage in zip(ends, steps, strict=False):
        assert f'"stage": "{stage}"' in end
    again = weights(recipe.parent)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole), steps
    for folder in (tmp_path / "whole", recipe.parent):
        entries = [(entry["stage"], entry["step"]) for entry in log_of(folder)]
        counts = {"branches": 5, "joint": 6, "decoders": 5}
        assert entries == [(s, i + 1) for s, n in counts.items() for i in range(n)]


def test_two_processes_killed_between_restarts_of_codes_go_on_with_the_same_bits(
    tiny_training: Tree, tmp_path: Path
) -> None:
    """The state is the first rank's: it must know what codes the other has used until then."""
    tree = tiny_training | {"save_every": 3, "held_out": "chelsea*", "held_out_share": 0.99}
    tree["tokenizer"] = tree["tokenizer"] | {"num_codes": 512}
    options: Tree = {"restart_every": 4, "batch_size": 1, "adversarial": ADVERSARIAL}
    options |= {"branch_steps": 2, "decoder_steps": 2}
    recipes = [write_recipe(tree, tmp_path / name, **options) for name in ("whole", "killed")]
    lines = run(TWO_KILLED_AND_RESUMED, *map(str, recipes)).splitlines()
    ends = [line for line in lines if line.startswith("ends")]
    assert ends == ["ends 0 0", "ends -9 -9", "ends 0 0", "ends 0 0"]
    restarted = [line for line in lines if "restarted" in line]
    assert len(restarted) == 2
    assert restarted[0] == restarted[1] != "  restarted 0 of 512 codes"
    whole, again = (weights(recipe.parent) for recipe in recipes)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    logs = [[entry["losses"] for entry in log_of(recipe.parent)] for recipe in recipes]
    assert logs[0] == logs[1]
    records = [(recipe.parent / "tokenizer.training.json").read_text() for recipe in recipes]
    first, second = (json.loads(record)["quality"] for record in records)
    assert first == second
    assert [quality["num_photographs"] for quality in first] == [1, 1]  # the other rank had none
    told = sorted(line for line in lines if line.startswith("told"))
    assert [line.split(" writes to ")[0] for line in told] == [
        f"told {rank} another training" for rank in (0, 1)
    ]


def test_killed_while_measuring_loses_no_step_and_measures_the_rest(
    tiny_training: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tiny_training | {"held_out": "chelsea*", "held_out_share": 0.99, "save_every": 100}
    tree |= {"evaluate_every": 3, "sample_every": 3}
    train(tree, tmp_path / "whole")
    original, measured = training.evaluate, list[int]()

    def killed(*args: Any, **kwargs: Any) -> Any:
        measured.append(args[2])
        if measured == [256, 512]:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(training, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tree, tmp_path / "killed")
    state = torch.load(tmp_path / "killed/tokenizer.training/state.pt", weights_only=True)
    assert (state["stage"], state["step"]) == ("joint", 3)
    grid = tmp_path / "killed/tokenizer.training/samples/joint-0000003.png"
    drawn = grid.stat().st_mtime_ns
    train(tree, tmp_path / "killed")
    assert measured[:3] == [256, 512, 512]  # and not 256 again
    assert grid.stat().st_mtime_ns == drawn
    folders = [tmp_path / name for name in ("whole", "killed")]
    whole, again = map(weights, folders)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    first, second = (
        [entry["quality"] for entry in log_of(folder) if "quality" in entry] for folder in folders
    )
    assert first == second
    assert [quality["level"] for quality in first] == [256, 512] * 3


def test_two_processes_are_one_with_the_same_pictures(
    tiny_training: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"branch_steps": 2, "joint_steps": 3, "decoder_steps": 2}
    # Small rates: Adam makes a full step of the last bit of a gradient that is all but zero.
    rates = {"learning_rate": 1e-4}
    adversarial = ADVERSARIAL | {"start_step": 1, "learning_rate": 1e-7}
    options: Tree = {"adversarial": adversarial} | steps | rates
    found = []
    for processes in (1, 2):
        recipe = write_recipe(
            tiny_training, tmp_path / str(processes), batch_size=4 // processes, **options
        )
        if processes == 1:
            monkeypatch.setattr(sys, "argv", ["", str(recipe)])
            monkeypatch.setattr(torch.optim.AdamW, "step", torch.optim.AdamW.step)  # for later
            monkeypatch.setattr(Loop, "train", Loop.train)
            exec(EVERY_RANK, {})
            monkeypatch.undo()
        else:
            run(EVERY_RANK, str(recipe), processes=processes)
        folder = recipe.parent / "tokenizer.training"
        found += [torch.load(folder / f"rank{rank}") for rank in range(processes)]
    (one, single), (first, weights), (second, others) = found
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name
        torch.testing.assert_close(value, single[name], rtol=0, atol=1e-5, msg=name)
    assert len(one) == len(first) == 2 * 7  # the discriminator's optimiser steps, too
    for alone, ours, theirs in zip(one, first, second, strict=True):
        for a, b, c in zip(alone, ours, theirs, strict=True):
            assert torch.equal(b, c)
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    logs = [log_of(tmp_path / name) for name in ("1", "2")]
    for alone, together in zip(*logs, strict=True):
        assert together["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert together.get("usage") == alone.get("usage")


def test_two_passes_are_one_with_the_same_pictures(tiny_training: Tree, tmp_path: Path) -> None:
    logs, steps = [], {"branch_steps": 2, "joint_steps": 1, "decoder_steps": 1}
    for passes in (1, 2):
        folder = tmp_path / str(passes)
        train(tiny_training, folder, gradient_accumulation=passes, batch_size=4 // passes, **steps)
        logs.append(log_of(folder))
    first = [log[0]["losses"] for log in logs]
    assert first[0]["picture"] == pytest.approx(first[1]["picture"], abs=1e-5)
    assert first[0]["semantic"] == pytest.approx(first[1]["semantic"], abs=1e-5)
    # Only the energy is of a pass; what it changes is small.
    norms = [[entry["gradient_norm"] for entry in log] for log in logs]
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_a_finished_training_is_only_measured_again(tiny_training: Tree, tmp_path: Path) -> None:
    before = train(tiny_training, tmp_path)
    log, data = log_of(tmp_path), (tmp_path / "tokenizer.safetensors").read_bytes()
    after = train(tiny_training, tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert log_of(tmp_path) == log
    assert (tmp_path / "tokenizer.safetensors").read_bytes() == data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "has learning.seed 0, this recipe 1"),
        ({"batch_size": 3}, "has learning.pictures_per_step.level_256 2, this recipe 3"),
    ],
)
def test_another_recipe_does_not_go_on(
    tiny_training: Tree, tmp_path: Path, changes: Tree, message: str
) -> None:
    short: Tree = {"branch_steps": 1, "joint_steps": 1, "decoder_steps": 1}
    train(tiny_training, tmp_path, **short)
    with pytest.raises(ConfigError, match=message):
        train(tiny_training, tmp_path, **short, **changes)


def test_losses_that_are_no_numbers_end_the_training(tiny_training: Tree, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no numbers any more at step \d: lower learning"):
        train(tiny_training, tmp_path, learning_rate=1e30)


def test_learning_rate_warms_up_and_falls_to_a_fiftieth() -> None:
    learning = Learning(branch_steps=1000, joint_steps=1000, learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate(learning, "branches", step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1, abs=1e-2)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)
    assert learning_rate(learning, "joint", 500) == pytest.approx(rates[500] / 2)
