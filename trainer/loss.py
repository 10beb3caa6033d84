"""The loss: weighted cross-entropy of one head over text and codes, without storing the logits.

Weights are known before the forward pass (equation 2), so they are folded into the gradient of the
logits there, chunk by chunk: one pass, no per-token backward, and at most ``_CHUNK_LOGITS`` logits
at a time. At T = 20,480 and V = 168,450 all logits in fp32 would take 13.8 GB.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from infra.schedules import Grid

_CHUNK_LOGITS = (
    1 << 25
)  # 128 MiB in fp32: enough rows for a fast matrix product, small beside T x V


class TokenLoss(NamedTuple):
    """``loss`` = sum of weight x cross-entropy; the other two, per position, carry no gradient."""

    loss: Tensor
    cross_entropy: Tensor  # [N] nats
    correct: Tensor  # [N] bool: no logit is larger than the target's


def scale_weights(grids: Sequence[Grid], alpha: float) -> NDArray[np.float64]:
    """[K] weight of a code of each scale: (h w)^-alpha, scaled to a mean of 1 over the image.

    Paper section 2.2, equation 2: the image's total vision loss stays constant whatever ``alpha``;
    0 is uniform.
    """
    areas = np.array([h * w for h, w in grids], np.float64)
    weights = areas**-alpha
    return weights * (areas.sum() / (weights * areas).sum())


def fused_linear_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    chunk_rows: int | None = None,
) -> TokenLoss:
    """Cross-entropy of ``hidden @ head.T`` against ``targets``, summed with ``weights``.

    ``hidden`` [N, H], ``head`` [V, H], ``targets`` [N] ids, ``weights`` [N] fp32. The softmax and
    the sums are fp32 whatever the type of ``hidden``. Gradients reach ``hidden`` and ``head``.
    """
    rows = chunk_rows or max(1, _CHUNK_LOGITS // len(head))
    return TokenLoss(*_FusedLinearCrossEntropy.apply(hidden, head, targets, weights, rows))


class _FusedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        with_grad = any(ctx.needs_input_grad)
        cross_entropy = hidden.new_empty(len(hidden), dtype=torch.float32)
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_grad else None
        # Many chunks add up here: in bf16 the later ones would be rounded away.
        grad_head = torch.zeros_like(head, dtype=torch.float32) if with_grad else None
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            target = targets[chunk, None]
            logits = (hidden[chunk] @ head.T).float()
            largest = logits.amax(dim=-1, keepdim=True)
            chosen = logits.gather(1, target)
            correct[chunk] = (chosen >= largest).squeeze(1)
            # In place, as memory traffic is what this costs: exp, then, scaled by weight / sum and
            # less the weight at the target, the gradient of the logits.
            total = logits.sub_(largest).exp_().sum(dim=-1, keepdim=True)
            cross_entropy[chunk] = (total.log() + largest - chosen).squeeze(1)
            if grad_hidden is None or grad_head is None:
                continue
            weight = weights[chunk, None]
            grad = logits.mul_(weight / total).scatter_add_(1, target, -weight).to(head.dtype)
            torch.mm(grad, head, out=grad_hidden[chunk])
            if grad.dtype == grad_head.dtype:
                grad_head.addmm_(grad.T, hidden[chunk])
            else:
                grad_head += grad.T @ hidden[chunk]
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(cross_entropy, correct)
        return (weights * cross_entropy).sum(), cross_entropy, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        return (
            grad_hidden * grad_loss.to(grad_hidden.dtype),
            (grad_head * grad_loss).to(ctx.head_dtype),
            None,
            None,
            None,
        )
