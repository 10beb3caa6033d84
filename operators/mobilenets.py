"""Small convolutional networks: two whose weights come with the project, one whose do not.

Batch normalisations are folded into the convolutions before them (in the carried files, or while
loading), so that a layer is a convolution with a bias and a ReLU6. All pad as TensorFlow does
("same"): a stride of 2 on an even side takes one pixel more after than before. They run with
channels last in memory, which is 1.5 times as fast on a CPU.
"""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parent / "weights"
NSFW_CLASSES = ("drawing", "hentai", "neutral", "porn", "sexy")

_NSFW_ENDS = {"stem": ("conv1", "bn1"), "head": ("conv_last", "bn_last")}
_NORM = ("weight", "bias", "running_mean", "running_var")
_EPSILON = 1e-3  # of the batch normalisations, as in all of Keras' MobileNets

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


def inverted_residuals(
    inputs: int, stages: Sequence[tuple[int, int, int, int, int]]
) -> nn.Sequential:
    """Blocks by stage: outputs, kernel, stride of the first, widening, repeats."""
    blocks = []
    for outputs, kernel, stride, widening, repeats in stages:
        for repeat in range(repeats):
            first = stride if repeat == 0 else 1
            blocks.append(InvertedResidual(inputs, outputs, kernel, first, widening))
            inputs = outputs
    return nn.Sequential(*blocks)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, a classifier of the 1,000 ImageNet classes.

    M. Tan and Q. Le, "EfficientNet" (arXiv:1905.11946), without squeeze-and-excitation. Input
    [n, 3, 224, 224] as (x - 127) / 128, output logits [n, 1000].
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, stride=2)
        stages = [
            (16, 3, 1, 1, 1),
            (24, 3, 2, 6, 2),
            (40, 5, 2, 6, 2),
            (80, 3, 2, 6, 3),
            (112, 5, 1, 6, 3),
            (192, 5, 2, 6, 4),
            (320, 3, 1, 6, 1),
        ]
        self.blocks = inverted_residuals(32, stages)
        self.head = SameConv(320, 1280, 1)
        self.classes = nn.Linear(1280, 1000)

    def features(self, images: Tensor) -> Tensor:
        """What the classes are told from, [n, 1280]: the last channels, pooled."""
        x = F.relu6(self.stem(images.contiguous(memory_format=torch.channels_last)))
        return F.relu6(self.head(self.blocks(x))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classes(self.features(images))
        return logits


class MobileNetNsfw(nn.Module):
    """MobileNet v2 with three dense layers behind it, the classifier of nsfwjs.

    M. Sandler et al., "MobileNetV2" (arXiv:1801.04381); github.com/infinitered/nsfwjs. Input
    [n, 3, 224, 224] in 0..1, output [n, 5]: the shares of `NSFW_CLASSES`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, stride=2)
        stages = [
            (16, 3, 1, 1, 1),
            (24, 3, 2, 6, 2),
            (32, 3, 2, 6, 3),
            (64, 3, 2, 6, 4),
            (96, 3, 1, 6, 3),
            (160, 3, 2, 6, 3),
            (320, 3, 1, 6, 1),
        ]
        self.blocks = inverted_residuals(32, stages)
        self.head = SameConv(320, 1280, 1)
        self.dense = nn.ModuleList([nn.Linear(1280, 256), nn.Linear(256, 128), nn.Linear(128, 5)])

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu6(self.stem(images.contiguous(memory_format=torch.channels_last)))
        x = F.relu6(self.head(self.blocks(x))).mean((2, 3))
        logits: Tensor = self.dense[2](F.relu(self.dense[1](F.relu(self.dense[0](x)))))
        return logits.softmax(-1)


def load(network: Network, name: str, device: str = "cpu") -> Network:
    """Fill ``network`` strictly from the carried file ``name``; computes in fp32, frozen."""
    network.load_state_dict(load_file(WEIGHTS / name))  # stored fp16 is widened as it is copied in
    return _frozen(network, device)


def load_nsfw(path: str | Path, device: str = "cpu") -> MobileNetNsfw:
    """The network of `check_nsfw`'s file, in fp32, frozen, its batch normalisations folded."""
    check_nsfw(path)
    stored = load_file(path)
    network = MobileNetNsfw()
    tensors = {}
    for name in network.state_dict():
        place, kind = name.rsplit(".", 1)
        convolution, norm = _nsfw_layer(place)
        if norm:
            weight = stored[f"{convolution}.weight"].double()
            gamma, beta, mean, variance = (stored[f"{norm}.{part}"].double() for part in _NORM)
            scale = gamma / (variance + _EPSILON).sqrt()
            folded = {"weight": weight * scale[:, None, None, None], "bias": beta - mean * scale}
            tensors[name] = folded[kind]
        else:
            tensors[name] = stored[f"{convolution}.{kind}"]
    network.load_state_dict(tensors)
    return _frozen(network, device)


def check_nsfw(path: str | Path) -> None:
    """Raises ValueError unless ``path`` is a file of operators/weights/make_nsfw.py's kind.

    Only the file's header is read.
    """
    remedy = "make it from the npm package nsfwjs with operators/weights/make_nsfw.py"
    if not Path(path).is_file():
        raise ValueError(f"weights {path} does not exist: {remedy}")
    try:
        with safe_open(path, "pt") as file:
            found = set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"weights {path} is no safetensors file ({error}): {remedy}") from None
    for name in MobileNetNsfw().state_dict():
        place, kind = name.rsplit(".", 1)
        convolution, norm = _nsfw_layer(place)
        wanted = {f"{convolution}.weight", *(f"{norm}.{part}" for part in _NORM)}
        missing = sorted((wanted if norm else {f"{convolution}.{kind}"}) - found)
        if missing:
            raise ValueError(f"weights {path} lacks {missing[0]}: {remedy}")


def _nsfw_layer(place: str) -> tuple[str, str]:
    """The stored names of a layer's convolution and its batch normalisation ("" for none)."""
    if place.startswith("dense."):
        return place.replace("dense", "fc"), ""
    if place in _NSFW_ENDS:
        return _NSFW_ENDS[place]
    stored = place.replace("depthwise", "dw")
    return stored, f"{stored}_bn"


def _frozen(network: Network, device: str) -> Network:
    network.eval().requires_grad_(False)
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file as hex: the identity of the weights it holds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
