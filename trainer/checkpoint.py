"""Checkpoints: written beside, renamed when complete, so that one that exists is whole.

``<output>/checkpoints/step-00000100/`` holds ``state.json`` (step, packs consumed, what the run is
made of) and DeepSpeed's own files under ``engine/`` (parameters, optimiser, random state), made for
a number of ranks. For another number they are converted first, once, into ``universal/``.
"""

import json
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra.config import ConfigError

_TAG, _UNIVERSAL = "engine", "universal"


@dataclass(frozen=True)
class Progress:
    """How far a run is: the steps taken and the packs read, which is the reader's whole state."""

    step: int = 0
    packs_consumed: int = 0


def save(
    folder: Path, engine: Any, progress: Progress, identity: Mapping[str, Any], keep: int
) -> None:
    """Write the checkpoint of this step with all ranks; keeps the newest ``keep``."""
    first = torch.distributed.get_rank() == 0
    final = folder / f"step-{progress.step:08d}"
    writing = folder / f".{final.name}.writing"
    if first:  # what a killed run left, of whatever step
        for left in folder.glob(".step-*.writing"):
            shutil.rmtree(left)
    torch.distributed.barrier()
    # The loop draws nothing at random, so one rank's state stands for all.
    engine.save_checkpoint(
        str(writing), tag=_TAG, client_state={"rng": torch.get_rng_state()}, save_latest=False
    )
    torch.distributed.barrier()
    if first:
        state = {
            "step": progress.step,
            "packs_consumed": progress.packs_consumed,
            "ranks": torch.distributed.get_world_size(),
            "identity": dict(identity),
        }
        (writing / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        writing.rename(final)
        for old in complete(folder)[:-keep]:
            shutil.rmtree(old)
    torch.distributed.barrier()


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def check(checkpoint: Path, identity: Mapping[str, Any]) -> None:
    """Raise ConfigError if the checkpoint belongs to another model, vocabulary or plan of packs."""
    stored = _state(checkpoint)["identity"]
    for key in identity:
        ours = json.loads(json.dumps(identity[key]))  # as stored: tuples become lists
        if stored.get(key) != ours:
            raise ConfigError(
                f"checkpoint {checkpoint} was made with {key} {stored.get(key)}, this run has "
                f"{ours}: choose another output, or go back to the former {key}"
            )


def convert(checkpoint: Path) -> bool:
    """Make the checkpoint loadable if it is of another number of ranks; whether it was so.

    All ranks must call this. Without ZeRO every rank's state is the same, and nothing is to do.
    """
    state = _state(checkpoint)
    same = state["ranks"] == torch.distributed.get_world_size()
    if same or not state["identity"]["zero_stage"]:
        return False
    final = checkpoint / _UNIVERSAL
    if torch.distributed.get_rank() == 0 and not final.exists():
        # A folder of its own: what a killed run had started may still be writing.
        writing = Path(tempfile.mkdtemp(prefix=f".{_UNIVERSAL}.", dir=checkpoint))
        # In a process of its own: it starts others, which must not inherit this group.
        run = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
        folders = ["--input_folder", str(checkpoint / _TAG), "--output_folder", str(writing)]
        done = subprocess.run(
            [*run, *folders, "--inject_missing_state"], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise _damaged(checkpoint, " ".join(done.stderr.split())[-500:])
        writing.rename(final)
        for left in checkpoint.glob(f".{_UNIVERSAL}.*"):
            shutil.rmtree(left, ignore_errors=True)
    while not final.exists():  # no barrier: a large one takes longer than a collective may
        time.sleep(0.1)
    return True


def _state(checkpoint: Path) -> dict[str, Any]:
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        _ = [state[key] for key in ("step", "packs_consumed", "ranks", "identity")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(checkpoint, f"state.json: {error}") from None
    return dict(state)


def _damaged(checkpoint: Path, why: str) -> ConfigError:
    return ConfigError(
        f"checkpoint {checkpoint} is damaged ({why}): remove it to go on from the one before"
    )


def reached(checkpoint: Path) -> Progress:
    """How far the run was."""
    state = _state(checkpoint)
    return Progress(state["step"], state["packs_consumed"])


def load(checkpoint: Path, engine: Any) -> None:
    """Restore parameters, optimiser and random state into ``engine``. Raises ConfigError."""
    groups = engine.optimizer.param_groups
    settings = [{name: group[name] for name in ("weight_decay", "betas")} for group in groups]
    universal = engine.load_universal_checkpoint()
    tag = _UNIVERSAL if universal else _TAG
    try:
        path, client_state = engine.load_checkpoint(str(checkpoint), tag=tag)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _damaged(checkpoint, " ".join(str(error).split())[:500]) from None
    if path is None:
        raise _damaged(checkpoint, "files are missing")
    # What this run says counts, not what the checkpoint was made with. (And from a converted one
    # DeepSpeed 0.19 gives all groups the settings of the first.)
    for group, ours in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(ours)
    if universal:
        # It also gives all parameters one counter of steps, which each of them would count up.
        for moments in engine.optimizer.optimizer.state.values():
            moments["step"] = moments["step"].clone()
    torch.set_rng_state(client_state["rng"])
