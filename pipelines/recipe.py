"""A recipe: one YAML file that says a whole job, from raw pictures to trained steps.

    dataset: photos
    workspace: workspace/photos
    sources: [{name: web, kind: webdataset, path: s3://bucket/web}]
    decide: {rules: [{name: small, keep: "least(width, height) >= 256"}]}

Its sections are those of `pipelines.sections`.
"""

import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from infra.storage import Storage
from pipelines.decide import Decide
from pipelines.duplicates import Duplicates
from pipelines.sections import (
    Captions,
    Cheap,
    Clips,
    ClipTexts,
    Documents,
    Embeddings,
    Frames,
    Models,
    Ocr,
    Pack,
    Pool,
    Texts,
    Tokenize,
    Web,
)
from pipelines.source import Source

_WORDS = {"image": "pictures", "text": "texts", "video": "videos", "interleaved": "web documents"}

# Sections that only some media have; the others are for all.
_MEDIA_OF = {
    "cheap": ("image", "video"),
    "models": ("image", "video"),
    "ocr": ("image",),
    "embeddings": ("image",),
    "captions": ("image",),
    "documents": ("image", "video", "interleaved"),
    "text": ("text",),
    "clips": ("video",),
    "frames": ("video",),
    "transitions": ("video",),
    "web": ("interleaved",),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All phases of one dataset. ``workspace`` is a folder or an ``s3://`` prefix."""

    dataset: str
    workspace: str
    sources: tuple[Source, ...]
    cheap: Cheap = field(default_factory=Cheap)
    models: Models | None = field(default_factory=Models)
    ocr: Ocr | None = None
    embeddings: Embeddings | None = None
    duplicates: Duplicates | None = None
    decide: Decide = field(default_factory=Decide)
    captions: Captions = field(default_factory=Captions)
    documents: Documents = field(default_factory=Documents)
    text: Texts = field(default_factory=Texts)
    clips: Clips = field(default_factory=Clips)
    frames: Frames = field(default_factory=Frames)
    transitions: ClipTexts = field(default_factory=ClipTexts)
    web: Web = field(default_factory=Web)
    tokenize: Tokenize | None = None
    pack: Pack | None = None
    train: dict[str, Any] | None = None  # trainer.config.TrainConfig without `packs`

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", self.dataset):
            raise ValueError(f"dataset {self.dataset!r}: use letters, digits, `_`, `.` and `-`")
        names = [source.name for source in self.sources]
        if not names:
            raise ValueError("sources is empty: name at least one")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"source name `{name}` stands twice: ids would repeat")
        pictures = bool(self.sources) and not self.holds_texts
        if pictures and self.tokenize and self.tokenize.operator.level > self.documents.level:
            raise ValueError(
                f"tokenize.operator.level is {self.tokenize.operator.level}, the documents hold "
                f"pictures of level {self.documents.level}: raise documents.level"
            )
        replicas = self.tokenize.replicas if self.tokenize else 1
        if replicas > 1 and self.holds_texts:
            raise ValueError(f"tokenize.replicas is {replicas}: texts have no noise, use 1")
        if replicas > 1 and (noiseless := self._without_noise()):
            raise ValueError(
                f"tokenize.replicas is {replicas}, but {noiseless}, so that all would be equal: "
                "raise it, or leave replicas at 1"
            )
        if replicas > 1 and self.pack and self.pack.copies == 1 and self.decide.balance is None:
            raise ValueError(
                f"tokenize.replicas is {replicas}, but every document is packed once: set "
                f"pack.copies to {replicas}, or leave replicas at 1"
            )
        if self.pack and self.pack.cost_model == "trained" and self.train is None:
            raise ValueError("pack.cost_model is `trained`: add a `train` section")
        if len({source.media for source in self.sources}) > 1:
            held = dict.fromkeys(_WORDS[str(source.media)] for source in self.sources)
            raise ValueError(
                f"sources hold {' and '.join(sorted(held))}: give each kind a recipe of its own"
            )
        if self.duplicates and self.duplicates.semantic and self.embeddings is None:
            raise ValueError("duplicates.semantic compares embeddings: add `embeddings: {}`")
        self._check_sections()

    def _check_sections(self) -> None:
        """Sections are for the media that there are; raises ValueError."""
        if self.media == "video":
            self._check_clips()
        for section in (one for one in fields(self) if one.name in _MEDIA_OF):
            value, media = getattr(self, section.name), _MEDIA_OF[section.name]
            default = section.default
            if section.default_factory is not MISSING:
                default = section.default_factory()
            if self.media not in media and value is not None and value != default:
                served = " and ".join(_WORDS[one] for one in media)
                raise ValueError(
                    f"`{section.name}` is for {served}, the sources are {_WORDS[self.media]}: "
                    "remove it"
                )

    def _check_clips(self) -> None:
        """What a recipe of videos says has an effect; raises ValueError."""
        models = self.models
        computed = {
            "motion": self.clips.motion is not None,
            "aesthetic": models is not None and models.aesthetics is not None,
        }
        for score, there in computed.items():
            if score in self.clips.given and not there:
                section = "clips.motion" if score == "motion" else "models.aesthetics"
                raise ValueError(
                    f"clips.given.{score} stands in for what {section} computes, which is null: "
                    "remove that null"
                )
        if models is not None and models.similarity is not None:
            raise ValueError("models.similarity is of pictures, the sources are videos: remove it")
        own, usual = self.documents, Documents()
        for name in ("task", "inversion", "prompts", "text"):
            if getattr(own, name) != getattr(usual, name):
                raise ValueError(
                    f"documents.{name} is for pictures, clips become interleaved documents: "
                    "remove it"
                )

    def _without_noise(self) -> str:
        """Which settings of ``tokenize.operator`` leave its codes without noise; "" if none do."""
        assert self.tokenize is not None
        operator, inversion = self.tokenize.operator, self.documents.inversion
        # Targets are the pictures of t2i documents, conditions those of i2t ones.
        rates = []
        if self.documents.task == "t2i" and inversion < 1:
            rates.append(("rate", operator.rate))
        if self.documents.task == "i2t" or inversion > 0:
            rates.append(("condition_rate", operator.condition_rate))
        where = "tokenize.operator"
        if operator.top_k == 1:
            return f"{where}.top_k is 1"
        if any(rate for _, rate in rates):
            return ""
        return " and ".join(f"{where}.{name} is 0" for name, _ in rates)

    @property
    def media(self) -> str:
        """What the sources hold: image, text, video or interleaved."""
        return str(self.sources[0].media)

    @property
    def holds_texts(self) -> bool:
        """Whether the sources are texts, and not pictures."""
        return self.media == "text"

    @property
    def secrets(self) -> tuple[str, ...]:
        """The environment variables whose values workers need: keys of endpoints."""
        asked = self.transitions.operator if self.media == "video" else self.captions.operator
        return (asked.api_key_env,) if asked.api_key_env else ()

    @property
    def tokens_name(self) -> str:
        """Name of the tokens and packs: the dataset and its level."""
        level = self.tokenize.operator.level if self.tokenize else self.documents.level
        return f"{self.dataset}-{level}"

    def pools(self, curate_only: bool = False) -> dict[str, Pool]:
        """The workers of every phase, by section."""
        sections = [one.name for one in fields(self) if self.media in _MEDIA_OF.get(one.name, ())]
        if not curate_only:
            sections.append("tokenize")
        found = {name: getattr(self, name) for name in sections}
        return {name: section.pool for name, section in found.items() if section is not None}

    @property
    def storage(self) -> Storage:
        return Storage(self.workspace)


def recipe_path(name: str) -> Path:
    """The path itself, or one of our recipes by name: ``demo`` is pipelines/recipes/demo.yaml."""
    path = Path(name)
    ours = Path(__file__).parent / "recipes" / f"{name}.yaml"
    return ours if not path.exists() and ours.exists() else path
