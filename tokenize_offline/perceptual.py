"""How different two pictures look: distance of a frozen classifier's features at several depths.

Two networks:

- ``vgg16`` is LPIPS version 0.1 (Zhang et al. 2018, arXiv:1801.03924, equation 1): channels of
  unit length at relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of torchvision's VGG-16, squared
  differences weighted per channel by heads that were fitted to people's judgements, averaged over
  the picture and summed over the layers. ``weights`` are torchvision's (``vgg16-397923af.pth``);
  if empty, torchvision downloads them. ``heads`` are the published ``lpips/weights/v0.1/vgg.pth``:
  ``lin0.model.1.weight`` to ``lin4.model.1.weight``, each [1, channels, 1, 1]; if empty they are
  looked for in the file of ``weights``.
- ``efficientnet_lite0`` is the small tokenizer's teacher, for where there is nothing to download:
  the same with the outputs of its five stages and without heads. It has not been fitted to
  people's judgements and is not LPIPS.

All files may be safetensors or PyTorch's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG16_Weights, vgg16

from infra.config import ConfigError
from tokenize_offline.teacher import EfficientNetTeacher, load_teacher
from tokenize_offline.weight_files import read_weights

# ImageNet's means and deviations as torchvision gives them for [0, 1], here for [-1, 1]. LPIPS's
# program has the same to three decimals: shift -.030, -.088, -.188, scale .458, .448, .450.
_SHIFT = tuple(2 * mean - 1 for mean in (0.485, 0.456, 0.406))
_SCALE = tuple(2 * deviation for deviation in (0.229, 0.224, 0.225))
_VGG_LAYERS = (3, 8, 15, 22, 29)  # relu1_2 to relu5_3 among torchvision's `features`
_VGG_CHANNELS = (64, 128, 256, 512, 512)
_STAGE_ENDS = (0, 2, 4, 7, 10)  # the last blocks at 1/2, 1/4, 1/8 and, twice, 1/16


@dataclass(frozen=True, kw_only=True)
class PerceptualSettings:
    """Which network's features to compare; with ``weight`` 0 nothing is compared or read."""

    network: Literal["vgg16", "efficientnet_lite0"] = "vgg16"
    weights: str = ""  # path; empty: torchvision's download of VGG-16
    heads: str = ""  # path, vgg16 only; empty: in the file of `weights`
    weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}: use 0 (no perceptual loss) or more")
        if self.network == "vgg16" and self.weight and not self.weights and not self.heads:
            raise ValueError("heads is empty: give the path of LPIPS's v0.1 vgg.pth")
        if self.network == "efficientnet_lite0" and self.weight and not self.weights:
            raise ValueError("weights is empty: give the path of the EfficientNet-Lite0 file")
        if self.network == "efficientnet_lite0" and self.heads:
            raise ValueError(f"heads is {self.heads!r}, but efficientnet_lite0 has none: leave out")


class PerceptualDistance(nn.Module):
    """Called with two pictures [B, 3, H, W] in [-1, 1]; gives their distances [B], float32.

    0 for equal pictures and symmetric. Gradients reach the pictures, never the network. Under
    autocast the network computes in reduced precision, the distance itself never does.
    """

    def __init__(self, network: nn.Module, heads: Mapping[str, Tensor] | None = None) -> None:
        """``network`` gives features at several depths; ``heads`` their weights [channels]."""
        super().__init__()
        self.network = network
        self.num_heads = 0 if heads is None else len(heads)
        for index, head in enumerate(heads.values() if heads is not None else ()):
            self.register_buffer(f"head{index}", head)
        self.eval().requires_grad_(False)

    def forward(self, drawn: Tensor, pixels: Tensor) -> Tensor:
        total = torch.zeros(len(drawn), device=drawn.device)
        pairs = zip(self.network(drawn), self.network(pixels), strict=True)
        with torch.autocast(drawn.device.type, enabled=False):
            for index, (a, b) in enumerate(pairs):
                difference = (_unit(a) - _unit(b)).square()
                if self.num_heads:
                    difference = difference * self.get_buffer(f"head{index}")[:, None, None]
                total = total + difference.sum(dim=1).mean(dim=(1, 2))
        return total


