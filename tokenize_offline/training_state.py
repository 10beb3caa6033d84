"""The state of a training on disk: one file that is always whole, and what it belongs to.

``state.pt`` holds the weights in float32, the optimisers, stage and step, and the settings that the
numbers came from. It is written under a temporary name, synced and renamed, so a kill leaves the
state before or the state after. No random state is in it: `tokenize_offline.draws`.
"""

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from infra.config import ConfigError
from tokenize_offline.weight_files import read_torch

NAME = "state.pt"
_FIELDS = {"settings", "stage", "step", "seconds", "networks", "optimiser"}


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make ``folder`` and keep it for this training alone.

    Raises ConfigError if another one has it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"output: {folder} cannot be written ({error.strerror}): choose another folder"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another training writes to {folder}: wait for it, or choose another output"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP):  # a file system without locks
                raise
        yield  # a process that ends, however it does, lets go


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the state in ``folder``; it has the keys of `_FIELDS`."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{NAME}.writing"  # one name: the next save overwrites what a kill left
    with beside.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / NAME)


def load(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state in ``folder``, on the CPU, or None if there is none.

    Raises ConfigError, naming the first difference, if it was made with other ``settings``, and for
    a file that is damaged or no state.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = read_torch(path)
        if not isinstance(state, dict) or not state.keys() >= _FIELDS:
            raise ValueError("it is no state of a training")
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be gone on from, {error}: put back a copy of it, or remove the folder "
            "to start anew"
        ) from None
    stored, ours = _flat(state["settings"]), _flat(settings)
    for name in {**ours, **stored}:
        if stored.get(name) != ours.get(name):
            raise ConfigError(
                f"the training in {folder} has {name} {stored.get(name)}, this recipe "
                f"{ours.get(name)}: go back to the former, choose another output, or remove that "
                "folder to start anew"
            )
    return state


def _flat(tree: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Nested sections as dotted names; lists and tuples are the same."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{place}{key}.")
        else:
            flat[place + key] = list(value) if isinstance(value, tuple) else value
    return flat
