"""Sampling agrees with training: what the cache gives, a whole forward pass gives too."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from infra.layout import Image, Text, layout
from infra.schedules import SCHEDULES
from trainer import sampling
from trainer.batch import pack_tensors
from trainer.model import Decoder
from trainer.sampling import Sampling, draw, sample_image

PROMPT = [Text(np.array([3, 1, 4, 1, 5]))]
GREEDY = Sampling(temperature=0)


def _image(schedule, num_scales, role, seed):
    codes = np.random.default_rng(seed).integers(0, 40, SCHEDULES[schedule].num_codes(num_scales))
    return Image(schedule, num_scales, codes, codes, role)


# A document with two images before the one that is sampled: one that it wrote, one that it was
# shown, in other shapes and numbers of scales.
STORY = [
    *PROMPT, _image(33, 5, "target", 6), Text(np.array([2, 7])), _image(3, 3, "condition", 5),
    Text(np.array([9])),
]  # fmt: skip


def whole_logits(model, prompt, schedule, codes, num_scales):
    """[N, num_codes] of the positions that predict the image's codes, in one forward pass."""
    image = Image(schedule, num_scales, codes, codes)
    sequence = layout([[*prompt, image]], model.vocabulary)
    with torch.inference_mode():
        logits = model.logits(pack_tensors(sequence, model.config, 0.9))
    start = sequence.images[-1].start
    return logits[start : start + len(codes), model.vocabulary.first_code :]


@pytest.fixture
def cached_logits(monkeypatch):
    """What the codes of each sampled image were drawn from, scale after scale."""
    seen = []

    def spy(logits, *rest):
        seen.append(logits)
        return draw(logits, *rest)

    monkeypatch.setattr(sampling, "draw", spy)
    return seen


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("schedule", [0, 20, 40])
@pytest.mark.parametrize(
    "choices",
    [{}, {"image_positions": "follow_text"}, {"text_after_image": "behind"}],
)
def test_cached_logits_are_those_of_a_whole_forward_pass(
    model, cached_logits, schedule, choices, guidance
):
    """Drawn at random, so that a code that is not the likeliest is read by the scales after it."""
    of = Decoder(replace(model.config, **choices), model.vocabulary, code_dim=6).eval()
    of.load_state_dict(model.state_dict())
    codes = sample_image(of, STORY, schedule, 6, Sampling(guidance=guidance, seed=3))
    assert len(codes) == SCHEDULES[schedule].num_codes(6)
    expected = whole_logits(of, STORY, schedule, codes, 6)
    if guidance != 1:
        without = whole_logits(of, [], schedule, codes, 6)
        expected = without + guidance * (expected - without)
    found = torch.cat(cached_logits)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    assert expected.std() > 1  # equal because they agree, not because nothing matters
    assert codes.tolist() != expected.argmax(dim=1).tolist()


def test_greedy_codes_are_the_likeliest_of_a_whole_forward_pass(model):
    codes = sample_image(model, STORY, 20, 6, GREEDY)
    assert len(set(codes.tolist())) > 3
    assert codes.tolist() == whole_logits(model, STORY, 20, codes, 6).argmax(dim=1).tolist()


def test_guidance_moves_the_codes_and_needs_a_prompt(model):
    codes = sample_image(model, PROMPT, 20, 4, Sampling(temperature=0, guidance=3.0))
    plain = sample_image(model, PROMPT, 20, 4, GREEDY)
    assert codes.tolist() != plain.tolist()
    alone = sample_image(model, [], 20, 4, GREEDY)
    assert alone.tolist() == without_guidance(model).tolist()


def without_guidance(model):
    return sample_image(model, [], 20, 4, Sampling(temperature=0, guidance=3.0))


def test_a_seed_gives_one_image_and_another_seed_another(model):
    first, again, other = (
        sample_image(model, PROMPT, 7, 5, Sampling(seed=seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_draws_follow_the_chances():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).repeat(20_000, 1)
    drawn = draw(logits, Sampling(temperature=2.0), torch.Generator().manual_seed(0))
    found = np.bincount(drawn, minlength=4) / 20_000
    np.testing.assert_allclose(found, (logits[0] / 2).softmax(0), atol=0.015)


@pytest.mark.parametrize("top_k", [0, 1, 2, 5])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
def test_top_k_and_top_p_leave_what_a_search_leaves(top_k, top_p):
    torch.manual_seed(2)
    logits = 2 * torch.randn(3, 7)
    of = Sampling(top_k=top_k, top_p=top_p)
    drawn = draw(logits.repeat(4_000, 1), of, torch.Generator().manual_seed(0))
    for row in range(3):
        ranked = sorted(range(7), key=lambda code: -logits[row, code])
        ranked = ranked[: top_k or 7]
        chances = logits[row].softmax(0)
        whole, reached, left = float(chances[ranked].sum()), 0.0, set()
        for code in ranked:
            if reached < top_p * whole:
                left.add(code)
            reached += float(chances[code])
        assert set(drawn[row::3].tolist()) == left


def test_the_least_temperature_is_greedy():
    logits = torch.tensor([[0.0, 30.0, -30.0]]).repeat(50, 1)
    drawn = draw(logits, Sampling(temperature=1e-45), torch.Generator().manual_seed(0))
    assert drawn.tolist() == [1] * 50


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"temperature": -1}, "temperature is -1"), ({"top_k": -1}, "top_k is -1"),
     ({"top_p": 0}, "top_p is 0"), ({"guidance": -0.1}, "guidance is -0.1"),
     ({"temperature": float("nan")}, "temperature is nan"),
     ({"guidance": float("inf")}, "guidance is inf")],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)
