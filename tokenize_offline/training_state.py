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

NAME = "state.pt"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep ``folder`` for this training alone. Raises ConfigError if another one has it."""
    with (folder / ".lock").open("w") as file:
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
    """Replace the state in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{NAME}.writing"  # one name: the next save overwrites what a kill left
    with beside.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / NAME)


def load(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state in ``folder``, on the CPU, or None if there is none.

    Raises ConfigError, naming the first difference, if it was made with other ``settings``.
    """
    path = folder / NAME
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
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
