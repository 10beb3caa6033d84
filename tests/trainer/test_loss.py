"""Scale weights of equation 2 and the fused cross-entropy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from infra.schedules import NUM_SCALES, SCHEDULES
from trainer.loss import fused_linear_cross_entropy, scale_weights

SQUARE = next(s for s in SCHEDULES if s.ratio == 1)


@pytest.mark.parametrize(
    ("level", "first", "last"),
    [(256, 52.38, 0.3563), (512, 148.33, 0.2897), (1024, 344.12, 0.1930)],
)
def test_weights_at_alpha_09(level, first, last):
    weights = scale_weights(SQUARE.grids[: NUM_SCALES[level]], 0.9)
    assert weights[0] == pytest.approx(first, abs=5e-3)
    assert weights[-1] == pytest.approx(last, abs=5e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 2.0])
@pytest.mark.parametrize("schedule", SCHEDULES[::8], ids=lambda s: f"row{s.index}")
def test_total_vision_loss_is_constant(schedule, alpha):
    areas = np.array([h * w for h, w in schedule.grids])
    weights = scale_weights(schedule.grids, alpha)
    assert (weights * areas).sum() == pytest.approx(areas.sum())
    if alpha == 0:
        np.testing.assert_allclose(weights, 1)


def _case(dtype=torch.float32, positions=37, width=16, vocabulary=101):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(positions, width, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    weights = torch.rand(positions, generator=generator) * 3
    return hidden, head, targets, weights


@pytest.mark.parametrize("chunk_rows", [1, 8, 37, 1000, None])
def test_fused_loss_and_gradients_equal_the_naive_ones(chunk_rows):
    hidden, head, targets, weights = _case()
    logits = hidden @ head.T
    cross_entropy = F.cross_entropy(logits, targets, reduction="none")
    naive = (weights * cross_entropy).sum() * 0.25
    expected = torch.autograd.grad(naive, (hidden, head))

    fused = fused_linear_cross_entropy(hidden, head, targets, weights, chunk_rows)
    gradients = torch.autograd.grad(fused.loss * 0.25, (hidden, head))

    torch.testing.assert_close(fused.loss * 0.25, naive, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused.cross_entropy, cross_entropy.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(fused.correct, logits.argmax(-1) == targets)


def test_gradient_of_a_small_case_by_finite_differences():
    hidden, head, targets, weights = _case(torch.float64, 5, 4, 7)
    # the sums are fp32 inside, so the step must be larger than gradcheck's own
    assert torch.autograd.gradcheck(
        lambda h, w: fused_linear_cross_entropy(h, w, targets, weights, 2).loss,
        (hidden, head),
        eps=1e-2,
        atol=1e-2,
        rtol=1e-2,
    )


def test_bf16_sums_in_fp32():
    hidden, head, targets, weights = _case(torch.bfloat16)
    loss = fused_linear_cross_entropy(hidden, head, targets, weights, 8).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert head.grad is not None
    assert head.grad.dtype == torch.bfloat16
    logits = (hidden @ head.T).float()
    expected = (weights * F.cross_entropy(logits, targets, reduction="none")).sum()
    torch.testing.assert_close(loss, expected)


def test_no_positions_give_zero_loss_and_zero_gradients():
    hidden, head, targets, weights = _case()
    loss = fused_linear_cross_entropy(hidden[:0], head, targets[:0], weights[:0]).loss
    loss.backward()
    assert loss.item() == 0
    assert head.grad is not None
    assert not head.grad.any()


def test_logits_are_never_held_together():
    hidden, head, targets, weights = _case(positions=64, vocabulary=500)
    most_rows = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal most_rows
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[1:] == (500,) and len(out) != 16:
                most_rows = max(most_rows, len(out))  # 16 rows is the head, transposed
            return out

    with Watch():
        fused_linear_cross_entropy(hidden, head, targets, weights, 4).loss.backward()
    assert most_rows == 4
