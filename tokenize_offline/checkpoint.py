"""A tokenizer on disk: ``NAME.safetensors`` with its settings beside it in ``NAME.json``.

Weights are stored in float16 to be small and computed with in float32. The settings file is enough
to build the network; the identity is the hash of both files and names the meaning of every code.
"""

import dataclasses
import hashlib
import json
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from infra import config
from infra.config import ConfigError
from tokenize_offline.model import Tokenizer, TokenizerSettings


def carried() -> Path:
    """The checkpoint that comes with nextscale; its card is weights/README.md."""
    return Path(str(files("tokenize_offline").joinpath("weights/tokenizer.safetensors")))


def save(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write the weights to ``path`` (`.safetensors`) and the settings beside them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: value.half().contiguous() for name, value in tokenizer.state_dict().items()}
    path.write_bytes(serialise(stored))  # save_file would make it unreadable for other users
    settings = json.dumps(dataclasses.asdict(tokenizer.settings), indent=2)
    path.with_suffix(".json").write_text(settings + "\n", encoding="utf-8")


def load(path: str | Path = "", device: str = "cpu") -> Tokenizer:
    """Read a tokenizer for inference, in float32; "" is the carried one. Raises ConfigError."""
    path = _existing(path)
    settings = read_settings(path)
    tokenizer = Tokenizer(settings)
    stored = load_file(str(path))
    wanted = tokenizer.state_dict()
    wrong = [n for n in {**wanted, **stored} if _shape(wanted, n) != _shape(stored, n)]
    if wrong:
        raise ConfigError(f"tokenizer {path} does not fit {path.stem}.json: see `{wrong[0]}`")
    tokenizer.load_state_dict({name: value.float() for name, value in stored.items()})
    # Channels last is what the CPU's and the GPU's convolutions are fastest in.
    tokenizer = tokenizer.to(memory_format=torch.channels_last).to(device)
    return tokenizer.eval().requires_grad_(False)


def read_settings(path: str | Path = "") -> TokenizerSettings:
    """The settings beside the weights at ``path``, without loading the weights."""
    path = _existing(path).with_suffix(".json")
    return config.build(TokenizerSettings, json.loads(path.read_text(encoding="utf-8")))


def identity(path: str | Path = "") -> str:
    """blake2b-128 of weights and settings as hex; does not load the network."""
    path = _existing(path)
    h = hashlib.blake2b(digest_size=16)
    for file in (path, path.with_suffix(".json")):
        h.update(file.read_bytes())
    return h.hexdigest()


def _existing(path: str | Path) -> Path:
    path = Path(path) if str(path) else carried()
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise ConfigError(f"tokenizer {file} does not exist: train one or leave it at ''")
    return path


def _shape(weights: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None
