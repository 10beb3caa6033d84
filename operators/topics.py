"""What a picture is of: zero-shot topics, for balancing a dataset."""

import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open
from torch import Tensor, nn

from infra.pixels import Pixels, pictures_of, resize_crop
from infra.schema import column
from operators import mobilenets, open_clip_model
from operators.fixed_batches import run_fixed

OTHER = "other"
CARRIED = mobilenets.WEIGHTS / "conse_minilm_fp16.safetensors"
_CLASSIFIER = "efficientnet_lite0_fp16.safetensors"
_NUM_LABELS = 10  # T of the ConSE paper, which found 10 best
_FLOORS = {"conse": 0.2, "open_clip": 0.0}

# The carried topics, each with the prompts whose mean embedding stands for it.
_PROMPTS = {
    "landscape": "landscape, mountain, sea coast, lake, natural scenery, sky",
    "human": "person, people, man, woman, portrait, clothing, dress, hat",
    "animal": "animal, wild animal, pet, dog, bird, insect",
    "plant": "plant, flower, tree, garden, mushroom",
    "food": "food, meal, fruit, vegetable, drink, dessert",
    "vehicle": "vehicle, car, bus, train, aircraft, boat, bicycle",
    "building": "building, architecture, house, church, tower, bridge, monument, city street",
    "indoor": "room, furniture, kitchen, living room, bathroom, shop interior",
    "sport": "sport, athlete, ball, ball game, sports equipment, gymnastics",
    "object": "object, tool, device, musical instrument, container",
    "text": "text, document, menu, website, crossword puzzle, street sign, handwriting, book",
}
TOPICS = {topic: tuple(prompts.split(", ")) for topic, prompts in _PROMPTS.items()}


