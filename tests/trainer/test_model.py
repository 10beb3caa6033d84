"""The decoder: nothing leaks between documents or backwards in scale, packed equals unpacked."""

import copy

import numpy as np
import pytest
import torch

from infra.layout import Image, Text, Vocabulary, layout
from infra.schedules import SCHEDULES
from trainer.batch import pack_tensors

VOCABULARY = Vocabulary(num_codes=40, text_size=30)  # of `model`
WIDE, TALL = SCHEDULES[38].index, SCHEDULES[2].index


def _image(schedule=WIDE, scales=4, role="target", seed=0, loss=True):
    codes = np.random.default_rng(seed).integers(0, 40, (2, SCHEDULES[schedule].num_codes(scales)))
    return Image(schedule, scales, codes[0], codes[1], role, loss)


def _text(*ids, loss=True):
    return Text(np.array(ids), loss)


def _documents():
    return [
        [_text(1, 2, 3), _image(seed=1), _text(4, 5)],
        [_image(TALL, 3, "condition", seed=2), _text(6, 7), _image(TALL, 5, seed=3), _text(8)],
        [_text(9, 10, 11, 12)],
    ]


def _tensors(model, documents):
    return pack_tensors(layout(documents, VOCABULARY), model.config, 0.9)


def _logits(model, documents):
    with torch.inference_mode():
        return model.logits(_tensors(model, documents))


def test_changing_one_document_changes_no_logit_of_another(model):
    documents = _documents()
    before = _logits(model, documents)
    document = layout(documents, VOCABULARY).document
    changed = [
        [_text(29, 28, 27), _image(seed=71), _text(26, 25)],
        [_image(TALL, 3, "condition", seed=72), _text(24, 23), _image(TALL, 5, seed=73), _text(22)],
        [_text(21, 20, 19, 18)],
    ]
    for index in range(3):
        mixed = [*documents[:index], changed[index], *documents[index + 1 :]]
        differs = (_logits(model, mixed) != before).any(dim=1).numpy()
        assert differs[document == index][1:].all()  # the first may be a <boi>, which stays
        assert not differs[document != index].any()  # bit for bit


def test_a_document_gives_the_same_logits_alone_and_packed(model):
    documents = _documents()
    packed = _logits(model, documents)
    document = layout(documents, VOCABULARY).document
    for index, segments in enumerate(documents):
        alone = _logits(model, [segments])
        torch.testing.assert_close(alone, packed[document == index], atol=1e-4, rtol=1e-4)


def test_text_sees_nothing_after_itself(model):
    before = _logits(model, [[_text(1, 2, 3, 4, 5)]])
    after = _logits(model, [[_text(1, 2, 3, 9, 9)]])
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3], after[3])


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_no_position_sees_its_own_scales_codes_or_later_ones(model, scale):
    """Other input codes at scale s change only positions of scales > s and what follows."""
    image = _image(seed=5)
    grids = SCHEDULES[WIDE].grids
    start = sum(h * w for h, w in grids[: scale - 1])
    codes = image.input_codes.copy()
    codes[start : start + grids[scale - 1][0] * grids[scale - 1][1]] += 1
    changed = Image(WIDE, 4, codes % 40, image.target_codes)

    documents = [[_text(1, 2), image, _text(3)]]
    sequence = layout(documents, VOCABULARY)
    before = _logits(model, documents)
    after = _logits(model, [[_text(1, 2), changed, _text(3)]])
    differs = (before != after).any(dim=1).numpy()
    predicts = np.where(sequence.loss_scale > 0, sequence.loss_scale, 0)
    earlier = (predicts > 0) & (predicts <= scale)
    assert not differs[earlier].any()
    assert not differs[:2].any()
    assert differs[predicts > scale].all()
    # the last scale's codes are targets only: nothing reads them
    assert differs.any() == (scale < 4)


def test_target_codes_are_never_inputs(model):
    image = _image(seed=5)
    other = Image(WIDE, 4, image.input_codes, (image.target_codes + 1) % 40)
    assert torch.equal(_logits(model, [[image]]), _logits(model, [[other]]))


def test_cells_of_a_scale_see_each_other(model):
    """The first cell of scale 3 reads the code under the last cell of scale 2, and so on."""
    image = _image(seed=5)
    codes = image.input_codes.copy()
    last_of_scale_2 = sum(h * w for h, w in SCHEDULES[WIDE].grids[:2]) - 1
    codes[last_of_scale_2] = (codes[last_of_scale_2] + 1) % 40
    changed = Image(WIDE, 4, codes, image.target_codes)
    differs = (_logits(model, [[image]]) != _logits(model, [[changed]])).any(dim=1)
    sequence = layout([[image]], VOCABULARY)
    assert differs.numpy()[sequence.scale == 3].all()


def test_a_condition_image_shows_its_finest_codes_to_what_follows(model):
    image = _image(role="condition", seed=6)
    codes = image.input_codes.copy()
    codes[-1] = (codes[-1] + 1) % 40
    changed = Image(WIDE, 4, codes, image.target_codes, "condition")
    before = _logits(model, [[image, _text(1)]])
    after = _logits(model, [[changed, _text(1)]])
    assert not torch.equal(before[-1], after[-1])


def test_boi_knows_the_number_of_scales(model):
    few, many = (_logits(model, [[_text(1), _image(scales=k, seed=3)]]) for k in (3, 4))
    assert torch.equal(few[0], many[0])
    assert not torch.equal(few[1], many[1])


def _gradients(model, documents, loss_scale=1.0):
    model.zero_grad(set_to_none=True)
    loss = model(_tensors(model, documents)).loss
    (loss * loss_scale).backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_packed_loss_is_the_sum_of_unpacked_losses(model):
    documents = _documents()
    packed, packed_gradients = _gradients(model, documents)
    losses, parts = zip(*(_gradients(model, [d]) for d in documents), strict=True)
    torch.testing.assert_close(packed, sum(losses), atol=0, rtol=1e-5)
    for name, gradient in packed_gradients.items():
        total = sum(part[name] for part in parts)
        scale = max(float(total.abs().max()), 1e-6)
        torch.testing.assert_close(gradient / scale, total / scale, atol=1e-4, rtol=0)


def test_every_parameter_gets_a_gradient_from_a_pack_without_images(model):
    """ZeRO ranks must agree on which gradients exist, whatever their packs hold."""
    model.zero_grad(set_to_none=True)
    model(_tensors(model, [[_text(1, 2, 3)]])).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not model.vision.codebook.grad.any()


def test_bf16_gives_nearly_the_same_loss_and_finite_gradients(model):
    expected = model(_tensors(model, _documents())).loss
    half = copy.deepcopy(model).bfloat16()
    loss = half(_tensors(model, _documents())).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    assert all(torch.isfinite(p.grad).all() for p in half.parameters())


def test_recomputed_layers_run_twice_and_change_no_gradient(model):
    pack = _tensors(model, _documents())
    model.zero_grad()
    model(pack).loss.backward()
    stored = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    runs = []
    hooks = [layer.register_forward_pre_hook(lambda *_: runs.append(1)) for layer in model.layers]
    model.recompute = True
    model(pack).loss.backward()
    model.recompute = False
    for hook in hooks:
        hook.remove()
    assert len(runs) == 2 * len(model.layers)
    assert all(map(torch.equal, stored, [parameter.grad for parameter in model.parameters()]))
    model.zero_grad()
