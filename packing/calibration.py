"""Measured step times -> coefficients in seconds, so that packs balance time and not theory.

    fitted = fit(num_tokens, num_loss, num_pairs, step_s)   one of each per measured pack
    write_calibration("workspace/calibration.json", Calibration(fitted, shape, "cpu", ...))

A step takes ``a tokens + b pairs + c positions with a target + d``, all at least 0. NumPy only.
"""

import json
import math
import os
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.config import ConfigError, as_dict, build
from infra.storage import Storage, client_errors
from packing.cost import Coefficients, ModelShape

FORMAT = "nextscale calibration 1"
UNIT = "s"
WORST_CONDITION = 300.0  # a measured time that is 1% off may turn a coefficient by three times it


@dataclass(frozen=True)
class Fitted:
    """The coefficients, and how much to believe them."""

    coefficients: Coefficients
    num_packs: int  # measured
    residual: float  # median of |fitted - measured| / measured
    condition: float  # of the weighted counts, each scaled to length 1: 1 is best

    def __post_init__(self) -> None:
        of = self.coefficients
        numbers = (of.per_token, of.per_pair, of.per_loss, of.per_pack)
        if of.unit != UNIT or not all(0 <= n < math.inf for n in numbers):
            raise ValueError(
                f"coefficients are {numbers} {of.unit}: they must be 0 or more seconds"
            )
        if not of.per_token + of.per_pair > 0:
            raise ValueError("neither tokens nor pairs cost time: measure packs of other lengths")


@dataclass(frozen=True)
class Calibration:
    """What was measured, on what. No date: the same measurements give the same bytes."""

    fitted: Fitted
    model: ModelShape
    device: str  # name of the GPU, or "cpu"
    dtype: str
    num_threads: int  # of the CPU, per rank
    num_ranks: int
    micro_batches: int  # the optimiser's step is spread over so many packs
    recompute: bool  # of the layers, in the backward pass


def fit(
    num_tokens: ArrayLike, num_loss: ArrayLike, num_pairs: ArrayLike, step_s: ArrayLike
) -> Fitted:
    """The non-negative coefficients with the least sum of squared relative errors.

    Relative, so that short and long packs count alike. With four unknowns, each either positive or
    0, the best of all 15 plain least-squares fits without a negative coefficient is the solution:
    no iteration, nothing to converge. Raises ValueError for impossible numbers, and for packs whose
    counts grow so alike that times cannot tell them apart.
    """
    columns = [np.asarray(c, np.float64) for c in (num_tokens, num_pairs, num_loss)]
    time_s = np.asarray(step_s, np.float64)
    counts = np.stack([*columns, np.ones(len(time_s))], axis=1)
    if not ((counts >= 0).all() and (time_s > 0).all() and np.isfinite(time_s).all()):
        raise ValueError("counts must be 0 or more, and times positive")
    weighted = counts / time_s[:, None]
    scale = np.sqrt((weighted**2).sum(axis=0))
    if not scale.all() or len(time_s) < len(scale):
        raise ValueError(
            f"{len(time_s)} packs, {int(counts[:, 2].sum())} positions with a target: measure at "
            "least 4 packs, some with targets"
        )
    scaled = weighted / scale
    condition = float(np.linalg.cond(scaled))
    if not condition < WORST_CONDITION:
        raise ValueError(
            f"tokens, pairs and targets of the {len(time_s)} packs grow alike (condition "
            f"{condition:.3g}): measure packs that differ more in lengths and documents"
        )
    a, b, c, d = (_least_squares(scaled) / scale).tolist()
    residual = float(np.median(np.abs(weighted @ (a, b, c, d) - 1)))
    return Fitted(Coefficients(a, b, c, d, UNIT), len(time_s), residual, condition)


def _least_squares(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x >= 0 that brings ``columns @ x`` nearest to 1."""
    number = columns.shape[1]
    best, least = np.zeros(number), math.inf
    for size in range(1, number + 1):
        for chosen in combinations(range(number), size):
            used = columns[:, chosen]
            x, *_ = np.linalg.lstsq(used, np.ones(len(used)), rcond=None)
            error = float(((used @ x - 1) ** 2).sum())
            if (x >= 0).all() and error < least:
                best, least = np.zeros(number), error
                best[list(chosen)] = x
    return best


def write_calibration(path: str, calibration: Calibration) -> None:
    """Write the JSON file ``path``, local or ``s3://``; it appears at once or not at all."""
    folder, name = os.path.split(path)
    Storage(folder or ".").write_json(name, {"format": FORMAT, **as_dict(calibration)})


def read_calibration(path: str) -> Coefficients:
    """The coefficients of a file of `write_calibration`, in seconds. Raises ConfigError."""
    folder, name = os.path.split(path)
    storage = Storage(folder or ".")
    unreadable: tuple[type[Exception], ...] = (
        ValueError,
        *client_errors(storage.root),
    )  # or no JSON
    try:
        tree: Any = json.loads(storage.read(name))
    except FileNotFoundError:
        raise ConfigError(f"calibration {path} does not exist: run `nextscale calibrate`") from None
    except unreadable as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"calibration {path} is not readable: {reason}") from None
    if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
        raise ConfigError(
            f"{path} is no calibration: name the file that `nextscale calibrate` wrote"
        )
    try:
        return build(Calibration, tree).fitted.coefficients
    except ConfigError as error:
        raise ConfigError(f"calibration {path} is damaged ({error}): calibrate again") from None
