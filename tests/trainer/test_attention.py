"""Attention from intervals: equal to attention under the sequence's own dense mask."""

import numpy as np
import torch

from infra.layout import Image, Text, Vocabulary, layout
from infra.schedules import SCHEDULES
from trainer.attention import attend, build_mask, interval_rule


def _sequence():
    codes = np.zeros(SCHEDULES[7].num_codes(3), np.int32)
    documents = [
        [Text(np.arange(3)), Image(7, 3, codes, codes)],
        [Image(7, 3, codes, codes, "condition"), Text(np.arange(2))],
    ]
    return layout(documents, Vocabulary(1, 5))


def test_intervals_give_the_dense_mask():
    sequence = _sequence()
    mask = build_mask(torch.tensor(sequence.key_start), torch.tensor(sequence.key_end))
    assert np.array_equal(mask.numpy(), sequence.dense_mask())


def test_grouped_heads_equal_plain_softmax_attention():
    torch.manual_seed(0)
    sequence = _sequence()
    mask = build_mask(torch.tensor(sequence.key_start), torch.tensor(sequence.key_end))
    query = torch.randn(4, sequence.num_tokens, 8)
    key, value = torch.randn(2, 2, sequence.num_tokens, 8)
    scores = query @ key.repeat_interleave(2, 0).mT / 8**0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    expected = weights @ value.repeat_interleave(2, 0)
    torch.testing.assert_close(attend(query, key, value, mask), expected, atol=1e-5, rtol=1e-5)


def test_flex_attention_gets_the_same_mask():
    """FlexAttention itself trains on CUDA only; its rule is evaluated here for every pair."""
    from torch.nn.attention.flex_attention import create_mask

    sequence = _sequence()
    intervals = torch.tensor(sequence.key_start), torch.tensor(sequence.key_end)
    length = sequence.num_tokens
    mask = create_mask(interval_rule(*intervals), 1, 1, length, length, device="cpu")
    assert np.array_equal(mask[0, 0].numpy(), sequence.dense_mask())
