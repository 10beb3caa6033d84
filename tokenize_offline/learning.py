"""How a tokenizer is trained: the ``learning`` section of the recipe.

The defaults are those of a small tokenizer, for one CPU core; every option beyond it is off.
"""

from dataclasses import dataclass, field

from infra.config import ConfigError
from tokenize_offline.adversarial import AdversarialSettings
from tokenize_offline.perceptual import PerceptualSettings

_MOST_PICTURES = 4_096  # of a pass, and passes of a step: beyond it somebody mistyped


@dataclass(frozen=True)
class Learning:
    """Steps, batches, rates and weights of the losses; the picture's log error counts 1."""

    branch_steps: int = 800
    joint_steps: int = 2_200
    decoder_steps: int = 600
    # Pictures of one process in one pass at level 256. A pass at level 512 has a quarter of them
    # and one at 1024 a sixteenth, but at least one. A step takes processes x accumulation passes.
    batch_size: int = 4
    gradient_accumulation: int = 1  # passes of each process in a step
    level_512_share: float = 0.15  # of the steps
    level_1024_share: float = 0.0
    learning_rate: float = 1e-3  # in stage 1; half of it later
    semantic_learning_rate_scale: float = 1.0  # of a pretrained semantic tower's, against the rest
    warmup_steps: int = 100  # in every stage
    feature_noise: float = 0.45  # standard deviation, stage 1
    semantic_weight: float = 1.0  # of 1 - cosine to the teacher
    codebook_weight: float = 1.0
    commit_weight: float = 0.25
    perceptual: PerceptualSettings = field(default_factory=PerceptualSettings)  # stages 2 and 3
    adversarial: AdversarialSettings = field(default_factory=AdversarialSettings)  # the same
    scale_dropout: float = 0.5  # chance of each scale but the first to be dropped ...
    scale_dropout_share: float = 0.1  # ... in this share of the joint steps
    fit_batches: tuple[int, int, int] = (40, 20, 4)  # for Lloyd, at levels 256, 512 and 1024
    lloyd_rounds: int = 12
    restart_every: int = 200  # joint steps; codes not used since the last time start again
    seed: int = 0
    num_threads: int = 1  # of each process, on the CPU
    gradient_checkpointing: bool = (
        False  # of a semantic tower: less memory, a third more of its work
    )
    bfloat16: bool = True  # the networks' products; the quantiser is always float32

    def __post_init__(self) -> None:
        shares = ("level_512_share", "level_1024_share", "scale_dropout", "scale_dropout_share")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"learning.{name} is {getattr(self, name)}: use 0 to 1")
        if self.level_512_share + self.level_1024_share > 1:
            raise ConfigError(
                f"learning.level_512_share {self.level_512_share} and level_1024_share "
                f"{self.level_1024_share} are more than all steps: lower one of them"
            )
        for name in (
            *("branch_steps", "joint_steps", "decoder_steps", "batch_size"),
            *("gradient_accumulation", "lloyd_rounds", "restart_every", "num_threads"),
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"learning.{name} is {getattr(self, name)}: use 1 or more")
        for name in ("batch_size", "gradient_accumulation"):
            if getattr(self, name) > _MOST_PICTURES:
                raise ConfigError(
                    f"learning.{name} is {getattr(self, name)}: use {_MOST_PICTURES} or less"
                )
        for name in ("learning_rate", "semantic_learning_rate_scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"learning.{name} is {getattr(self, name)}: use a number above 0")
        for name in (
            *("warmup_steps", "feature_noise"),
            *("semantic_weight", "codebook_weight", "commit_weight"),
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"learning.{name} is {getattr(self, name)}: use 0 or more")
        if min(self.fit_batches) < 0 or sum(self.fit_batches) == 0:
            raise ConfigError(
                f"learning.fit_batches is {list(self.fit_batches)}: use numbers from 0, not all 0"
            )

    def share_of(self, level: int) -> float:
        """Of the steps, how many are at the level."""
        larger = {512: self.level_512_share, 1024: self.level_1024_share}
        return larger.get(level, 1 - sum(larger.values()))

    def steps_of(self, stage: str) -> int:
        """How many steps the stage has."""
        return {
            "branches": self.branch_steps,
            "joint": self.joint_steps,
            "decoders": self.decoder_steps,
        }[stage]

    def pictures_at(self, level: int) -> int:
        """Pictures of one process in one pass."""
        return max(1, self.batch_size * 256**2 // level**2)
