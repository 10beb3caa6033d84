"""The tokenizer's codebook as a file: where the visual embeddings start from.

One safetensors tensor ``codebook`` [num_codes, dim], with the tokenizer's identity as metadata, so
that codes of another tokenizer are refused.
"""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infra.config import ConfigError


def write(path: str | Path, codebook: Tensor, tokenizer: str) -> None:
    """Store [num_codes, dim] vectors with the identity of the tokenizer they come from."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"codebook": codebook.detach().float().cpu().contiguous()}
    beside = path.with_name(f".{path.name}.{os.getpid()}")  # every rank of a launcher may write it
    save_file(tensors, str(beside), {"tokenizer": tokenizer})
    os.replace(beside, path)


def read(path: str | Path, num_codes: int, tokenizer: str) -> Tensor:
    """The codebook, fp32. Raises ConfigError unless it is of this tokenizer and size."""
    try:
        with safe_open(str(path), framework="pt") as file:
            owner = (file.metadata() or {}).get("tokenizer")
            codebook: Tensor = file.get_tensor("codebook").to(torch.float32)
    except (SafetensorError, OSError) as error:
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
