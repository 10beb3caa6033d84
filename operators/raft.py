"""The RAFT networks of torchvision, and where their weights come from.

Weights are named by a text: empty for the file that comes with the project (``raft_small`` only),
``torchvision`` for torchvision's own download, else the path of a state dictionary with
torchvision's names (.safetensors, or .pth as torchvision publishes them). Those of princeton-vl,
who made RAFT, are converted by operators/weights/make_raft.py.
"""

import pickle
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url

from operators import mobilenets

CARRIED = mobilenets.WEIGHTS / "raft_small_fp16.safetensors"
DOWNLOAD = "torchvision"


def identity(method: str, weights: str) -> str:
    """Hash or published name of the weights; raises ValueError unless they are the network's.

    Nothing is downloaded.
    """
    if weights == DOWNLOAD:
        return _published(method).rpartition("/")[2]
    path = weights or str(CARRIED)
    _tensors(method, path)
    return mobilenets.file_hash(path)


@cache
def load(method: str, weights: str, device: str) -> nn.Module:
    """The network ``raft_small`` or ``raft_large`` in fp32, frozen; loaded once per process."""
    if weights == DOWNLOAD:
        tensors = load_state_dict_from_url(_published(method), map_location="cpu", check_hash=True)
    else:
        tensors = dict(_tensors(method, weights or str(CARRIED)))
    network = _empty(method)
    network.load_state_dict(tensors)  # stored fp16 is widened as it is copied in
    return network.to(device)


def _published(method: str) -> str:
    """The address of torchvision's weights, whose name ends with their hash."""
    from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights

    kinds = {"raft_small": Raft_Small_Weights, "raft_large": Raft_Large_Weights}
    return str(kinds[method].DEFAULT.url)


def _empty(method: str) -> nn.Module:
    from torchvision.models.optical_flow import raft_large, raft_small

    with torch.random.fork_rng(devices=[]):  # its random start would move the caller's numbers on
        network: nn.Module = {"raft_small": raft_small, "raft_large": raft_large}[method]()
    return network.eval().requires_grad_(False)


@cache
def _shapes(method: str) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in _empty(method).state_dict().items()}


def _tensors(method: str, path: str) -> Mapping[str, Tensor]:
    remedy = f"give a state dictionary of torchvision's {method} (operators/weights/README.md)"
    if not Path(path).is_file():
        raise ValueError(f"weights {path} does not exist: {remedy}")
    try:
        tensors: dict[str, Tensor]
        if path.endswith(".safetensors"):
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights {path} is no file of weights ({reason}): {remedy}") from None
    found = tensors if isinstance(tensors, dict) else {}
    for name, shape in _shapes(method).items():
        there = found.get(name)
        if not isinstance(there, Tensor):
            raise ValueError(f"weights {path} lacks {name}: {remedy}")
        if tuple(there.shape) != shape:
            sizes = f"{list(there.shape)} instead of {list(shape)}"
            raise ValueError(f"weights {path} has {name} of {sizes}: {remedy}")
    return found
