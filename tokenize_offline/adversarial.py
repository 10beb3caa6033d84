"""A discriminator that judges patches of pictures, and the losses of its contest with the decoder.

The network is the PatchGAN of Isola et al. 2017 (arXiv:1611.07004, section 3.2): convolutions that
give one number for every patch of the picture, above 0 for "real". With 3 layers a patch is 70
pixels wide. Its normalisation is over groups of channels of one picture (Wu and He 2018) and not
over the batch: at level 1024 a process has a single picture, and statistics over the batch would
differ between processes, or between real and drawn ones, and give the answer away.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGEST_WEIGHT = 1e4


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings:
    """The discriminator's size and part; with ``weight`` 0 there is none."""

    weight: float = 0.0  # after the two losses' gradients are made equally long
    start_step: int = 20_000  # of the steps in which codes are drawn: before, errors are too plain
    channels: int = 64  # of the first layer; doubled by every later one, up to eight times
    layers: int = 3  # that halve the picture
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}: use 0 (no discriminator) or more")
        if self.start_step < 0:
            raise ValueError(f"start_step is {self.start_step}: use 0 or more")
        for name in ("channels", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use 1 or more")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}: use a number above 0")


class Discriminator(nn.Module):
    """Pixels [B, 3, H, W] in [-1, 1] -> how real each patch looks, [B, 1, h, w], unbounded.

    ``h`` is H / 2^layers - 2, rounded down, and w alike: any size from 3 * 2^layers on will do.
    """

    def __init__(self, settings: AdversarialSettings) -> None:
        super().__init__()
        widths = [settings.channels * min(2**layer, 8) for layer in range(settings.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, padding=1), _activation()]
        for layer in range(1, len(widths)):
            stride = 2 if layer < settings.layers else 1
            layers += [
                # The normalisation has a bias of its own.
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(32, widths[layer]), widths[layer]),
                _activation(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def generator_loss(fooled: Tensor) -> Tensor:
    """The decoder's loss, from what the discriminator says of drawn pictures: their mean, negated.

    May be negative. ``fooled`` is of any shape and precision; the loss is float32.
    """
    return -fooled.float().mean()


def discriminator_loss(real: Tensor, drawn: Tensor) -> Tensor:
    """The hinge loss (Lim and Ye 2017, arXiv:1705.02894) of what it says of real and drawn ones.

    0 when every real patch is judged 1 or more and every drawn one -1 or less; 1 for a
    discriminator that knows nothing. ``drawn`` must come from detached pictures.
    """
    return (F.relu(1 - real.float()).mean() + F.relu(1 + drawn.float()).mean()) / 2


def adaptive_weight(
    picture_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer: Tensor,
    mean: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """What to multiply the adversarial loss by so that it pulls as hard as the picture's does.

    |gradient of ``picture_loss``| / |gradient of ``adversarial_loss``| at ``last_layer``, the
    decoder's last weights (Esser et al. 2021, arXiv:2012.09841, equation 7), at most 10,000; the
    1e-4 added below is that of its authors' program, the paper says 1e-6. Both graphs are kept.
    ``mean`` averages a gradient over the processes of a training, which must agree on the weight.
    """
    lengths = []
    for loss in (picture_loss, adversarial_loss):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        lengths.append(mean(gradient).float().norm())
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(0, _LARGEST_WEIGHT).detach()


def _activation() -> nn.Module:
    return nn.LeakyReLU(0.2)
