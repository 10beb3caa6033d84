"""The two small convolutional networks whose weights come with the project.

Both are given with their batch normalisations folded into the convolutions (see
operators/weights/README.md), so that a layer is a convolution with a bias and a ReLU6. Both pad as
TensorFlow does ("same"): a stride of 2 on an even side takes one pixel more after than before.
They run with channels last in memory, which is 1.5 times as fast on a CPU.
"""

import hashlib
import itertools
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parent / "weights"

Network = TypeVar("Network", bound=nn.Module)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding "same", for even sides where the stride is 2."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups)
        before = (kernel - 2) // 2
        self.uneven = (before, kernel - 2 - before) * 2 if stride == 2 else None

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.uneven) if self.uneven else input)


class MobileNetNima(nn.Module):
    """MobileNet v1 with ten outputs, the shares of the ratings 1 to 10.

    A. Howard et al., "MobileNets" (arXiv:1704.04861); H. Talebi and P. Milanfar, "NIMA: Neural
    Image Assessment" (arXiv:1709.05424). Input [n, 3, 224, 224] in -1..1, output [n, 10].
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, stride=2)
        widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
        strides = [1, 2, 1, 2, 1, 2, *[1] * 5, 2, 1]
        self.depthwise = nn.ModuleList(
            SameConv(width, width, 3, stride, groups=width)
            for width, stride in zip(widths, strides, strict=False)
        )
        self.pointwise = nn.ModuleList(
            SameConv(inputs, outputs, 1) for inputs, outputs in itertools.pairwise(widths)
        )
        self.ratings = nn.Linear(1024, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu6(self.stem(images.contiguous(memory_format=torch.channels_last)))
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = F.relu6(pointwise(F.relu6(depthwise(x))))
        ratings: Tensor = self.ratings(x.mean((2, 3)))
        return ratings.softmax(-1)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; added to the input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        width = inputs * widening
        self.expand = SameConv(inputs, width, 1) if widening > 1 else None
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.project = SameConv(width, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x))
        narrow: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return x + narrow if self.residual else narrow


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, a classifier of the 1,000 ImageNet classes.

    M. Tan and Q. Le, "EfficientNet" (arXiv:1905.11946), without squeeze-and-excitation. Input
    [n, 3, 224, 224] as (x - 127) / 128, output logits [n, 1000].
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, stride=2)
        # outputs, kernel, stride of the first, widening, repeats
        stages = [
            (16, 3, 1, 1, 1),
            (24, 3, 2, 6, 2),
            (40, 5, 2, 6, 2),
            (80, 3, 2, 6, 3),
            (112, 5, 1, 6, 3),
            (192, 5, 2, 6, 4),
            (320, 3, 1, 6, 1),
        ]
        blocks = []
        inputs = 32
        for outputs, kernel, stride, widening, repeats in stages:
            for repeat in range(repeats):
                first = stride if repeat == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, kernel, first, widening))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = SameConv(inputs, 1280, 1)
        self.classes = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu6(self.stem(images.contiguous(memory_format=torch.channels_last)))
        x = F.relu6(self.head(self.blocks(x)))
        logits: Tensor = self.classes(x.mean((2, 3)))
        return logits


def load(network: Network, name: str, device: str = "cpu") -> Network:
    """Fill ``network`` strictly from the carried file ``name``; computes in fp32, frozen."""
    network.load_state_dict(load_file(WEIGHTS / name))  # stored fp16 is widened as it is copied in
    network.eval().requires_grad_(False)
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file as hex: the identity of the weights it holds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
