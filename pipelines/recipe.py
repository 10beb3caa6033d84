"""A recipe: one YAML file that says a whole job, from raw pictures to trained steps.

    dataset: photos
    workspace: workspace/photos
    sources: [{name: web, kind: webdataset, path: s3://bucket/web}]
    decide: {rules: [{name: small, keep: "least(width, height) >= 256"}]}

Every section is a frozen dataclass and every operator is its own configuration.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from infra.storage import Storage
from operators.aesthetics import Aesthetics
from operators.caption import Caption
from operators.clarity import Clarity
from operators.perceptual_hash import PerceptualHash
from operators.probe import Probe
from operators.similarity import CaptionSimilarity
from operators.topics import Topics
from packing.plan import Packing
from pipelines.decide import Decide
from pipelines.source import Source
from tokenize_offline.extract_codes import ExtractCodes


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The workers of a phase. Each worker is a process with its own models."""

    workers: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch_rows: int = 64
    unit_rows: int = 256

    def __post_init__(self) -> None:
        for name in ("workers", "batch_rows", "unit_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1")
        if self.num_cpus < 0 or self.num_gpus < 0:
            raise ValueError("num_cpus and num_gpus must not be negative")


@dataclass(frozen=True, kw_only=True)
class Cheap:
    """Scores that need no model: every sample gets them."""

    probe: Probe = field(default_factory=Probe)
    perceptual_hash: PerceptualHash = field(default_factory=PerceptualHash)
    clarity: Clarity = field(default_factory=Clarity)
    pool: Pool = field(default_factory=Pool)


@dataclass(frozen=True, kw_only=True)
class Models:
    """Scores by models: for samples that the gate lets through."""

    gate: str | None = None
    aesthetics: Aesthetics | None = field(default_factory=Aesthetics)
    topics: Topics | None = field(default_factory=Topics)
    similarity: CaptionSimilarity | None = None
    pool: Pool = field(default_factory=Pool)


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Where captions come from: given with the samples, or a vision-language endpoint."""

    operator: Caption = field(default_factory=Caption)
    pool: Pool = field(default_factory=Pool)


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Text-to-image documents at the recipe's highest level."""

    level: int = 256
    jpeg_quality: int = 95
    pool: Pool = field(default_factory=Pool)

    def __post_init__(self) -> None:
        if self.level not in (256, 512, 1024):
            raise ValueError(f"level is {self.level}: choose 256, 512 or 1024")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality is {self.jpeg_quality}, expected 1 to 100")


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """Text ids and visual codes of the documents, at their level or below it."""

    operator: ExtractCodes = field(default_factory=ExtractCodes)
    pool: Pool = field(default_factory=lambda: Pool(unit_rows=64, batch_rows=16))


@dataclass(frozen=True, kw_only=True)
class Pack:
    """How documents are packed, and for which model's cost."""

    packing: Packing = field(default_factory=Packing)
    cost_model: Literal["qwen2.5-7b", "trained"] = "qwen2.5-7b"
    checkpointing: bool = True


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All phases of one dataset. ``workspace`` is a folder or an ``s3://`` prefix."""

    dataset: str
    workspace: str
    sources: tuple[Source, ...]
    cheap: Cheap = field(default_factory=Cheap)
    models: Models | None = field(default_factory=Models)
    decide: Decide = field(default_factory=Decide)
    captions: Captions = field(default_factory=Captions)
    documents: Documents = field(default_factory=Documents)
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
        if self.tokenize and self.tokenize.operator.level > self.documents.level:
            raise ValueError(
                f"tokenize.operator.level is {self.tokenize.operator.level}, the documents hold "
                f"pictures of level {self.documents.level}: raise documents.level"
            )
        if self.pack and self.pack.cost_model == "trained" and self.train is None:
            raise ValueError("pack.cost_model is `trained`: add a `train` section")

    @property
    def tokens_name(self) -> str:
        """Name of the tokens and packs: the dataset and its level."""
        level = self.tokenize.operator.level if self.tokenize else self.documents.level
        return f"{self.dataset}-{level}"

    def pools(self, curate_only: bool = False) -> dict[str, Pool]:
        """The workers of every phase, by section."""
        sections = ["cheap", "models", "captions", "documents"]
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
