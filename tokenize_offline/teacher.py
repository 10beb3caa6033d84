"""The frozen teachers that the semantic branch is taught by: SigLIP2, or EfficientNet-Lite0.

A teacher is called with pixels [B, 3, H, W] in [-1, 1] and gives features [B, dim, H/16, W/16]
without gradients. It is used at training time only. The full-size tokenizer is taught by SigLIP2's
second-to-last hidden state; the small one by an image classifier that needs no model hub: M. Tan
and Q. Le, "EfficientNet" (arXiv:1905.11946), without squeeze-and-excitation, with batch
normalisation folded into the convolutions.
"""

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from infra.config import ConfigError
from tokenize_offline import siglip2

# (kernel, stride, expansion, channels out) of the first 11 blocks, which end at stride 16.
_BLOCKS = (
    (3, 1, 1, 16),
    (3, 2, 6, 24),
    (3, 1, 6, 24),
    (5, 2, 6, 40),
    (5, 1, 6, 40),
    (3, 2, 6, 80),
    (3, 1, 6, 80),
    (3, 1, 6, 80),
    (5, 1, 6, 112),
    (5, 1, 6, 112),
    (5, 1, 6, 112),
)


class EfficientNetTeacher(nn.Module):
    """EfficientNet-Lite0 as far as it goes at 1/16 of the image."""

    dim = 112

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 32, 3, stride=2)
        channels = [32, *(block[-1] for block in _BLOCKS)]
        self.blocks = nn.Sequential(
            *(
                _MobileBlock(inputs, *block)
                for inputs, block in zip(channels, _BLOCKS, strict=False)
            )
        )
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        return deque(self.outputs(pixels), maxlen=1).pop()

    def outputs(self, pixels: Tensor) -> Iterator[Tensor]:
        """Of all blocks, one after the other; here with gradients for the pixels."""
        # Trained on (byte - 127) / 128, which is our [-1, 1] within half a byte.
        features = F.relu6(_same(self.stem, pixels))
        for block in self.blocks:
            features = block(features)
            yield features


class Siglip2Teacher(nn.Module):
    """The tower of SigLIP2-NaFlex as it was published: see `siglip2`."""

    def __init__(self, source: str | Path) -> None:
        super().__init__()
        settings, self.tower = siglip2.read(source)
        self.dim = settings.hidden_size
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.tower(pixels)
        return features


Teacher = EfficientNetTeacher | Siglip2Teacher


def load_teacher(source: str | Path, device: str | torch.device = "cpu") -> Teacher:
    """The teacher of an EfficientNet-Lite0 file, or of a folder or hub id of SigLIP2.

    A file is safetensors and may hold more than is needed. Raises ConfigError for what is neither.
    """
    path = Path(source)
    if path.is_file() or path.suffix == ".safetensors":
        return _load_efficientnet(path).to(device)
    return Siglip2Teacher(source).to(device)


def _load_efficientnet(path: Path) -> EfficientNetTeacher:
    if not path.is_file():
        raise ConfigError(f"teacher {path} does not exist: give the EfficientNet-Lite0 safetensors")
    try:
        stored = load_file(str(path))
    except SafetensorError as error:
        raise ConfigError(f"teacher {path} is no safetensors file: {error}") from None
    teacher = EfficientNetTeacher()
    wanted = teacher.state_dict()
    for name, value in wanted.items():
        if name not in stored or stored[name].shape != value.shape:
            raise ConfigError(f"teacher {path} is no EfficientNet-Lite0: see `{name}`")
    teacher.load_state_dict({name: stored[name] for name in wanted})  # widened from float16
    return teacher


class _MobileBlock(nn.Module):
    """Widen, filter each channel, narrow; added to the input where the shapes allow."""

    def __init__(self, inputs: int, kernel: int, stride: int, expansion: int, out: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _conv(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = _conv(wide, wide, kernel, stride, groups=wide)
        self.project = _conv(wide, out, 1)
        self.residual = stride == 1 and inputs == out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(_same(self.depthwise, y)))
        return x + y if self.residual else y


def _conv(inputs: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, out, kernel, stride, groups=groups)


def _same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution with TensorFlow's padding, which on even sides is uneven at stride 2."""
    total = conv.kernel_size[0] - conv.stride[0]
    before = total // 2
    return conv(F.pad(x, (before, total - before, before, total - before)))
