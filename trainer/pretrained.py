"""A Qwen2.5 or Qwen2.5-VL as the decoder's start: its text weights, by hub id or folder.

Paper section 3.2.2: the vision tower is replaced by our codes, the vocabulary grows by ``<boi>``,
``<eoi>`` and the codes. Rows that the pretrained tables do not have keep their initialisation.
"""

import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infra.config import ConfigError
from infra.text_vocabulary import QWEN, vocabulary_id
from packing.packs import Facts
from trainer.config import ModelConfig, TrainConfig
from trainer.export import is_exported, load_model, read_facts, stored_tensors
from trainer.model import Decoder

# Checkpoints of a whole vision-language model put the language model under one of these.
_PREFIX = re.compile(r"^(?:model\.language_model\.|language_model\.model\.|model\.)")
_FIELDS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "rms_norm_eps": "rms_norm_eps",
}


def folder_of(source: str) -> Path:
    """The folder itself, or that of a hub id, which is fetched if need be. Raises ConfigError."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["config.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{source} is no folder, and the hub does not give it ({reason}): check the name"
        ) from None


def initialise(model: Decoder, config: TrainConfig, packs: Facts) -> None:
    """Start ``model`` from ``initialise_from``: one of ours, of an earlier stage, or a Qwen2.5.

    Raises ConfigError where that has another tokenizer or vocabulary than the packs, or does not
    fit.
    """
    source = str(config.initialise_from)
    folder = folder_of(source)
    if not is_exported(folder):
        if not config.same_vocabulary:
            _check_vocabulary(source, packs.vocabulary_id)
        # What the weights' shapes do not tell: angles, norms, the cut into heads.
        _check_shape(source, model_config(folder, model.config), model.config)
        load_text_weights(model, folder)
        return
    facts = read_facts(folder)
    for what, ours, theirs in (
        ("tokenizer", facts.tokenizer_id, packs.tokenizer_id),
        ("vocabulary", facts.vocabulary_id, packs.vocabulary_id),
    ):
        if ours != theirs:
            raise ConfigError(f"model {source} is of {what} {ours}, the packs are of {theirs}")
    _check_shape(source, replace(facts.model, init_std=model.config.init_std), model.config)
    if facts.code_dim != model.vision.codebook.shape[1]:
        raise ConfigError(
            f"model {source} has code_dim {facts.code_dim}, this run "
            f"{model.vision.codebook.shape[1]}: set train.code_dim, or name its codebook"
        )
    model.load_state_dict(load_model(folder).state_dict())


def _check_vocabulary(source: str, packs: str) -> None:
    """Rows of one vocabulary under the ids of another would train, and learn nonsense."""
    known = {QWEN}
    with suppress(ConfigError):  # a folder of weights alone has no tokenizer
        known.add(vocabulary_id(source))
    if packs not in known:
        raise ConfigError(
            f"the packs' text ids are of vocabulary {packs}, {source} is not known to have it: "
            "tokenize with the checkpoint's `vocabulary`, or set same_vocabulary: true if you did"
        )


def _check_shape(source: str, theirs: ModelConfig, ours: ModelConfig) -> None:
    differ = [name for name, value in vars(theirs).items() if value != getattr(ours, name)]
    if differ:
        said = ", ".join(f"{name}: {getattr(theirs, name)}" for name in differ)
        raise ConfigError(f"model {source} has {said}: set train.model to this")


def model_config(folder: str | Path, choices: ModelConfig | None = None) -> ModelConfig:
    """The decoder's shape that fits the checkpoint; what it leaves open is as in ``choices``.

    Raises ConfigError for another architecture.
    """
    choices = choices or ModelConfig()
    path = Path(folder) / "config.json"
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable: {error}") from None
    text = whole.get("text_config") or whole
    if not str(whole.get("model_type", "")).startswith("qwen2"):
        raise ConfigError(f"{path} is of {whole.get('model_type')}: name a Qwen2.5 or Qwen2.5-VL")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    heads = text["num_attention_heads"]
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    # Text alone stands at (t, t, t), where any sections that add up make no difference.
    sections = rope.get("mrope_section") or choices.mrope_sections
    if 2 * sum(sections) != head_dim:
        first, second = head_dim // 8, 3 * head_dim // 16
        sections = (first, second, head_dim // 2 - first - second)
    theta = rope.get("rope_theta") or text.get("rope_theta") or 1e6
    sizes: dict[str, Any] = {ours: text[theirs] for theirs, ours in _FIELDS.items()}
    return replace(
        choices,
        **sizes,
        head_dim=head_dim,
        mrope_sections=tuple(sections),
        rope_theta=float(theta),
    )


@torch.no_grad()
def load_text_weights(model: Decoder, folder: str | Path) -> None:
    """Copy the checkpoint's language model into ``model``, one tensor at a time.

    A head that is tied to the embeddings becomes one of its own. Raises ConfigError where shapes
    differ, the checkpoint has more text rows than the vocabulary, or lacks a parameter.
    """
    stored = {}
    for name, read in stored_tensors(folder).items():
        if not name.startswith(("visual.", "model.visual.")):
            stored[_PREFIX.sub("", name)] = read
    stored.setdefault("lm_head.weight", stored.get("embed_tokens.weight"))
    text_rows = model.vocabulary.text_size
    for name, parameter in model.named_parameters():
        if name.startswith("vision.") or name == "length_gain":
            continue
        read = stored.get(name)
        if read is None:
            raise ConfigError(f"{folder} has no {name}: name a Qwen2.5 or Qwen2.5-VL checkpoint")
        value = read()
        if name in ("embed_tokens.weight", "lm_head.weight"):
            _copy_rows(parameter, value, text_rows, f"{folder}: {name}")
        elif value.shape != parameter.shape:
            raise ConfigError(
                f"{folder}: {name} is {list(value.shape)}, train.model makes it "
                f"{list(parameter.shape)}: set train.model to the checkpoint's sizes"
            )
        else:
            parameter.copy_(value)


def _copy_rows(table: Tensor, value: Tensor, text_rows: int, what: str) -> None:
    if value.shape[1:] != table.shape[1:]:
        raise ConfigError(
            f"{what} is {list(value.shape)}, train.model makes it {list(table.shape)}: set "
            "train.model to the checkpoint's sizes"
        )
    if len(value) > text_rows:
        raise ConfigError(
            f"{what} has {len(value)} rows, the packs' text vocabulary {text_rows}: tokenize with "
            "the checkpoint's own text tokenizer"
        )
    table[: len(value)] = value
