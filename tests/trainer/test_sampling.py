"""Sampling agrees with training: what the cache gives, a whole forward pass gives too."""

import numpy as np
import pytest
import torch

from infra.layout import Image, Text, Vocabulary, layout
from infra.schedules import SCHEDULES
from trainer.batch import pack_tensors
from trainer.config import ModelConfig
from trainer.model import Decoder
from trainer.sampling import Sampling, draw, sample_image

VOCABULARY = Vocabulary(num_codes=40, text_size=30)
TINY = ModelConfig(hidden_size=48, intermediate_size=64, num_layers=2, num_heads=4,
                   num_kv_heads=2, head_dim=16, mrope_sections=(2, 3, 3), init_std=0.3)  # fmt: skip
PROMPT = [Text(np.array([3, 1, 4, 1, 5]))]
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Decoder(TINY, VOCABULARY, code_dim=6).eval()


def whole_logits(model, prompt, schedule, codes, num_scales):
    """[N, num_codes] of the positions that predict the image's codes, in one forward pass."""
    image = Image(schedule, num_scales, codes, codes)
    sequence = layout([[*prompt, image]], VOCABULARY)
    with torch.inference_mode():
        logits = model.logits(pack_tensors(sequence, TINY, 0.9))
    start = sequence.images[-1].start
    return logits[start : start + len(codes), VOCABULARY.first_code :]


@pytest.mark.parametrize("schedule", [0, 20, 40])
@pytest.mark.parametrize("image_positions", ["absolute", "follow_text"])
def test_greedy_codes_are_the_likeliest_of_a_whole_forward_pass(schedule, image_positions):
    torch.manual_seed(1)
    config = ModelConfig(**(vars(TINY) | {"image_positions": image_positions}))
    model = Decoder(config, VOCABULARY, code_dim=6).eval()
    prompt = [*PROMPT, *_condition(), Text(np.array([9]))]
    codes = sample_image(model, prompt, schedule, 6, GREEDY)
    assert len(codes) == SCHEDULES[schedule].num_codes(6)
    assert len(set(codes.tolist())) > 3
    image = Image(schedule, 6, codes, codes)
    pack = pack_tensors(layout([[*prompt, image]], VOCABULARY), config, 0.9)
    with torch.inference_mode():
        logits = model.logits(pack)[:, VOCABULARY.first_code :]
    start = pack.num_tokens - len(codes) - 1
    expected = logits[start : start + len(codes)].argmax(dim=1)
    assert codes.tolist() == expected.tolist()


def _condition():
    codes = np.random.default_rng(5).integers(0, 40, SCHEDULES[3].num_codes(3))
    return [Image(3, 3, codes, codes, "condition")]


def test_guidance_mixes_the_logits_with_and_without_the_prompt(model):
    codes = sample_image(model, PROMPT, 20, 4, Sampling(temperature=0, guidance=3.0))
    with_prompt = whole_logits(model, PROMPT, 20, codes, 4)
    without = whole_logits(model, [], 20, codes, 4)
    mixed = without + 3.0 * (with_prompt - without)
    assert codes.tolist() == mixed.argmax(dim=1).tolist()
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
    sampling = Sampling(top_k=top_k, top_p=top_p)
    drawn = draw(logits.repeat(4_000, 1), sampling, torch.Generator().manual_seed(0))
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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"temperature": -1}, "temperature is -1"), ({"top_k": -1}, "top_k is -1"),
     ({"top_p": 0}, "top_p is 0"), ({"guidance": -0.1}, "guidance is -0.1")],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)