def load_perceptual(
    settings: PerceptualSettings, device: str | torch.device = "cpu"
) -> PerceptualDistance:
    """Read the network of ``settings``. Raises ConfigError for files missing or of another kind."""
    for name in ("weights", "heads"):
        path = getattr(settings, name)
        if path and not Path(path).is_file():
            raise ConfigError(f"perceptual.{name} {path} does not exist: give a file")
    if settings.network == "efficientnet_lite0":
        if not settings.weights:
            raise ConfigError("perceptual.weights is empty: give the EfficientNet-Lite0 file")
        teacher = load_teacher(settings.weights)
        if not isinstance(teacher, EfficientNetTeacher):  # a file is nothing else
            raise TypeError(f"{settings.weights} gave a {type(teacher).__name__}")
        distance = PerceptualDistance(_EfficientNetFeatures(teacher))
    else:
        heads = _read_heads(settings.heads or settings.weights)
        distance = PerceptualDistance(_VggFeatures(settings.weights), heads)
    # Channels last is what the CPU's and the GPU's convolutions are fastest in.
    return distance.to(device).to(memory_format=torch.channels_last)


class _VggFeatures(nn.Module):
    """The outputs of `_VGG_LAYERS`."""

    def __init__(self, path: str) -> None:
        super().__init__()
        with torch.device("meta"):  # most of VGG-16 is its classifier, which is not wanted
            self.layers = vgg16().features[: _VGG_LAYERS[-1] + 1]
        stored = _read(path) if path else _download()
        weights = {}
        for name, value in self.layers.state_dict().items():
            found = stored.get(f"features.{name}")
            if found is None or found.shape != value.shape:
                raise ConfigError(
                    f"perceptual.weights {path} is no VGG-16 of torchvision: see `features.{name}`"
                )
            weights[name] = found.float()
        self.layers.load_state_dict(weights, assign=True)
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        features, x = [], (pixels - self.shift) / self.scale
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in _VGG_LAYERS:
                features.append(x)
        return features


class _EfficientNetFeatures(nn.Module):
    """The outputs of `_STAGE_ENDS`, with gradients."""

    def __init__(self, teacher: EfficientNetTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, pixels: Tensor) -> list[Tensor]:
        outputs = enumerate(self.teacher.outputs(pixels))
        return [features for index, features in outputs if index in _STAGE_ENDS]


def _unit(features: Tensor) -> Tensor:
    # Not x / (sqrt(sum x^2) + eps), whose gradient is not a number where ReLU left only zeros.
    return F.normalize(features.float(), dim=1, eps=1e-10)


def _read_heads(path: str) -> dict[str, Tensor]:
    if not path:
        raise ConfigError("perceptual.heads is empty: give the path of LPIPS's v0.1 vgg.pth")
    stored, heads = _read(path), {}
    for index, channels in enumerate(_VGG_CHANNELS):
        name = f"lin{index}.model.1.weight"
        if name not in stored or stored[name].shape != (1, channels, 1, 1):
            raise ConfigError(f"perceptual.heads {path} is no v0.1 vgg.pth of LPIPS: see `{name}`")
        heads[name] = stored[name].float().flatten()
    return heads


def _read(path: str) -> Mapping[str, Tensor]:
    try:
        return read_weights(path)
    except ValueError as error:
        raise ConfigError(
            f"perceptual: {path} cannot be read, {error}: give the file as it is published"
        ) from None


def _download() -> Mapping[str, Tensor]:
    try:
        return VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except OSError as error:  # urllib's, too
        raise ConfigError(
            f"VGG-16 cannot be downloaded ({error}): give its file as perceptual.weights"
        ) from None
