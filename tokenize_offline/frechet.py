"""The Fréchet distance between pictures and their reconstructions, by a given network's features.

Pictures are described by a network, each set of descriptions by its mean and covariance, and the
two sets compared as Gaussians (Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500):

    |m1 - m2|^2 + trace(C1) + trace(C2) - 2 trace((C1 C2)^(1/2))

The number means nothing without the network's name. It is an FID only with the Inception of 2015,
and then over tens of thousands of pictures: it falls with their number, and is to be compared for
the same pictures only. With no more pictures than features the covariance is singular and most of
the number is chance, so none is given.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from infra.config import ConfigError
from tokenize_offline.ranks import Ranks
from tokenize_offline.teacher import EfficientNetTeacher

_INCEPTION_SIDE = 299


@dataclass(frozen=True, eq=False)
class PictureFeatures:
    """A network that describes pictures: [B, 3, H, W] in [-1, 1] -> [B, d]."""

    name: str
    describe: Callable[[Tensor], Tensor]


class Gaussian:
    """Number, mean [d] and covariance [d, d] of features that come one batch after the other.

    Float64 on the CPU, O(d^2) memory. Deviations from the mean are summed, not squares (Chan et
    al. 1979), so that a large common part of the features costs no digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros((0, 0), dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Take in features [B, d], B = 0 or more."""
        values = features.detach().cpu().double()
        if not len(values):
            return
        mean = values.mean(dim=0)
        if not self.count:
            self._mean, self._scatter = torch.zeros_like(mean), mean.new_zeros(2 * mean.shape)
        step, total = mean - self._mean, self.count + len(values)
        if len(values) > 1:  # one has no deviation from its own mean: d x d zeros
            centred = values - mean
            self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(step, step, alpha=self.count * len(values) / total)
        self._mean += step * (len(values) / total)
        self.count = total

    def of_all(self, ranks: Ranks) -> "Gaussian":
        """Of the features of all ranks together."""
        together = Gaussian()
        count = torch.tensor(self.count, dtype=torch.float64, device=ranks.device)
        together.count = int(ranks.total(count))
        dim = ranks.largest(len(self._mean))  # a rank without pictures does not know it
        mean = self._mean if self.count else torch.zeros(dim, dtype=torch.float64)
        scatter = self._scatter if self.count else mean.new_zeros(dim, dim)
        total = ranks.total((mean * self.count).to(ranks.device)).cpu()
        together._mean = total / max(1, together.count)
        step = mean - together._mean
        scatter = torch.addr(scatter, step, step, alpha=self.count)
        together._scatter = ranks.total(scatter.to(ranks.device)).cpu()
        return together

    @property
    def mean(self) -> Tensor:
        """[d]"""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """[d, d], unbiased; of two or more."""
        return self._scatter / (self.count - 1)


def frechet_distance(a: Gaussian, b: Gaussian) -> float | None:
    """The distance above, 0 or more; None where either has no more pictures than features."""
    if min(a.count, b.count) <= len(a.mean):
        return None
    # C1 C2 has the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2), which are real and, but for
    # rounding, not negative; the square root of a product that is not symmetric need not be real.
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ b.covariance @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    apart = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    return max(0.0, float(apart - 2 * eigenvalues.clamp_min(0).sqrt().sum()))


def efficientnet_features(teacher: EfficientNetTeacher) -> PictureFeatures:
    """The teacher's 112 features, averaged over the picture at its own size."""
    return PictureFeatures("efficientnet_lite0", lambda pixels: teacher(pixels).mean(dim=(2, 3)))


def load_inception(path: str | Path, device: str | torch.device = "cpu") -> PictureFeatures:
    """A TorchScript file that is called with [B, 3, 299, 299] in [-1, 1] and gives [B, d(, 1, 1)].

    Pictures are resized to it bicubically with antialiasing, as clean-fid does, whatever their
    ratio. clean-fid's ``inception-2015-12-05.pt`` takes other pixels; its layers take these:

        torch.jit.load("inception-2015-12-05.pt").layers.save("inception.pt")

    The name is the file's. Raises ConfigError for what is no TorchScript file.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"inception {path} does not exist: give a TorchScript file")
    try:
        with warnings.catch_warnings():
            # Deprecated for what is written anew; the Inception of 2015 is there in no other form.
            warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
            network = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"inception {path} is no TorchScript file: {line}") from None

    def describe(pixels: Tensor) -> Tensor:
        side = (_INCEPTION_SIDE, _INCEPTION_SIDE)
        resized = F.interpolate(
            pixels, size=side, mode="bicubic", align_corners=False, antialias=True
        )
        return network(resized.clamp(-1, 1)).flatten(1)

    return PictureFeatures(path.stem, describe)
