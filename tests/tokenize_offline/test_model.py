import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from infra import config
from infra.config import ConfigError
from tokenize_offline.model import FULL_SIZE, Block, Tokenizer, TokenizerSettings, doubled
from tokenize_offline.siglip2 import Siglip2Settings
from tokenize_offline.training_recipe import TrainTokenizer

SMALL = TokenizerSettings(
    num_codes=32,
    encoder_channels=(8, 8, 8),
    decoder_channels=(8, 8, 8),
    semantic_channels=(8, 8),
    teacher_dim=12,
)
LIKE_FULL = dataclasses.replace(  # the full size's parts, tiny
    SMALL,
    semantic_encoder="siglip2",
    siglip2=Siglip2Settings(
        hidden_size=24, intermediate_size=40, num_layers=3, num_heads=2, num_patches=16
    ),
    semantic_decoder_layers=2,
    semantic_decoder_heads=3,
)
RECIPES = Path(__file__).parents[2] / "pipelines/recipes"


def trained(settings: TokenizerSettings, std: float = 0.1) -> Tokenizer:
    """As if trained: nothing is an identity any more."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(settings)
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return tokenizer


@pytest.mark.parametrize("settings", [SMALL, LIKE_FULL])
@pytest.mark.parametrize("size", [(16, 16), (64, 256), (240, 272)])
def test_any_size_in_whole_cells(settings: TokenizerSettings, size: tuple[int, int]) -> None:
    tokenizer = Tokenizer(settings)
    pixels = torch.randn(2, 3, *size)
    features = tokenizer.features(pixels)
    assert features.shape == (2, 24, size[0] // 16, size[1] // 16)
    assert tokenizer.draw(features).shape == pixels.shape
    assert tokenizer.meaning(features).shape == (2, 12, size[0] // 16, size[1] // 16)


def test_a_size_in_broken_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="250 x 256 pixels: use multiples of 16"):
        Tokenizer(SMALL).features(torch.zeros(1, 3, 250, 256))


@pytest.mark.parametrize("settings", [SMALL, LIKE_FULL])
def test_meaning_looks_at_the_semantic_branch_only(settings: TokenizerSettings) -> None:
    tokenizer = trained(settings)
    features = torch.randn(1, 24, 4, 4)
    changed = features.clone()
    changed[:, 8:] = 0
    assert torch.equal(tokenizer.meaning(features), tokenizer.meaning(changed))
    assert not torch.equal(tokenizer.draw(features), tokenizer.draw(changed))


def test_a_new_block_changes_nothing() -> None:
    block = Block(8)
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("settings", [SMALL, LIKE_FULL])
def test_doubling_the_decoder_keeps_every_picture_and_all_that_was_learnt(
    settings: TokenizerSettings,
) -> None:
    tokenizer = trained(dataclasses.replace(settings, decoder_blocks=(1, 2, 1)))
    larger = doubled(tokenizer)
    assert larger.settings.decoder_blocks == (2, 4, 2)
    features = torch.randn(1, 24, 3, 4)
    assert torch.equal(larger.draw(features), tokenizer.draw(features))
    assert torch.equal(larger.meaning(features), tokenizer.meaning(features))
    assert torch.equal(larger.quantizer.pixel, tokenizer.quantizer.pixel)
    pixels = torch.randn(1, 3, 48, 64)
    assert torch.equal(larger.features(pixels), tokenizer.features(pixels))
    blocks = [sum(isinstance(m, Block) for m in t.pixel_decoder) for t in (tokenizer, larger)]
    assert blocks == [4, 8]


def test_standard_undoes_the_teachers_mean_and_deviation() -> None:
    tokenizer = Tokenizer(SMALL)
    tokenizer.teacher_mean.fill_(3)
    tokenizer.teacher_deviation.fill_(2)
    assert torch.equal(
        tokenizer.standard(torch.full((1, 12, 2, 2), 7.0)), torch.full((1, 12, 2, 2), 2.0)
    )


def test_the_semantic_encoder_sees_the_whole_picture_and_the_pixel_encoder_what_is_near() -> None:
    tokenizer = trained(LIKE_FULL, std=0.3)
    pixels = torch.randn(1, 3, 64, 160)
    changed = pixels.clone()
    changed[:, :, :16, :16] += 1
    different = tokenizer.features(pixels) != tokenizer.features(changed)
    semantic, pixel = different.tensor_split([8], dim=1)
    assert semantic.any(dim=1).all()
    assert pixel[..., 0, 0].any()
    assert not pixel[..., -1].any()


def test_every_weight_of_the_full_size_learns() -> None:
    tokenizer = trained(LIKE_FULL)
    features = tokenizer.features(torch.randn(1, 3, 32, 48))
    (
        tokenizer.draw(features).square().sum() + tokenizer.meaning(features).square().sum()
    ).backward()
    without = {name for name, p in tokenizer.named_parameters() if p.grad is None}
    assert without == {"quantizer.semantic", "quantizer.pixel", "quantizer.log_magnitude"}
    assert all(p.grad.any() for p in tokenizer.pretrained() if p.grad is not None)


def test_what_is_pretrained() -> None:
    assert list(Tokenizer(SMALL).pretrained()) == []
    tokenizer = Tokenizer(LIKE_FULL)
    names = {id(p): name for name, p in tokenizer.named_parameters()}
    pretrained = {names[id(p)] for p in tokenizer.pretrained()}
    assert pretrained == {n for n in names.values() if n.startswith("semantic_encoder.0.")}


def test_the_encoder_in_bfloat16_is_near_that_in_float32() -> None:
    tokenizer = trained(LIKE_FULL)
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        exact = tokenizer.features(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            rough = tokenizer.features(pixels).float()
    assert (rough - exact).square().mean() < 1e-3 * exact.square().mean()
    assert not torch.equal(rough, exact)


def test_the_full_size_has_the_papers_sizes_and_is_what_the_recipe_trains() -> None:
    with torch.device("meta"):
        tokenizer = Tokenizer(FULL_SIZE)
    millions = {
        name: round(sum(p.numel() for p in part.parameters()) / 1e6)
        for name, part in tokenizer.named_children()
    }
    assert millions["semantic_encoder"] == 399  # so400m without its last layer and its pooling
    assert 29 <= millions["pixel_encoder"] <= 35
    assert tokenizer.features(torch.empty(1, 3, 256, 512, device="meta")).shape == (1, 40, 16, 32)
    assert config.build(TokenizerSettings, config.as_dict(FULL_SIZE)) == FULL_SIZE
    recipe = config.load(TrainTokenizer, RECIPES / "train_tokenizer_full.yaml")
    assert recipe.tokenizer == FULL_SIZE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codes": 0}, "num_codes is 0"),
        ({"semantic_encoder": "siglip2"}, "siglip2 is missing: give its sizes"),
        ({"siglip2": {}}, "siglip2 has sizes but no use: set semantic_encoder"),
        ({"semantic_encoder": "siglip"}, "choose one of convolutions, siglip2"),
        (
            {"semantic_encoder": "siglip2", "siglip2": {"hidden_size": 100}},
            r"`tokenizer.siglip2`: hidden_size 100 is no multiple of num_heads 16",
        ),
        ({"pixel_weight": float("nan")}, "pixel_weight is nan"),
        ({"encoder_channels": [8, 0, 8]}, r"encoder_channels is \[8, 0, 8\]: use 1 or more"),
        ({"decoder_blocks": [1, 1, -1]}, "decoder_blocks are below 0: use 0"),
        ({"semantic_decoder_heads": 0}, "semantic_decoder_heads is 0"),
        ({"semantic_decoder_layers": -1}, "semantic_decoder_layers is -1"),
        ({"semantic_decoder_layers": 1, "teacher_dim": 100}, "use a divisor of teacher_dim, 100"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.build(TokenizerSettings, changes, "tokenizer")
    assert "\n" not in str(caught.value)
