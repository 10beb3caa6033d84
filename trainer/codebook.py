"""The tokenizer's codebook as a file: where the visual embeddings start from.

One safetensors tensor ``codebook`` [num_codes, dim], with the tokenizer's identity as metadata, so
that codes of another tokenizer are refused. Packs carry it beside ``packs.json``.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from infra.config import ConfigError
from infra.storage import Storage, client_errors
from packing.packs import CODEBOOK, Packs


def write(path: str | Path, codebook: Tensor, tokenizer: str) -> None:
    """Store [num_codes, dim] vectors with the identity of the tokenizer they come from."""
    folder, name = os.path.split(path)
    tensors = {"codebook": codebook.detach().float().cpu().contiguous()}
    Storage(folder).write(name, save(tensors, {"tokenizer": tokenizer}))


def of_packs(packs: Packs) -> str | None:
    """The path of the codebook that lies beside the packs, if one does."""
    return packs.storage.path(CODEBOOK) if packs.storage.exists(CODEBOOK) else None


def read(path: str | Path, num_codes: int, tokenizer: str) -> Tensor:
    """The codebook, fp32. Raises ConfigError unless it is of this tokenizer and size."""
    folder, name = os.path.split(path)
    storage = Storage(folder)
    unreadable: tuple[type[Exception], ...] = (
        SafetensorError,
        KeyError,
        *client_errors(storage.root),
    )
    try:
        data = storage.read(name)
        codebook = load(data)["codebook"].to(torch.float32)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        owner = header.get("__metadata__", {}).get("tokenizer")
    except unreadable as error:
        raise ConfigError(
            f"codebook {path} is not readable ({error}): export it from the tokenizer"
        ) from None
    if owner != tokenizer:
        raise ConfigError(
            f"codebook {path} is of tokenizer {owner}, the packs are of tokenizer {tokenizer}: "
            "export the codebook of the tokenizer that made the packs"
        )
    if codebook.dim() != 2 or len(codebook) != num_codes:
        raise ConfigError(
            f"codebook {path} is {list(codebook.shape)}, the packs have {num_codes} codes: "
            "export the codebook of the tokenizer that made the packs"
        )
    return codebook