@dataclass(frozen=True)
class Topics:
    """Write ``topic``, the best of ``topics`` (all known ones if empty), and its ``topic_score``.

    A best score below ``floor`` makes the topic ``other``; the score stays that of the best topic.

    Backend ``conse`` (the default, its weights come with the project): the ten best ImageNet labels
    of EfficientNet-Lite0, the convex combination of their sentence embeddings, and its cosine to
    each topic's embedding (M. Norouzi et al., "Zero-shot learning by convex combination of semantic
    embeddings", arXiv:1312.5650). The score is that cosine times the ten labels' share of the
    classifier's probability, -1..1: low where the classifier saw nothing it knows. Floor: 0.2. The
    topics are those of the file ``embeddings`` (the carried one if empty); to make another see
    operators/weights/make_embeddings.py. ImageNet has no people: ``human`` is found by clothes.

    Backend ``open_clip``: any CLIP or SigLIP model (``model`` and ``pretrained``, see
    `open_clip_model`), any topics; each prompt of a known topic, or the name of another, is put
    into each of ``templates``. The score is the model's probability: softmax over the topics for
    CLIP, sigmoid for SigLIP, 0..1. Floor: 0, because each model has its own level.

    Raises ValueError for unknown topics and settings that name no loadable weights.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            column("topic", pa.string(), "", "best topic, or `other` below the floor"),
            column("topic_score", pa.float32(), "-1..1", "how well the best topic fits"),
        ],
    )
    version: ClassVar[int] = 1

    backend: Literal["conse", "open_clip"] = "conse"
    topics: tuple[str, ...] = ()
    floor: float | None = None
    embeddings: str = ""
    model: str = ""
    pretrained: str = ""
    templates: tuple[str, ...] = ("a photo of {}.", "an image showing {}.")
    batch_rows: int = 16
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.backend not in ("conse", "open_clip"):
            raise ValueError(f"backend is {self.backend!r}: choose conse or open_clip")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows is {self.batch_rows}: choose at least 1")
        if self.floor is not None and not -1 <= self.floor <= 1:
            raise ValueError(f"floor is {self.floor}: choose a score between -1 and 1")
        if self.backend == "open_clip":
            if not self.model:
                raise ValueError(
                    "backend open_clip needs `model`: see operators/open_clip_model.py"
                )
            for template in self.templates:
                if "{}" not in template:
                    raise ValueError(f"template {template!r} has no place {{}} for the topic")
        else:
            self._check_known()

    @property
    def identity(self) -> str:
        """Hash or published name of the weights the scores depend on."""
        if self.backend == "open_clip":
            return open_clip_model.identity(self.model, self.pretrained)
        classifier = mobilenets.file_hash(mobilenets.WEIGHTS / _CLASSIFIER)
        return f"{classifier} {mobilenets.file_hash(self._embeddings_file)}"

    def __call__(self, batch: pa.Table) -> pa.Table:
        score = self._score_conse if self.backend == "conse" else self._score_open_clip
        prepare = _as_classifier_input if self.backend == "conse" else self._prepare_open_clip
        outputs = run_fixed(pictures_of(batch), prepare, score, self.batch_rows, self.device)
        floor = _FLOORS[self.backend] if self.floor is None else self.floor
        topics: list[str | None] = []
        scores: list[float | None] = []
        for output in outputs:
            best = None if output is None else int(output.argmax())
            value = None if output is None else float(output[best])
            scores.append(value)
            if value is None or best is None:
                topics.append(None)
            else:
                topics.append(self._names[best] if value >= floor else OTHER)
        batch = batch.append_column(self.writes.field("topic"), pa.array(topics, pa.string()))
        return batch.append_column(self.writes.field("topic_score"), pa.array(scores, pa.float32()))

    def __getstate__(self) -> dict[str, Any]:
        # Loaded networks stay in this process: a copy loads its own.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def _embeddings_file(self) -> Path:
        return Path(self.embeddings) if self.embeddings else CARRIED

    def _check_known(self) -> None:
        if not self._embeddings_file.is_file():
            raise ValueError(f"embeddings {self.embeddings} does not exist: check the path")
        known = list(_prompts_in(self._embeddings_file))
        unknown = [topic for topic in self.topics if topic not in known]
        if unknown:
            raise ValueError(
                f"no embedding of topic {', '.join(unknown)}: known are {', '.join(known)}; for "
                "others use backend open_clip, or make operators/weights/make_embeddings.py's file"
            )

    @cached_property
    def _names(self) -> tuple[str, ...]:
        if self.topics:
            return self.topics
        return tuple(TOPICS if self.backend == "open_clip" else _prompts_in(self._embeddings_file))

    @cached_property
    def _conse(self) -> tuple[mobilenets.EfficientNetLite0, Tensor, Tensor]:
        with safe_open(self._embeddings_file, "pt") as file:
            labels = file.get_tensor("labels").float()
            topics = file.get_tensor("topics").float()
        known = list(_prompts_in(self._embeddings_file))
        rows = [known.index(name) for name in self._names]
        network = mobilenets.load(mobilenets.EfficientNetLite0(), _CLASSIFIER, self.device)
        return network, labels.to(self.device), topics[rows].to(self.device)

    @cached_property
    def _open_clip(self) -> tuple[open_clip_model.OpenClip, Tensor]:
        model = open_clip_model.load(self.model, self.pretrained, self.device)
        templates = self.templates or ("{}",)
        prompts = [
            [template.format(text) for text in TOPICS.get(name, (name,)) for template in templates]
            for name in self._names
        ]
        return model, model.topic_features(prompts)

    def _score_conse(self, images: Tensor) -> Tensor:
        network, labels, topics = self._conse
        shares, best = network(images).softmax(-1).topk(_NUM_LABELS)
        combination = (shares[..., None] * labels[best]).sum(1)
        return nn.functional.normalize(combination, dim=-1) @ topics.T * shares.sum(1, keepdim=True)

    def _prepare_open_clip(self, rgb: Pixels) -> Tensor:
        return self._open_clip[0].prepare(rgb)

    def _score_open_clip(self, images: Tensor) -> Tensor:
        model, topics = self._open_clip
        return model.probabilities(model.encode_images(images) @ topics.T)


def _prompts_in(file: Path) -> dict[str, list[str]]:
    with safe_open(file, "pt") as opened:
        prompts: dict[str, list[str]] = json.loads(opened.metadata()["topics"])
    return prompts


def _as_classifier_input(rgb: Pixels) -> Tensor:
    square, _ = resize_crop(rgb, 224, 224)
    return (torch.from_numpy(square.astype(np.float32)).permute(2, 0, 1) - 127.0) / 128.0
