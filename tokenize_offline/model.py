"""The tokenizer network: a pixel and a semantic encoder, the quantiser, two decoders.

Pixels [B, 3, H, W] in [-1, 1] become features [B, D, H/16, W/16], D = semantic + pixel channels,
which the quantiser turns into codes. The pixel decoder draws the picture from both branches; the
semantic decoder predicts a frozen teacher's features from the semantic branch alone, which is what
gives the shared index a meaning beyond colour and edges (paper section 2.1, TokenFlow).

Any multiples of 16 will do. The pixel branch is plain convolutions without normalisation over the
image, so a cell's feature depends on its surroundings only. So is the small tokenizer's semantic
encoder; in full size it is SigLIP2-NaFlex, which sees all, with a small transformer for a decoder.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_offline.quantizer import Quantizer
from tokenize_offline.siglip2 import Siglip2Settings
from tokenize_offline.vision_transformer import VisionTransformer

PATCH = 16


@dataclass(frozen=True)
class TokenizerSettings:
    """The shape of a tokenizer; stored beside its weights. Channels are given per grid size."""

    semantic_encoder: Literal["convolutions", "siglip2"] = "convolutions"
    num_codes: int = 4096
    semantic_dim: int = 8
    pixel_dim: int = 16
    pixel_weight: float = 2.0  # of the pixel distance, the semantic one counting 1
    encoder_channels: tuple[int, int, int] = (64, 128, 160)  # at 1/4, 1/8 and 1/16 of the image
    encoder_blocks: tuple[int, int, int] = (1, 1, 2)
    decoder_channels: tuple[int, int, int] = (160, 128, 64)  # at 1/16, 1/8 and 1/4
    decoder_blocks: tuple[int, int, int] = (1, 1, 1)  # doubled in the last stage of training
    semantic_channels: tuple[int, int] = (64, 80)  # of the convolutions, at 1/8 and 1/16
    siglip2: Siglip2Settings | None = None  # the sizes of the tower, if the encoder is siglip2
    teacher_dim: int = 112  # channels of the teacher's features at 1/16
    semantic_decoder_layers: int = 0  # of a transformer of width teacher_dim; 0: two convolutions
    semantic_decoder_heads: int = 16

    def __post_init__(self) -> None:
        for name in ("num_codes", "semantic_dim", "pixel_dim", "pixel_weight", "teacher_dim"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: use a number above 0")
        for part in ("encoder_channels", "decoder_channels", "semantic_channels"):
            if min(getattr(self, part)) < 1:
                raise ValueError(f"{part} is {list(getattr(self, part))}: use 1 or more each")
        if min(self.encoder_blocks + self.decoder_blocks) < 0:
            raise ValueError("encoder_blocks or decoder_blocks are below 0: use 0 or more each")
        if self.semantic_encoder == "siglip2" and self.siglip2 is None:
            raise ValueError("siglip2 is missing: give its sizes, `siglip2: {}` for so400m")
        if self.semantic_encoder != "siglip2" and self.siglip2 is not None:
            raise ValueError("siglip2 has sizes but no use: set semantic_encoder to siglip2")
        layers, heads = self.semantic_decoder_layers, self.semantic_decoder_heads
        dim = self.teacher_dim
        if layers < 0:
            raise ValueError(f"semantic_decoder_layers is {layers}: use 0 or more")
        if heads < 1 or (layers and dim % heads):
            raise ValueError(
                f"semantic_decoder_heads is {heads}: use a divisor of teacher_dim, {dim}"
            )


FULL_SIZE = TokenizerSettings(
    semantic_encoder="siglip2",
    num_codes=32_768,
    semantic_dim=32,
    pixel_dim=8,
    pixel_weight=1.0,
    encoder_channels=(256, 512, 512),
    encoder_blocks=(2, 2, 4),
    decoder_channels=(512, 512, 256),
    decoder_blocks=(4, 2, 2),
    siglip2=Siglip2Settings(),
    teacher_dim=1152,
    semantic_decoder_layers=3,
)
"""The paper's size (section 2.1); where it is silent, that of TokenFlow's released tokenizers.

