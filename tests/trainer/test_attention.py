"""Attention from intervals: equal to attention under the sequence's own dense mask."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.layout import Image, Text, Vocabulary, layout
from infra.schedules import SCHEDULES
from trainer.attention import attend, build_mask, interval_rule


def image(num_scales=3, role="target"):
    codes = np.zeros(SCHEDULES[7].num_codes(num_scales), np.int32)
    return Image(7, num_scales, codes, codes, role)


def text(length):
    return Text(np.zeros(length, np.int32))


def intervals(*documents):
    sequence = layout(documents, Vocabulary(1, 5))
    return sequence, torch.tensor(sequence.key_start), torch.tensor(sequence.key_end)


def inputs(length, heads=4, kv_heads=2, head_dim=8):
    torch.manual_seed(0)
    return [
        torch.randn(n, length, head_dim, requires_grad=True) for n in (heads, kv_heads, kv_heads)
    ]


def softmax_attention(query, key, value, mask):
    groups = len(query) // len(key)
    scores = query @ key.repeat_interleave(groups, 0).mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return weights @ value.repeat_interleave(groups, 0)


segment = st.one_of(
    st.integers(1, 300).map(text),
    st.tuples(st.integers(1, 9), st.sampled_from(["target", "condition"])).map(lambda a: image(*a)),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(segment, min_size=1, max_size=3), min_size=1, max_size=4))
def test_output_and_gradients_equal_softmax_under_the_dense_mask(documents):
    sequence, start, end = intervals(*documents)
    parts = inputs(sequence.num_tokens)
    dense = torch.from_numpy(sequence.dense_mask())
    attended, expected = attend(*parts, build_mask(start, end)), softmax_attention(*parts, dense)
    torch.testing.assert_close(attended, expected, atol=1e-5, rtol=1e-5)
    towards = torch.randn_like(expected)
    got = torch.autograd.grad(attended, parts, towards)
    for gradient, wanted in zip(got, torch.autograd.grad(expected, parts, towards), strict=True):
        torch.testing.assert_close(gradient, wanted, atol=2e-5, rtol=1e-4)


def test_a_pack_without_documents_attends_to_nothing():
    empty = torch.zeros(0, dtype=torch.int64)
    assert attend(*inputs(0), build_mask(empty, empty)).shape == (4, 0, 8)


def test_nothing_leaks_from_another_document_or_from_later_positions():
    documents = [text(5), image(4)], [image(6, "condition"), text(270)], [text(3)]
    sequence, start, end = intervals(*documents)
    mask, parts = build_mask(start, end), inputs(sequence.num_tokens)
    before = attend(*parts, mask)
    for position in (0, 4, 9, int(start[-1]) - 1, int(start[-1])):
        changed = [part.detach().clone() for part in parts]
        changed[1][:, position] += 1
        changed[2][:, position] += 1
        differs = (attend(*changed, mask) != before).any(dim=2).any(dim=0)
        assert torch.equal(differs, torch.from_numpy(sequence.dense_mask()[:, position]))


def test_every_run_gives_the_same_bits():
    _, start, end = intervals([text(9), image(12)], [text(300)])
    parts = inputs(len(start))
    runs = []
    for _ in range(2):
        attended = attend(*parts, build_mask(start, end))
        runs.append([attended, *torch.autograd.grad(attended.square().sum(), parts)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("documents", [32, 64])
def test_memory_goes_with_documents_and_not_with_the_square_of_the_pack(documents):
    _, start, end = intervals(*[[text(4), image(5)]] * documents)
    mask = build_mask(start, end)
    stored = sum(r.bias.numel() for rows in mask for r in rows if r.bias is not None)
    length = len(start) // documents
    assert stored <= documents * length**2


def test_flex_attention_gets_the_same_mask():
    """FlexAttention itself trains on CUDA only; its rule is evaluated here for every pair."""
    from torch.nn.attention.flex_attention import create_mask

    sequence, start, end = intervals([text(3), image()], [image(role="condition"), text(2)])
    length = sequence.num_tokens
    mask = create_mask(interval_rule(start, end), 1, 1, length, length, device="cpu")
    assert np.array_equal(mask[0, 0].numpy(), sequence.dense_mask())
