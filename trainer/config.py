"""What a training run is told: the decoder's shape and the loop's settings, checked on the way in.

`infra.config.load` builds `TrainConfig` from YAML and adds the key to every message.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from infra.layout import Vocabulary
from packing.cost import ModelShape


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder. The defaults are small; Qwen2.5-7B is 3584, 18944, 28, 28, 4, 128,
    (16, 24, 24), 1e6, and loads Qwen's parameter names.
    """

    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 32
    # Frequencies of the axes (t or scale, y, x), fastest first: 2 : 3 : 3 as in Qwen2.5-VL.
    mrope_sections: tuple[int, int, int] = (4, 6, 6)
    # With Qwen's 1e6 the x axis turns by at most 1e6 ** -0.625 = 0.0002 per unit, which a
    # pretrained model copes with but a small one trained from nothing cannot tell apart.
    rope_theta: float = 1e3
    rms_norm_eps: float = 1e-6
    # Choices that the paper leaves open:
    # C of equation 1. 64 puts the cells of the 1024 level's 64 x 64 grid one position apart, which
    # is how Qwen2.5-VL spaces its patches.
    spatial_range: float = 64.0
    # Equation 1 has no text offset: every image has the same coordinates wherever it stands.
    # "follow_text" adds the text position of its <boi> to all axes.
    image_positions: Literal["absolute", "follow_text"] = "absolute"
    # Where text goes on after an image. Equation 1 gives images coordinates of their own, so text
    # counts on ("next"); Qwen2.5-VL goes on behind the image's largest coordinate ("behind").
    text_after_image: Literal["next", "behind"] = "next"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_layers", "num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use at least 1")
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size is {self.hidden_size}: use an even number")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads is {self.num_kv_heads}: it must divide num_heads {self.num_heads}"
            )
        if 2 * sum(self.mrope_sections) != self.head_dim or min(self.mrope_sections) < 1:
            raise ValueError(
                f"mrope_sections {self.mrope_sections} must be positive and add up to half of "
                f"head_dim {self.head_dim}"
            )
        for name in ("rope_theta", "spatial_range", "init_std", "rms_norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: use a positive number")

    def shape(self, vocabulary: Vocabulary) -> ModelShape:
        """What a step of this model costs (`packing.cost`)."""
        return ModelShape(
            hidden=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate=self.intermediate_size,
            vocabulary=vocabulary.size,
        )


@dataclass(frozen=True)
class TrainConfig:
    """One training run over the packs of one folder, in their order."""

    packs: str  # folder with packs.json
    output: str  # log.jsonl and checkpoints/ go here; a run found there is continued
    steps: int
    # Safetensors of the tokenizer's codebook; null: the packs' own, without one random embeddings.
    codebook: str | None = None
    initialise_from: str | None = None  # an exported model, or a Qwen2.5 by hub id or folder
    same_vocabulary: bool = False  # the packs' text ids are that Qwen2.5's, whatever their name
    code_dim: int = 40  # width of the visual embeddings where no codebook says it
    model: ModelConfig = field(default_factory=ModelConfig)
    micro_batches: int = 1  # M: packs per rank and step; a step takes ranks x M packs
    epochs: int = 1  # passes over the packs, at most
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    trainable: Literal["all", "new"] = "all"  # new: `trainer.alignment`, the paper's first stage
    gradient_clip: float = 1.0
    scale_alpha: float = 0.9  # equation 2; the paper uses 0.9 from the 512 level on, 0 is uniform
    zero_stage: Literal[0, 1, 2, 3] = 2
    checkpoint_every: int = 100  # steps; the last step always writes one
    keep_checkpoints: int = 2
    recompute: bool = False  # layers in the backward pass: far less memory for a third more time
    compile: bool = False  # the layers around attention: fewer passes over memory; not for ZeRO-3
    seed: int = 0
    # Read all packs of the run once before its first step, each rank its share: 3 s per GB of it.
    verify_packs: bool = True
    reader_workers: int = 0  # processes that read ahead; 0 reads between the steps
    peak_tflops: float | None = None  # of a rank, in the run's type; null: no MFU in the log
    num_threads: int | None = None  # CPU threads per rank; null: as torch and the environment say

    def __post_init__(self) -> None:
        at_least_1 = ("steps", "micro_batches", "epochs", "checkpoint_every", "keep_checkpoints")
        for name in (*at_least_1, "code_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use at least 1")
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: use a positive number")
        for name in ("warmup_steps", "weight_decay", "scale_alpha", "reader_workers"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: use 0 or more")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile is true: use zero_stage 0 to 2 with it, or leave it out")
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}: use less than the steps, {self.steps}"
            )
        if "://" in self.output:
            raise ValueError(f"output is {self.output}: use a local (or mounted) folder")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}: use numbers in [0, 1)")
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads is {self.num_threads}: use at least 1, or null")
        if self.peak_tflops is not None and not 0 < self.peak_tflops < math.inf:
            raise ValueError(f"peak_tflops is {self.peak_tflops}: use a positive number, or null")
