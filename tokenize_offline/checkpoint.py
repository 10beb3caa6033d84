"""A tokenizer on disk: ``NAME.safetensors`` with its settings beside it in ``NAME.json``.

Weights are stored in 16 bits to be small and computed with in float32. The settings file is enough
to build the network; the identity is the hash of both files and names the meaning of every code.
"""

import dataclasses
import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infra import config
from infra.config import ConfigError
from tokenize_offline.model import Tokenizer, TokenizerSettings


def carried() -> Path:
    """The checkpoint that comes with nextscale; its card is weights/README.md."""
    return Path(str(files("tokenize_offline").joinpath("weights/tokenizer.safetensors")))


def save(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write the weights to ``path`` (`.safetensors`) and the settings beside them.

    Each tensor takes the 16-bit type that keeps it best: float16, which has eight times the
    precision, unless its values are beyond float16's range (6e-8 to 65,504), as a large pretrained
    tower's may be: then bfloat16.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: narrow(value.cpu()) for name, value in tokenizer.state_dict().items()}
    # Written aside and renamed at last, one after the other: nobody ever reads half a file, and of
    # a pair of which one is new `load` tells what does not fit.
    partial = path.with_name(f".{path.name}.partial")
    partial.touch()
    mode = partial.stat().st_mode
    save_file(stored, partial)
    partial.chmod(mode)  # safetensors would make it unreadable for other users
    settings = path.with_suffix(".json")
    partial_settings = settings.with_name(f".{settings.name}.partial")
    text = json.dumps(dataclasses.asdict(tokenizer.settings), indent=2)
    partial_settings.write_text(text + "\n", encoding="utf-8")
    os.replace(partial_settings, settings)
    os.replace(partial, path)


def narrow(value: Tensor) -> Tensor:
    """The tensor in float16 or bfloat16, whichever has the smaller squared error."""

    def error(dtype: torch.dtype) -> float:
        return float((value.to(dtype).double() - value).square().sum())

    return value.to(min((torch.float16, torch.bfloat16), key=error)).contiguous()


def load(path: str | Path = "", device: str | torch.device = "cpu") -> Tokenizer:
    """Read a tokenizer for inference, in float32; "" is the carried one. Raises ConfigError."""
    path = _existing(path)
    with torch.device("meta"):  # shapes only: of a large tower, one copy is enough in memory
        tokenizer = Tokenizer(read_settings(path))
    wanted = {name: tuple(value.shape) for name, value in tokenizer.state_dict().items()}
    try:
        with safe_open(path, "pt") as stored:
            found = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
            for name in {**wanted, **found}:
                if wanted.get(name) != found.get(name):
                    raise ConfigError(
                        f"tokenizer {path} does not fit {path.stem}.json: `{name}` is "
                        f"{_told(found.get(name))}, by the settings {_told(wanted.get(name))}"
                    )
            weights = {name: stored.get_tensor(name).to(device).float() for name in wanted}
    except SafetensorError as error:
        raise ConfigError(f"tokenizer {path} is no safetensors file: {error}") from None
    tokenizer.load_state_dict(weights, assign=True)
    # Channels last is what the CPU's and the GPU's convolutions are fastest in.
    tokenizer = tokenizer.to(memory_format=torch.channels_last)
    return tokenizer.eval().requires_grad_(False)


def read_settings(path: str | Path = "") -> TokenizerSettings:
    """The settings beside the weights at ``path``, without loading them. Raises ConfigError."""
    path = _existing(path).with_suffix(".json")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError(f"it holds {type(tree).__name__}, not settings")
        return config.build(TokenizerSettings, tree)
    except ValueError as error:  # no text, no JSON, or no such settings
        raise ConfigError(f"tokenizer settings {path}: {' '.join(str(error).split())}") from None


def identity(path: str | Path = "") -> str:
    """blake2b-128 of weights and settings as hex; does not load the network."""
    path = _existing(path)
    h = hashlib.blake2b(digest_size=16)
    for name in (path, path.with_suffix(".json")):
        with name.open("rb") as file:
            hashlib.file_digest(file, lambda: h)  # goes on with h, in pieces
    return h.hexdigest()


def _existing(path: str | Path) -> Path:
    path = Path(path) if str(path) else carried()
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise ConfigError(f"tokenizer {file} does not exist: train one or leave it at ''")
    return path


def _told(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
