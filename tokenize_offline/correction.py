"""Encoding with self-correction: noise in the codes the model reads, its repair in the targets.

At every scale the *target* of a token is the nearest code to the residual. The *input* code of a
share of the tokens is drawn from the nearest few instead, and the residual goes on with the input:
what the wrong code broke, the targets of later scales repair. A model trained on such pairs learns
to correct its own mistakes (paper section 3.2; Infinity). At the last scale nothing is left to
repair and generation never reads that scale, but a condition image does: it is drawn like the rest.

An image's noise comes from its id and the seed alone, never from its batch or worker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.config import ConfigError
from infra.schedules import Grid
from infra.schema import digest
from tokenize_offline.quantizer import Quantizer

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Correction:
    """How the input codes are drawn. The paper gives the rate, not ``top_k`` and ``temperature``.

    A token is drawn with probability ``rate``, among its ``top_k`` nearest codes with probabilities
    softmax(-squared distance / temperature); the draw may be the nearest code. ``replica`` tells
    apart several noises of one image.
    """

    rate: float = 0.6
    top_k: int = 8
    temperature: float = 0.1
    seed: int = 0
    replica: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"correction rate is {self.rate}: use 0 to 1")
        if self.top_k < 1:
            raise ConfigError(f"correction top_k is {self.top_k}: use 1 or more")
        if self.temperature <= 0:
            raise ConfigError(f"correction temperature is {self.temperature}: use more than 0")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Codes of B images of one schedule: [B, N] each, coarse to fine, row-major."""

    input_codes: Int32
    target_codes: Int32
    sampled: NDArray[np.bool_]  # where the input code was drawn, whatever came out

    def rates(self, grids: Sequence[Grid]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """([K], [K]): per scale, the share of tokens drawn and of tokens whose code changed."""
        edges = np.cumsum([0] + [height * width for height, width in grids])
        spans = [slice(a, b) for a, b in pairwise(edges)]
        flipped = self.input_codes != self.target_codes
        drawn = np.array([self.sampled[:, span].mean() for span in spans])
        return drawn, np.array([flipped[:, span].mean() for span in spans])


def encode(
    quantizer: Quantizer,
    features: Tensor,
    grids: Sequence[Grid],
    sample_ids: Sequence[str],
    correction: Correction,
) -> Encoded:
    """Encode features [B, D, H, W] with self-correction; ``sample_ids`` name the B images.

    With ``rate`` 0 inputs and targets are the plain encoding.
    """
    num_codes = sum(height * width for height, width in grids)
    noise = np.stack([uniforms(id_, correction, num_codes) for id_ in sample_ids])
    sampled = noise[:, 0] < correction.rate
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    start, keys = 0, quantizer.keys()

    def choose(scale: int, rows: Tensor) -> Tensor:
        nonlocal start
        here = slice(start, start + rows.shape[1])
        start = here.stop
        k = min(correction.top_k, quantizer.num_codes) if correction.rate > 0 else 1
        index, distance = quantizer.nearest(rows, scale, k, keys)
        pick = _draw(distance, noise[:, 1, here], correction.temperature)
        pick = np.where(sampled[:, here], pick, 0)
        chosen = index.gather(2, torch.from_numpy(pick)[..., None].to(index.device))[..., 0]
        inputs.append(chosen)
        targets.append(index[..., 0])
        return chosen

    quantizer.walk(features, grids, choose)
    return Encoded(_numpy(inputs), _numpy(targets), sampled)


def uniforms(sample_id: str, correction: Correction, count: int) -> NDArray[np.float64]:
    """[2, count] in [0, 1): for each token, whether it is drawn and which code it gets."""
    key = digest("self-correction", str(correction.seed), str(correction.replica), sample_id)
    raw = np.random.Philox(key=int(key, 16)).random_raw(2 * count)
    # From raw bits, whose stream NumPy guarantees, not from Generator.random, whose it does not.
    return (raw >> np.uint64(11)).astype(np.float64).reshape(2, count) * 2.0**-53


def _draw(distance: Tensor, uniform: NDArray[np.float64], temperature: float) -> NDArray[np.int64]:
    """Place 0..k-1 of each token's drawn code; ``distance`` [B, n, k] is sorted."""
    distances = distance.double().cpu().numpy()
    weights = np.exp((distances[..., :1] - distances) / temperature)
    cumulative = weights.cumsum(axis=-1)
    place = (uniform[..., None] * cumulative[..., -1:] >= cumulative).sum(axis=-1)
    return np.minimum(place, distances.shape[-1] - 1).astype(np.int64)


def _numpy(codes: list[Tensor]) -> Int32:
    return torch.cat(codes, dim=1).to(torch.int32).cpu().numpy()
