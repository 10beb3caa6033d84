"""Image and text towers of CLIP and SigLIP models, loaded by open_clip.

A model is named as open_clip names it: an architecture (``ViT-L-14-quickgelu``) with ``pretrained``
= a published tag (``openai``) or the path of a weights file; or, without ``pretrained``,
``hf-hub:organisation/model`` or ``local-dir:/path`` (a folder with ``open_clip_config.json`` and
the weights beside it).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from infra.pixels import Pixels
from operators.mobilenets import file_hash

_LOCAL = "local-dir:"
_HUB = "hf-hub:"


@dataclass(frozen=True)
class OpenClip:
    """A loaded model, frozen, with its own preprocessing and tokenizer.

    Features are normalised in fp32, whatever ``dtype`` the towers compute in.
    """

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    device: str
    dtype: torch.dtype = torch.float32

    def prepare(self, rgb: Pixels) -> Tensor:
        """One picture as the image tower's input [3, h, w], scaled as the model was trained."""
        return self.preprocess(Image.fromarray(np.asarray(rgb)))

    def encode_images(self, images: Tensor) -> Tensor:
        """L2-normalised features [n, d] of prepared images [n, 3, h, w]."""
        features: Tensor = self.model.encode_image(images.to(self.dtype))  # type: ignore[operator]
        return nn.functional.normalize(features.float(), dim=-1)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """L2-normalised features [n, d] of token ids [n, context]."""
        features: Tensor = self.model.encode_text(tokens)  # type: ignore[operator]
        return nn.functional.normalize(features.float(), dim=-1)

    def prompt_features(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        """One L2-normalised feature per prompt [prompts, d]: the mean over its wordings."""
        means = []
        with torch.inference_mode():
            for texts in prompts:
                tokens = self.tokenize(list(texts)).to(self.device)
                means.append(self.encode_tokens(tokens).mean(0))
            return nn.functional.normalize(torch.stack(means), dim=-1)

    def probabilities(self, cosines: Tensor) -> Tensor:
        """Probabilities of texts [n, texts] by the model's own loss: sigmoid or softmax.

        SigLIP models (arXiv:2303.15343) have a bias and judge each text on its own; CLIP models
        (arXiv:2103.00020) share out 1 among the texts given.
        """
        logits = cosines * self.model.logit_scale.float().exp()  # type: ignore[operator]
        if self.model.logit_bias is None:
            return logits.softmax(-1)
        return (logits + self.model.logit_bias.float()).sigmoid()  # type: ignore[operator]


def load(model: str, pretrained: str, device: str = "cpu", precision: str = "fp32") -> OpenClip:
    """Load a model by name, once per process: those who ask again get the same one.

    ``precision`` is fp32 or bf16. Raises ValueError where name, tag, file or folder is not found.
    """
    # The identity refuses what cannot be loaded, in plain words, and tells changed files apart.
    return _load(model, pretrained, device, precision, identity(model, pretrained))


@lru_cache(maxsize=4)
def _load(model: str, pretrained: str, device: str, precision: str, _identity: str) -> OpenClip:
    import open_clip

    network, preprocess = open_clip.create_model_from_pretrained(
        model, pretrained or None, precision=precision, device=device
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokenize = open_clip.get_tokenizer(model)
    return OpenClip(network.eval().requires_grad_(False), preprocess, tokenize, device, dtype)


def identity(model: str, pretrained: str) -> str:
    """What the scores depend on: the hash of local weights, or the published name of remote ones.

    Does not load the model. Raises ValueError for a model that cannot be found.
    """
    if model.startswith(_LOCAL):
        folder = Path(model.removeprefix(_LOCAL))
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(f"{folder} holds no open_clip_config.json: check `model`")
        files = [p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".bin")]
        return " ".join(f"{path.name}:{_hash(path)}" for path in sorted(files))
    if model.startswith(_HUB):
        return model
    import open_clip

    if model not in open_clip.list_models():
        raise ValueError(
            f"open_clip knows no model {model!r}: name one of open_clip.list_models(), "
            f"or {_HUB}organisation/model, or {_LOCAL}/path"
        )
    if Path(pretrained).is_file():
        return f"{model}:{_hash(Path(pretrained))}"
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained not in tags:
        raise ValueError(
            f"pretrained {pretrained!r} is neither a file nor a tag of {model}: "
            f"choose one of {', '.join(tags) or 'no tags, so a file'}"
        )
    return f"{model}:{pretrained}"


def _hash(path: Path) -> str:
    # Fingerprints ask again and again, and weights are gigabytes.
    status = path.stat()
    return _hash_once(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _hash_once(path: Path, _mtime_ns: int, _size: int) -> str:
    return file_hash(path)