TokenFlow's pixel branch is VQGAN's: 128 channels times 1, 1, 2, 2, 4 at 1/1 to 1/16 of the image,
two blocks at each. Three quarters of its operations are at 1/1 and 1/2, for a twenty-fifth of its
29 million weights. Ours has as many (32 million in the encoder), all from 1/4 on, where its first
layer sees 4 x 4 pixels at once; it has no normalisation over the image and no attention.
"""


class Tokenizer(nn.Module):
    """Encoders, quantiser and decoders under one roof."""

    def __init__(self, settings: TokenizerSettings) -> None:
        super().__init__()
        self.settings = settings
        dim = settings.semantic_dim + settings.pixel_dim
        fine, middle, coarse = settings.encoder_channels
        one, two, three = settings.encoder_blocks
        self.pixel_encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, fine, 3, padding=1),
            *(Block(fine) for _ in range(one)),
            _down(fine, middle),
            *(Block(middle) for _ in range(two)),
            _down(middle, coarse),
            *(Block(coarse) for _ in range(three)),
            nn.SiLU(),
            nn.Conv2d(coarse, settings.pixel_dim, 1),
        )
        self.semantic_encoder = _semantic_encoder(settings)
        self.quantizer = Quantizer(
            settings.num_codes, settings.semantic_dim, settings.pixel_dim, settings.pixel_weight
        )
        coarse, middle, fine = settings.decoder_channels
        three, two, one = settings.decoder_blocks
        self.pixel_decoder = nn.Sequential(
            nn.Conv2d(dim, coarse, 3, padding=1),
            *(Block(coarse) for _ in range(three)),
            _up(coarse, middle),
            *(Block(middle) for _ in range(two)),
            _up(middle, fine),
            *(Block(fine) for _ in range(one)),
            nn.SiLU(),
            nn.Conv2d(fine, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )
        self.semantic_decoder = _semantic_decoder(settings)
        self.teacher_mean: Tensor
        self.teacher_deviation: Tensor
        self.register_buffer("teacher_mean", torch.zeros(settings.teacher_dim))
        self.register_buffer("teacher_deviation", torch.ones(settings.teacher_dim))

    def pretrained(self) -> Iterator[nn.Parameter]:
        """The weights that `siglip2.initialise` sets; none in the small tokenizer."""
        return iter(()) if self.settings.siglip2 is None else self.semantic_encoder[0].parameters()

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] -> [B, semantic + pixel channels, H/16, W/16]."""
        height, width = pixels.shape[2:]
        if height % PATCH or width % PATCH:
            raise ValueError(f"{height} x {width} pixels: use multiples of {PATCH}, whole cells")
        return torch.cat([self.semantic_encoder(pixels), self.pixel_encoder(pixels)], dim=1)

    def draw(self, features: Tensor) -> Tensor:
        """Features, quantised or not -> pixels [B, 3, H, W], about [-1, 1], not clipped."""
        return self.pixel_decoder(features)

    def meaning(self, features: Tensor) -> Tensor:
        """Features -> the teacher's standardised features, as the semantic branch tells them."""
        return self.semantic_decoder(features[:, : self.settings.semantic_dim])

    def standard(self, taught: Tensor) -> Tensor:
        """The teacher's features [B, T, h, w] with mean 0 and deviation 1 in every channel."""
        mean, deviation = self.teacher_mean[:, None, None], self.teacher_deviation[:, None, None]
        return (taught.float() - mean) / deviation


def doubled(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with twice the blocks in its pixel decoder, for the last training stage.

    The paper doubles the decoder's capacity before it is trained alone (section 3.1). Every run of
    blocks is lengthened by as many identities, so that nothing learnt is lost: the pictures are
    those of ``tokenizer`` until training goes on.
    """
    one, two, three = tokenizer.settings.decoder_blocks
    settings = dataclasses.replace(tokenizer.settings, decoder_blocks=(2 * one, 2 * two, 2 * three))
    larger = Tokenizer(settings)
    kept = tokenizer.state_dict()
    rest = {name: value for name, value in kept.items() if not name.startswith("pixel_decoder.")}
    larger.load_state_dict(larger.state_dict() | rest)
    for new, old in zip(_runs(larger.pixel_decoder), _runs(tokenizer.pixel_decoder), strict=True):
        for layer, learnt in zip(new, old, strict=False):  # the blocks beyond stay identities
            layer.load_state_dict(learnt.state_dict())
    return larger


def _runs(layers: nn.Sequential) -> list[list[nn.Module]]:
    """Neighbouring blocks together, neighbouring other layers together."""
    return [list(run) for _, run in groupby(layers, lambda layer: isinstance(layer, Block))]


def _semantic_encoder(settings: TokenizerSettings) -> nn.Sequential:
    """Pixels [B, 3, H, W] -> [B, semantic_dim, H/16, W/16]."""
    if settings.siglip2 is not None:
        width = settings.siglip2.hidden_size
        return nn.Sequential(
            settings.siglip2.build(),
            nn.Conv2d(width, width, 1),
            nn.Tanh(),
            nn.Conv2d(width, settings.semantic_dim, 1),
        )
    wide, deep = settings.semantic_channels
    return nn.Sequential(
        nn.PixelUnshuffle(8),
        nn.Conv2d(192, wide, 1),
        Block(wide),
        _down(wide, deep),
        Block(deep),
        nn.SiLU(),
        nn.Conv2d(deep, settings.semantic_dim, 1),
    )


def _semantic_decoder(settings: TokenizerSettings) -> nn.Sequential:
    """[B, semantic_dim, h, w] -> the teacher's standardised features [B, teacher_dim, h, w]."""
    width = settings.teacher_dim
    if settings.semantic_decoder_layers:
        return nn.Sequential(
            VisionTransformer(
                channels=settings.semantic_dim,
                patch_size=1,
                width=width,
                intermediate=4 * width,
                num_heads=settings.semantic_decoder_heads,
                num_layers=settings.semantic_decoder_layers,
                num_positions=256,  # 16 x 16: a square picture's at level 256
            ),
            nn.Conv2d(width, width, 1),
            nn.Tanh(),
            nn.Conv2d(width, width, 1),
        )
    first, last = nn.Conv2d(settings.semantic_dim, width, 1), nn.Conv2d(width, width, 1)
    return nn.Sequential(first, nn.SiLU(), last)


class Block(nn.Module):
    """x + conv(act(conv(act(x)))), the second convolution zero at the start: an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(cast(Tensor, self.second.bias))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


def _down(channels: int, out: int) -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, out, 1))


def _up(channels: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4 * out, 1), nn.PixelShuffle(2))
