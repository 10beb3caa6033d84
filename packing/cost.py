"""What a sequence costs: floating-point operations from a model's shape, or fitted coefficients.

A cost is linear in three exact counts (`infra.layout.count`): positions T carry the work of every
linear layer, attended query-key pairs that of attention, positions with a target that of the
output head. Packing balances this number, whatever its unit: FLOPs of a shape, or seconds when the
coefficients were fitted to measured steps. Pairs may also be those of the tiles that a block mask
computes (`packing.tiles`), as long as they are so throughout.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.layout import Vocabulary

Work = Literal["forward", "backward", "train"]
Size = Literal["0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b"]


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder with grouped-query attention, a gated MLP and an output head.

    A head that is tied to the embeddings costs as much as one of its own.
    """

    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}: every size of a model is at least 1")

    @property
    def layer_flops_per_token(self) -> int:
        """Forward FLOPs of one layer's query, key, value, output and gated MLP products."""
        query = 2 * self.hidden * self.num_heads * self.head_dim
        key_value = 4 * self.hidden * self.num_kv_heads * self.head_dim
        return 2 * query + key_value + 6 * self.hidden * self.intermediate

    @property
    def layer_flops_per_pair(self) -> int:
        """Forward FLOPs of one layer's scores and weighted sum; grouping keys saves none."""
        return 4 * self.num_heads * self.head_dim

    @property
    def head_flops_per_loss(self) -> int:
        """Forward FLOPs of the output head at one position with a target."""
        return 2 * self.hidden * self.vocabulary


# From the config.json of huggingface.co/Qwen/Qwen2.5-*, here with the vocabulary's rows for text.
# The parameters that follow from them are as many as the model cards say.
_QWEN2_5: dict[Size, ModelShape] = {
    "0.5b": ModelShape(896, 24, 14, 2, 64, 4_864, 151_936),
    "1.5b": ModelShape(1_536, 28, 12, 2, 128, 8_960, 151_936),
    "3b": ModelShape(2_048, 36, 16, 2, 128, 11_008, 151_936),
    "7b": ModelShape(3_584, 28, 28, 4, 128, 18_944, 152_064),
    "14b": ModelShape(5_120, 48, 40, 8, 128, 13_824, 152_064),
    "32b": ModelShape(5_120, 64, 40, 8, 128, 27_648, 152_064),
    "72b": ModelShape(8_192, 80, 64, 8, 128, 29_568, 152_064),
}
PRESETS: Mapping[str, Size] = {f"qwen2.5-{size}": size for size in _QWEN2_5}
"""Model shapes by the names that options and recipes give them."""


def qwen2_5(size: Size, num_codes: int = 16_384) -> ModelShape:
    """A Qwen2.5 with the vocabulary widened by ``<boi>``, ``<eoi>`` and ``num_codes`` codes."""
    shape = _QWEN2_5[size]
    return replace(shape, vocabulary=Vocabulary(num_codes, shape.vocabulary).size)


def qwen2_5_7b(num_codes: int = 16_384) -> ModelShape:
    """The paper's model, `qwen2_5` of size 7b."""
    return qwen2_5("7b", num_codes)


@dataclass(frozen=True)
class Coefficients:
    """Cost of one position, one attended pair, one position with a target, and of a pack."""

    per_token: float
    per_pair: float
    per_loss: float
    per_pack: float = 0.0
    unit: str = "FLOP"


def coefficients(
    shape: ModelShape, *, work: Work = "train", checkpointing: bool = False
) -> Coefficients:
    """The FLOP coefficients of a shape.

    The backward pass costs twice the forward pass, and with full checkpointing the layers' forward
    once more (the head is not checkpointed). Fused attention recomputes the scores in its backward
    pass: 2.5 forwards instead of 2. Training is both passes.
    """
    forward = 0.0 if work == "backward" else 1.0
    layers, attention, head = forward, forward, forward
    if work != "forward":
        recomputed = 1.0 if checkpointing else 0.0
        layers, attention, head = layers + 2 + recomputed, attention + 2.5 + recomputed, head + 2
    return Coefficients(
        per_token=layers * shape.num_layers * shape.layer_flops_per_token,
        per_pair=attention * shape.num_layers * shape.layer_flops_per_pair,
        per_loss=head * shape.head_flops_per_loss,
    )


def cost(
    num_tokens: ArrayLike,
    num_loss: ArrayLike,
    num_pairs: ArrayLike,
    of: Coefficients,
) -> NDArray[np.float64]:
    """Cost of each document, in the coefficients' unit; counts of any equal shape."""
    total = of.per_token * np.asarray(num_tokens, np.float64)
    total += of.per_pair * np.asarray(num_pairs, np.float64)  # in place: counts may be many
    total += of.per_loss * np.asarray(num_loss, np.float64)
    return total


def flops(
    num_tokens: ArrayLike,
    num_loss: ArrayLike,
    num_pairs: ArrayLike,
    shape: ModelShape,
    *,
    work: Work = "train",
    checkpointing: bool = False,
) -> NDArray[np.float64]:
    """`cost` in FLOPs of a model's shape."""
    of = coefficients(shape, work=work, checkpointing=checkpointing)
    return cost(num_tokens, num_loss, num_pairs, of)
