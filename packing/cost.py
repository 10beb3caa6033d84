"""What a sequence costs: floating-point operations from a model's shape, or fitted coefficients.

A cost is linear in three exact counts (`infra.layout.count`): positions T carry the work of every
linear layer, attended query-key pairs that of attention, positions with a target that of the
output head. Packing balances this number, whatever its unit: FLOPs of a shape, or seconds when the
coefficients were fitted to measured steps.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.layout import Vocabulary

Work = Literal["forward", "train"]


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder with grouped-query attention and a gated MLP, one untied head."""

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


def qwen2_5_7b(num_codes: int = 16_384) -> ModelShape:
    """Qwen2.5-7B with the vocabulary widened by ``<boi>``, ``<eoi>`` and ``num_codes`` codes."""
    return ModelShape(
        hidden=3_584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        intermediate=18_944,
        vocabulary=Vocabulary(num_codes).size,
    )


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

    Training counts the forward pass, twice as much again backward, and with full checkpointing
    the layers' forward once more (the head is not checkpointed). Fused attention recomputes the
    scores in its backward pass: 2.5 forwards instead of 2.
    """
    layers, attention, head = 1.0, 1.0, 1.0
    if work == "train":
        recomputed = 1.0 if checkpointing else 0.0
        layers, attention, head = 3.0 + recomputed, 3.5 + recomputed, 3.0
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
    linear = of.per_token * np.asarray(num_tokens, np.float64)
    attention = of.per_pair * np.asarray(num_pairs, np.float64)
    return linear + attention + of.per_loss * np.asarray(num_loss, np.float64)


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
