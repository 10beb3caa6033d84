"""Files of tensors by name, from anywhere: read or refused in one line, and told by their content.

PyTorch's own files come in two kinds: since version 1.6 a zip archive, before that a stream of
pickles, as which LPIPS's heads and torchvision's VGG-16 are still published.
"""

import hashlib
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_ZIP = b"PK\x03\x04"
_STREAM = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of torch's magic number
# What torch.load has been seen to raise for files that are torn or have other bytes in them.
_DAMAGED = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, OSError, RuntimeError),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, OverflowError),
    *(EOFError, MemoryError),
)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a file of safetensors (by its suffix) or of PyTorch, on the CPU.

    Raises ValueError, in one line without the path, for what is no such file, or a damaged one.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"it is no file of safetensors: {_line(error)}") from None
    stored = read_torch(path)
    if not isinstance(stored, dict) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise ValueError("it holds no weights by name: give a state dict")
    return stored


def read_torch(path: Path) -> Any:
    """What torch.save wrote: tensors, numbers, text and containers of them, on the CPU.

    Raises ValueError, in one line without the path, for any other file, or a damaged one.
    """
    with path.open("rb") as file:
        head = file.read(len(_STREAM))
    if not head.startswith(_ZIP) and head != _STREAM:
        raise ValueError("it is no file of PyTorch's")
    try:
        if head.startswith(_ZIP):  # torch checks no sum: bits that have flipped would be weights
            with zipfile.ZipFile(path) as archive:
                torn = archive.testzip()
            if torn is not None:
                raise zipfile.BadZipFile(f"the sum of {torn} is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a damaged file: the error says it
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise ValueError(f"it is damaged: {_line(error)}") from None


def content(network: nn.Module | None) -> str:
    """Digest of a network's weights, by name, wherever they were read; "none" without a network."""
    if network is None:
        return "none"
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
