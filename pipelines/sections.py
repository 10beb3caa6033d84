"""The sections of a recipe: what each phase does, and by how many workers.

Every section is a frozen dataclass and every operator is its own configuration.
"""

from dataclasses import dataclass, field
from typing import Literal

from operators.aesthetics import Aesthetics
from operators.borders import Borders
from operators.caption import Caption
from operators.clarity import Clarity
from operators.clip_probe import ClipProbe
from operators.colour import Colour
from operators.flow import Flow
from operators.image_embedding import ImageEmbedding
from operators.image_text import ImageText
from operators.language import Language
from operators.motion import Motion
from operators.motion_classes import MotionRule
from operators.nsfw import Nsfw
from operators.perceptual_hash import PerceptualHash
from operators.probe import Probe
from operators.shots import Shots
from operators.similarity import CaptionSimilarity
from operators.text_in_image import TextInImage
from operators.topics import Topics
from operators.transitions import Transitions
from operators.watermark import Watermark
from operators.web_images import WebImages
from packing.plan import Packing
from packing.slices import Slicing
from pipelines.cost_model import check_cost_model
from pipelines.phase import Operator, Stage
from pipelines.rules import Rule
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

    def stage(self, *operators: Operator) -> Stage:
        """These operators, run by these workers."""
        return Stage(operators, self.workers, self.num_cpus, self.num_gpus, self.batch_rows)


@dataclass(frozen=True, kw_only=True)
class Cheap:
    """Scores that need no model: every sample gets them."""

    probe: Probe = field(default_factory=Probe)
    perceptual_hash: PerceptualHash = field(default_factory=PerceptualHash)
    clarity: Clarity = field(default_factory=Clarity)
    borders: Borders = field(default_factory=Borders)
    colour: Colour = field(default_factory=Colour)
    pool: Pool = field(default_factory=Pool)


@dataclass(frozen=True, kw_only=True)
class Models:
    """Scores by models: for samples that the gate lets through."""

    gate: str | None = None
    aesthetics: Aesthetics | None = field(default_factory=Aesthetics)
    topics: Topics | None = field(default_factory=Topics)
    similarity: CaptionSimilarity | None = None
    nsfw: Nsfw | None = None
    watermark: Watermark | None = None
    pool: Pool = field(default_factory=Pool)

    def __post_init__(self) -> None:
        if self.similarity is not None and self.similarity.of != "caption":
            raise ValueError("models.similarity is of given captions: say captions.similarity")


@dataclass(frozen=True, kw_only=True)
class Ocr:
    """Text in the pictures: dear, so for samples that its gate lets through."""

    gate: str | None = None
    operator: TextInImage = field(default_factory=TextInImage)
    pool: Pool = field(default_factory=Pool)


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """A vector per picture, for semantic duplicates; rules cannot name it."""

    gate: str | None = None
    operator: ImageEmbedding = field(default_factory=ImageEmbedding)
    pool: Pool = field(default_factory=Pool)


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """How many engines run and how they are fed; what they run stands in the `Caption`.

    ``engines``: copies of the model, each on tensor_parallel_size x pipeline_parallel_size GPUs of
    ``engine_kwargs``. ``cpu_workers``: processes of each of the stages in front of the engine (make
    questions, prepare pictures, fill in the chat template, tokenize), three CPUs together.
    ``batch_rows`` x ``batches`` questions are inside an engine at a time.
    """

    engines: int = 1
    batch_rows: int = 32
    batches: int = 8
    cpu_workers: int = 1
    accelerator_type: str | None = None

    def __post_init__(self) -> None:
        for name in ("engines", "batch_rows", "batches", "cpu_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1")


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Where captions come from: given with the samples, an endpoint, or vLLM in the cluster.

    ``similarity`` scores the new text as ``text_similarity``; ``rules`` judge captioned samples by
    it, by ``checks``, ``style`` and by all other scores.
    """

    operator: Caption = field(default_factory=Caption)
    similarity: CaptionSimilarity | None = None
    rules: tuple[Rule, ...] = ()
    vllm: Vllm = field(default_factory=Vllm)
    pool: Pool = field(default_factory=Pool)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """How texts, instructions and chats become documents, where the sources hold them."""

    language: Language | None = field(default_factory=Language)
    loss_on: Literal["all", "responses"] = "all"
    pool: Pool = field(default_factory=lambda: Pool(unit_rows=4096, batch_rows=256))


@dataclass(frozen=True, kw_only=True)
class Clips:
    """How clips are looked at for their scores, where the sources hold videos.

    ``shots`` cuts the videos of every source where the picture changes; without it, a file, or a
    row of a table of videos, is a clip. ``given`` says which scores (``clarity``, ``motion``,
    ``aesthetic``) come with the samples, and under which key of their metadata: these are taken
    where they are numbers, and computed elsewhere.
    """

    shots: Shots | None = None
    probe: ClipProbe = field(default_factory=ClipProbe)
    motion: Motion | None = field(default_factory=Motion)
    given: dict[str, str] = field(default_factory=dict)
    pool: Pool = field(default_factory=lambda: Pool(unit_rows=32, batch_rows=8))

    def __post_init__(self) -> None:
        known = ("clarity", "motion", "aesthetic")
        for name, key in self.given.items():
            if name not in known:
                raise ValueError(f"clips.given names {name!r}: choose among {', '.join(known)}")
            if not key:
                raise ValueError(f"clips.given.{name} is empty: name a key of the metadata")


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Which frames of a clip become pictures of its document (`operators.frame_selection`).

    Candidates are ``every_s`` seconds apart, the paper's 0.5 frames per second (5.4); each comes
    with a partner ``partner_gap_s`` later, on which motion is measured.
    """

    every_s: float = 2.0
    partner_gap_s: float = 0.125
    max_candidates: int = 64
    max_frames: int | None = None
    min_frames: int = 2
    flow: Flow = field(default_factory=Flow)
    rule: MotionRule = field(default_factory=MotionRule)
    limit_s: float = 60.0
    pool: Pool = field(default_factory=lambda: Pool(unit_rows=16, batch_rows=4))


