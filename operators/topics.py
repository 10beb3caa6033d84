"""What a picture is of: zero-shot topics, for balancing a dataset."""

import json
from dataclasses import dataclass, field, fields
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
from operators import mobilenets
from operators.fixed_batches import run_fixed
from operators.image_features import ImageFeatures, features_of
from operators.open_clip_model import OpenClip

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
    `open_clip_model`; SigLIP 2: ``ViT-SO400M-16-SigLIP2-384`` and ``webli``), any topics.
    ``prompts`` names topics of your own with the things that stand for each, for example
    ``{sky: [sky, clouds]}``, and says others for a known one; a topic without prompts stands for
    itself. A prompt's feature is the mean of its wordings by ``templates``; a topic's score is the
    model's probability of its best prompt: sigmoid for SigLIP, for CLIP the softmax over the
    topics, 0..1. Floor: 0, because each model has its own level: look at the scores of pictures
    that show none of the topics. The pictures' features are read from the column of ``tower``, an
    operator to run before this one.

    Raises ValueError for unknown topics, and for settings that name no loadable weights.
    """

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
    precision: Literal["fp32", "bf16"] = "fp32"  # of the towers
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)

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
            for topic, texts in self.prompts.items():
                if not texts or topic == OTHER:
                    raise ValueError(
                        f"prompts of topic {topic!r} are {list(texts)}: give at least one, and "
                        f"leave `{OTHER}` to the floor"
                    )
        elif self.prompts:
            raise ValueError(
                "backend conse has no text encoder for `prompts`: use backend open_clip, or make "
                "an `embeddings` file with operators/weights/make_embeddings.py"
            )
        else:
            self._check_known()

    @property
    def tower(self) -> ImageFeatures | None:
        """The image tower whose features are compared with the prompts'."""
        if self.backend == "conse":
            return None
        return ImageFeatures(
            self.model, self.pretrained, self.batch_rows, self.device, self.precision
        )

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.tower.column if self.tower else "image", "error")

    @property
    def identity(self) -> str:
        """Hash or published name of the weights the scores depend on."""
        if self.tower is not None:
            return self.tower.identity
        classifier = mobilenets.file_hash(mobilenets.WEIGHTS / _CLASSIFIER)
        return f"{classifier} {mobilenets.file_hash(self._embeddings_file)}"

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows, device = self.batch_rows, self.device
        if self.tower is None:
            pictures = pictures_of(batch)
            outputs = run_fixed(pictures, _as_classifier_input, self._score_conse, rows, device)
        else:
            features = features_of(batch, self.tower)
            outputs = run_fixed(features, torch.tensor, self._score_features, rows, device)
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
                topics.append(self.names[best] if value >= floor else OTHER)
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
    def names(self) -> tuple[str, ...]:
        if self.topics:
            return self.topics
        if self.backend == "conse":
            return tuple(_prompts_in(self._embeddings_file))
        return tuple(self.prompts or TOPICS)

    @cached_property
    def _conse(self) -> tuple[mobilenets.EfficientNetLite0, Tensor, Tensor]:
        with safe_open(self._embeddings_file, "pt") as file:
            labels = file.get_tensor("labels").float()
            topics = file.get_tensor("topics").float()
        known = list(_prompts_in(self._embeddings_file))
        rows = [known.index(name) for name in self.names]
        network = mobilenets.load(mobilenets.EfficientNetLite0(), _CLASSIFIER, self.device)
        return network, labels.to(self.device), topics[rows].to(self.device)

    @cached_property
    def _open_clip(self) -> tuple[OpenClip, Tensor, list[int]]:
        """The model, the features of all prompts, and how many of them each topic has."""
        assert self.tower is not None
        model = self.tower.open_clip
        texts = [self.prompts.get(name, TOPICS.get(name, (name,))) for name in self.names]
        wordings = [
            [template.format(text) for template in self.templates or ("{}",)]
            for of_topic in texts
            for text in of_topic
        ]
        return model, model.prompt_features(wordings), [len(of_topic) for of_topic in texts]

    def _score_conse(self, images: Tensor) -> Tensor:
        network, labels, topics = self._conse
        shares, best = network(images).softmax(-1).topk(_NUM_LABELS)
        combination = (shares[..., None] * labels[best]).sum(1)
        return nn.functional.normalize(combination, dim=-1) @ topics.T * shares.sum(1, keepdim=True)

    def _score_features(self, features: Tensor) -> Tensor:
        model, prompts, per_topic = self._open_clip
        of_topics = torch.split(features @ prompts.T, per_topic, dim=1)
        return model.probabilities(torch.stack([of.amax(1) for of in of_topics], dim=1))


def _prompts_in(file: Path) -> dict[str, list[str]]:
    with safe_open(file, "pt") as opened:
        prompts: dict[str, list[str]] = json.loads(opened.metadata()["topics"])
    return prompts


def _as_classifier_input(rgb: Pixels) -> Tensor:
    square, _ = resize_crop(rgb, 224, 224)
    return (torch.from_numpy(square.astype(np.float32)).permute(2, 0, 1) - 127.0) / 128.0
