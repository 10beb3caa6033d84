"""TransNetV2: how likely each frame of a video is the last before another shot.

The network is that of T. Soucek and J. Lokoc, "TransNet V2: An effective deep network architecture
for fast shot transition detection" (arXiv:2008.04838), read into torch from its published weights:
three pairs of dilated 3-D convolution cells over frames of 48 x 27 pixels, beside two measures of
how alike frames within 50 are (learned features, colour histograms). It looks at 100 frames at a
time, of which the middle 50 are told; the ends of a video are padded with its first and last frame.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

WIDTH, HEIGHT = 48, 27  # pixels of a frame
WINDOW = 100  # frames that the network sees
TOLD = 50  # in the middle of them
_MARGIN = (WINDOW - TOLD) // 2
_NEIGHBOURS = 50  # frames on either side that similarities are measured to
_DILATIONS = (1, 2, 4, 8)
_CELLS = 3
_EPSILON = 1e-3  # of the batch normalisations

Weights = Mapping[str, Tensor]


class Transitions:
    """Feed frames of one video, [n, 27, 48, 3] uint8 RGB, in any portions; get probabilities.

    ``feed`` returns those of the frames that are settled by now, ``finish`` the rest: together one
    float32 in 0..1 per frame. Holds at most 100 frames and a portion.
    """

    def __init__(self, weights: str) -> None:
        self._weights = load(weights)
        self._frames = np.zeros((0, HEIGHT, WIDTH, 3), np.uint8)
        self._last: NDArray[np.uint8] | None = None
        self._owed = 0  # frames fed whose probability is not told

    def feed(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not len(frames):
            return np.zeros(0, np.float32)
        if self._last is None:
            self._frames = np.repeat(frames[:1], _MARGIN, axis=0)
        self._last = frames[-1:]
        self._frames = np.concatenate([self._frames, frames])
        self._owed += len(frames)
        return self._told()

    def finish(self) -> NDArray[np.float32]:
        if self._last is None:
            return np.zeros(0, np.float32)
        owed = self._owed
        missing = -(-owed // TOLD) * TOLD + 2 * _MARGIN - len(self._frames)
        self._frames = np.concatenate([self._frames, np.repeat(self._last, missing, axis=0)])
        return self._told()[:owed]

    def _told(self) -> NDArray[np.float32]:
        found = [np.zeros(0, np.float32)]
        while len(self._frames) >= WINDOW:
            # One window at a time: a frame's probability must not depend on how many are fed.
            found.append(probabilities(self._weights, self._frames[:WINDOW])[_MARGIN:][:TOLD])
            self._frames = self._frames[TOLD:]
            self._owed -= TOLD
        return np.concatenate(found)


def probabilities(weights: Weights, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The network on one window: [n, 27, 48, 3] uint8 RGB to [n] float32, sigmoid of the logits."""
    with torch.inference_mode():
        pixels = torch.from_numpy(np.ascontiguousarray(frames))
        x = pixels.permute(0, 3, 1, 2).float() / 255  # [n, channels, height, width]
        blocks = []
        for number in range(_CELLS):
            x = _block(weights, f"SDDCNN.{number}.DDCNN", x)
            blocks.append(x)
        features = x.permute(0, 2, 3, 1).flatten(1)[None]  # [1, n, 3 * 6 * 256]
        alike = [_colour_similarity(weights, pixels), _frame_similarity(weights, blocks)]
        joined = torch.cat([*alike, features], dim=2)
        hidden = functional.relu(_linear(weights, "fc1", joined))
        logits = _linear(weights, "cls_layer1", hidden)[0, :, 0]
        return np.asarray(torch.sigmoid(logits).numpy(), np.float32)


@lru_cache(maxsize=1)
def load(path: str) -> Weights:
    """The weights of a safetensors file, in float32. Raises ValueError where they are others."""
    if not Path(path).is_file():
        raise ValueError(f"weights: {path!r} is no file: give the path of transnetv2 (safetensors)")
    try:
        weights = {name: value.float() for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"weights: {path!r} is no safetensors file ({error})") from None
    shape = tuple(weights.get("fc1.weight", torch.zeros(0)).shape)
    if shape != (1024, 4864):
        raise ValueError(f"weights: {path!r} holds no TransNetV2: fc1.weight has shape {shape}")
    return weights


def _block(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Two cells of dilated convolutions with a shortcut, then half the height and width."""
    first = functional.relu(_cell(weights, f"{name}.0", x))
    both = functional.relu(_cell(weights, f"{name}.1", first)) + first
    return functional.avg_pool2d(both, 2)


def _cell(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Convolutions over space, then over time at four dilations, side by side, normalised."""
    n, _, height, width = x.shape
    found = []
    for dilation in _DILATIONS:
        layer = f"{name}.Conv3D_{dilation}.layers"
        # In two dimensions each, which is up to three times as fast as in three.
        flat = functional.conv2d(x, weights[f"{layer}.0.weight"][:, :, 0], padding=1)
        lines = flat.flatten(2).transpose(0, 1)[None]  # [1, channels, n, height * width]
        kernel = weights[f"{layer}.1.weight"][..., 0]
        found.append(
            functional.conv2d(lines, kernel, padding=(dilation, 0), dilation=(dilation, 1))
        )
    joined = torch.cat(found, dim=1)[0].transpose(0, 1).reshape(n, -1, height, width)
    bn = f"{name}.bn"
    return functional.batch_norm(
        joined,
        weights[f"{bn}.running_mean"],
        weights[f"{bn}.running_var"],
        weights[f"{bn}.weight"],
        weights[f"{bn}.bias"],
        eps=_EPSILON,
    )


def _frame_similarity(weights: Weights, blocks: list[Tensor]) -> Tensor:
    """Cosines of each frame's learned features with its neighbours', mapped to [1, n, 128]."""
    means = torch.cat([block.mean(dim=(2, 3)) for block in blocks], dim=1)[None]
    vectors = functional.normalize(_linear(weights, "frame_sim_layer.projection", means), dim=2)
    return functional.relu(_linear(weights, "frame_sim_layer.fc", _neighbours(vectors)))


def _colour_similarity(weights: Weights, pixels: Tensor) -> Tensor:
    """Cosines of colour histograms of 8 x 8 x 8 cells, mapped to [1, n, 128]."""
    cells = pixels.flatten(1, 2).long() >> 5
    index = (cells[..., 0] << 6) + (cells[..., 1] << 3) + cells[..., 2]
    counts = torch.zeros(len(pixels), 512).scatter_add_(1, index, torch.ones(index.shape))
    alike = _neighbours(functional.normalize(counts, dim=1)[None])
    return functional.relu(_linear(weights, "color_hist_layer.fc", alike))


def _neighbours(vectors: Tensor) -> Tensor:
    """[1, n, d] to [1, n, 101]: products of each with those from 50 before to 50 after; else 0."""
    n = vectors.shape[1]
    products = functional.pad(vectors @ vectors.transpose(1, 2), (_NEIGHBOURS, _NEIGHBOURS))
    places = torch.arange(n)[:, None] + torch.arange(2 * _NEIGHBOURS + 1)[None]
    return products[0].gather(1, places)[None]


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