@dataclass(frozen=True, kw_only=True)
class ClipTexts:
    """What a clip's document says: its caption, and what leads from one frame to the next.

    ``rules`` judge captioned clips, as those of `Captions` do.
    """

    operator: Transitions = field(default_factory=Transitions)
    rules: tuple[Rule, ...] = ()
    pool: Pool = field(default_factory=lambda: Pool(unit_rows=64, batch_rows=32))


@dataclass(frozen=True, kw_only=True)
class Web:
    """How web documents are judged: their language, and which of their pictures stay."""

    language: Language | None = field(default_factory=Language)
    images: WebImages = field(default_factory=WebImages)
    pool: Pool = field(default_factory=lambda: Pool(unit_rows=64, batch_rows=8))


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Documents of a picture and its text, at the recipe's highest level (`operators.image_text`).

    ``inversion``: the share of text-to-image documents that become captioning ones; the paper
    (6.7) took 0.1 late in pre-training.
    """

    level: int = 256
    jpeg_quality: int = 95
    task: Literal["t2i", "i2t"] = "t2i"
    inversion: float = 0.0
    inversion_seed: int = 0
    prompts: tuple[str, ...] = ()
    text: tuple[str, ...] = ("{text}",)
    max_cropped: float = 0.5
    pool: Pool = field(default_factory=Pool)

    def __post_init__(self) -> None:
        if not 0 <= self.inversion <= 1:
            raise ValueError(f"inversion is {self.inversion}, expected a share in [0, 1]")
        if self.inversion and self.task != "t2i":
            raise ValueError(f"inversion is {self.inversion}, but only t2i documents turn over")
        _ = self.operator

    @property
    def operator(self) -> ImageText:
        return ImageText(
            self.level, self.jpeg_quality, self.prompts, self.text, max_cropped=self.max_cropped
        )

    @property
    def tasks(self) -> str:
        """What says which documents there are: their ids hold the task."""
        turned = f", {self.inversion} of it turned over, seed {self.inversion_seed}"
        return self.task + (turned if self.inversion else "")


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """Text ids and visual codes of the documents, at their level or below it.

    ``replicas`` tables of them, each with noise of its own, for documents that are packed more than
    once: copies take turns (`pipelines.replicas`).
    """

    operator: ExtractCodes = field(default_factory=ExtractCodes)
    replicas: int = 1
    pool: Pool = field(default_factory=lambda: Pool(unit_rows=64, batch_rows=16))

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas is {self.replicas}: at least 1")


@dataclass(frozen=True, kw_only=True)
class Pack:
    """How documents are packed, and for which model's cost (`pipelines.cost_model`).

    ``copies``: how often every document is packed, times what balancing says of it. The copies are
    spread over all packs, and read from ``tokenize.replicas`` in turn. ``drop_captions``: the share
    of text-to-image documents that lose their prompt, for classifier-free guidance.
    ``split_at_images``: documents above a limit are cut between images instead of being left out.
    """

    packing: Packing = field(default_factory=Packing)
    copies: int = 1
    cost_model: str = "qwen2.5-7b"
    checkpointing: bool = True
    drop_captions: float = 0.1
    split_at_images: bool = False

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"copies is {self.copies}: at least 1")
        check_cost_model(self.cost_model)
        _ = self.slicing

    @property
    def slicing(self) -> Slicing:
        """Which segments of a document are packed."""
        return Slicing(
            drop_captions=self.drop_captions,
            split_at_images=self.split_at_images,
            seed=self.packing.seed,
        )
