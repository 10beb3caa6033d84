"""SigLIP2-NaFlex (arXiv:2502.14786) as the semantic encoder and as the teacher of the full size.

The tower gives the second-to-last layer's hidden state, as TokenFlow takes it: the last layer and
the pooling after it serve the matching with texts only, so they are neither kept nor computed.

Published weights are read through `transformers`, which is imported for that alone. The network
itself is ours and its sizes are in the tokenizer's settings: a trained tokenizer needs neither
`transformers` nor a hub, and its weights keep their names whatever `transformers` calls them.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from infra.config import ConfigError
from infra.schedules import PIXELS_PER_CELL
from tokenize_offline.vision_transformer import VisionTransformer

if TYPE_CHECKING:
    from tokenize_offline.model import Tokenizer

_KINDS = ("siglip2", "siglip2_vision_model")  # both towers, or that of pictures alone


@dataclass(frozen=True, kw_only=True)
class Siglip2Settings:
    """The sizes of a vision tower; the defaults are google/siglip2-so400m-patch16-naflex."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_layers: int = 27  # as published; all but the last are computed
    num_heads: int = 16
    num_patches: int = 256  # rows of the position table, a square; pictures may have any number
    patch_size: int = 16  # pixels

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}: use 1 or more")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}: "
                "change one"
            )
        if self.num_layers < 2:
            raise ValueError("num_layers is 1: the second-to-last of at least 2 is used")
        if math.isqrt(self.num_patches) ** 2 != self.num_patches:
            raise ValueError(f"num_patches is {self.num_patches}: use a square number")
        if self.patch_size != PIXELS_PER_CELL:
            raise ValueError(
                f"patch_size is {self.patch_size}: codes have cells of {PIXELS_PER_CELL} pixels, "
                f"use a model of patch{PIXELS_PER_CELL}"
            )

    def build(self) -> VisionTransformer:
        """The tower: pixels [B, 3, H, W] in [-1, 1] -> [B, hidden_size, H/16, W/16]."""
        return VisionTransformer(
            channels=3,
            patch_size=self.patch_size,
            width=self.hidden_size,
            intermediate=self.intermediate_size,
            num_heads=self.num_heads,
            num_layers=self.num_layers - 1,
            num_positions=self.num_patches,
        )


def read(source: str | Path) -> tuple[Siglip2Settings, VisionTransformer]:
    """The tower of a hub id or of a folder that `transformers` wrote, in float32, with its sizes.

    Raises ConfigError if there is none or it cannot be had.
    """
    from transformers import PreTrainedConfig, Siglip2VisionModel

    name = str(source)
    if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "~"))):
        raise ConfigError(f"SigLIP2 {name} is neither a folder nor a hub id: check the path")
    try:
        kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
        if kind not in _KINDS:
            raise ConfigError(
                f"SigLIP2 {name} has the model type {kind!r}: use a NaFlex one, as "
                "google/siglip2-so400m-patch16-naflex"
            )
        with _quiet():
            loaded: Any = Siglip2VisionModel.from_pretrained(
                name,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told of below, in one line
            )
    except ConfigError:
        raise
    # A missing file, an id that is none, no connection; nonsense in a file.
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"SigLIP2 {name} cannot be loaded: {reason}") from None
    network, report = loaded
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("head."))
    if missing:
        raise ConfigError(f"SigLIP2 {name} is not whole: it has no `{missing[0]}`")
    if report["mismatched_keys"]:
        key, *shapes = min(report["mismatched_keys"])
        raise ConfigError(
            f"SigLIP2 {name} does not fit its config.json: `{key}` is "
            f"{' and not '.join(str(list(shape)) for shape in shapes)}"
        )
    settings = _settings(network.config, name)
    with torch.device("meta"):
        tower = settings.build()
    weights = dict(_renamed(network.state_dict(), settings.num_layers - 1))
    tower.load_state_dict(weights, assign=True)
    return settings, tower


def initialise(tokenizer: "Tokenizer", source: str | Path) -> None:
    """Copy the published tower into the tokenizer's semantic encoder.

    Raises ConfigError if the source cannot be read or has other sizes than the settings.
    """
    wanted = tokenizer.settings.siglip2
    if wanted is None:
        raise ConfigError("semantic_encoder is not siglip2: there is nothing to copy SigLIP2 into")
    found, tower = read(source)
    for name, size in asdict(found).items():
        if getattr(wanted, name) != size:
            raise ConfigError(
                f"tokenizer.siglip2.{name} is {getattr(wanted, name)}, SigLIP2 {source} has "
                f"{size}: set it to that"
            )
    own = tokenizer.semantic_encoder[0]
    own.load_state_dict(tower.state_dict())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning of hundreds of lines that the text tower is in the file and not used."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _settings(config: Any, name: str) -> Siglip2Settings:
    """Our settings from theirs. Raises ConfigError for what the tower does not do."""
    fixed = {"num_channels": 3, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    for key, value in fixed.items():
        if getattr(config, key) != value:
            raise ConfigError(f"SigLIP2 {name} has {key} {getattr(config, key)}: only {value} will")
    try:
        return Siglip2Settings(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_patches=config.num_patches,
            patch_size=config.patch_size,
        )
    except ValueError as error:
        raise ConfigError(f"SigLIP2 {name}: {error}") from None


def _renamed(theirs: Mapping[str, Tensor], num_layers: int) -> Iterator[tuple[str, Tensor]]:
    """Their names and tensors as ours; queries, keys and values are one product here."""
    yield "positions", theirs["embeddings.position_embedding.weight"]
    for part in ("weight", "bias"):
        yield f"patches.{part}", theirs[f"embeddings.patch_embedding.{part}"]
        for i in range(num_layers):
            old, new = f"encoder.layers.{i}", f"layers.{i}"
            joint = [theirs[f"{old}.self_attn.{which}_proj.{part}"] for which in "qkv"]
            yield f"{new}.query_key_value.{part}", torch.cat(joint)
            yield f"{new}.attended.{part}", theirs[f"{old}.self_attn.out_proj.{part}"]
            yield f"{new}.norm_attention.{part}", theirs[f"{old}.layer_norm1.{part}"]
            yield f"{new}.norm_expand.{part}", theirs[f"{old}.layer_norm2.{part}"]
            yield f"{new}.expand.{part}", theirs[f"{old}.mlp.fc1.{part}"]
            yield f"{new}.contract.{part}", theirs[f"{old}.mlp.fc2.{part}"]
