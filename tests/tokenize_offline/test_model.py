import dataclasses

import pytest
import torch

from tokenize_offline.model import Block, Tokenizer, TokenizerSettings, doubled

SMALL = TokenizerSettings(
    num_codes=32,
    encoder_channels=(8, 8, 8),
    decoder_channels=(8, 8, 8),
    semantic_channels=(8, 8),
    teacher_dim=12,
)


@pytest.mark.parametrize("size", [(16, 16), (64, 256), (240, 272)])
def test_any_size_in_whole_cells(size: tuple[int, int]) -> None:
    tokenizer = Tokenizer(SMALL)
    pixels = torch.randn(2, 3, *size)
    features = tokenizer.features(pixels)
    assert features.shape == (2, 24, size[0] // 16, size[1] // 16)
    assert tokenizer.draw(features).shape == pixels.shape
    assert tokenizer.meaning(features).shape == (2, 12, size[0] // 16, size[1] // 16)


def test_a_size_in_broken_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="250 x 256 pixels has no whole cells"):
        Tokenizer(SMALL).features(torch.zeros(1, 3, 250, 256))


def test_meaning_looks_at_the_semantic_branch_only() -> None:
    tokenizer = Tokenizer(SMALL)
    features = torch.randn(1, 24, 4, 4)
    changed = features.clone()
    changed[:, 8:] = 0
    assert torch.equal(tokenizer.meaning(features), tokenizer.meaning(changed))
    assert not torch.equal(tokenizer.draw(features), tokenizer.draw(changed))


def test_a_new_block_changes_nothing() -> None:
    block = Block(8)
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(block(x), x)


def test_doubling_the_decoder_keeps_every_picture_and_all_that_was_learnt() -> None:
    tokenizer = Tokenizer(dataclasses.replace(SMALL, decoder_blocks=(1, 2, 1)))
    for parameter in tokenizer.parameters():  # as if trained: no block is an identity
        torch.nn.init.normal_(parameter, std=0.1)
    larger = doubled(tokenizer)
    assert larger.settings.decoder_blocks == (2, 4, 2)
    features = torch.randn(1, 24, 3, 4)
    assert torch.equal(larger.draw(features), tokenizer.draw(features))
    assert torch.equal(larger.meaning(features), tokenizer.meaning(features))
    assert torch.equal(larger.quantizer.pixel, tokenizer.quantizer.pixel)
    blocks = [sum(isinstance(m, Block) for m in t.pixel_decoder) for t in (tokenizer, larger)]
    assert blocks == [4, 8]


def test_standard_undoes_the_teachers_mean_and_deviation() -> None:
    tokenizer = Tokenizer(SMALL)
    tokenizer.teacher_mean.fill_(3)
    tokenizer.teacher_deviation.fill_(2)
    assert torch.equal(
        tokenizer.standard(torch.full((1, 12, 2, 2), 7.0)), torch.full((1, 12, 2, 2), 2.0)
    )


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="num_codes is 0"):
        TokenizerSettings(num_codes=0)
