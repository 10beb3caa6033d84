"""How well a caption fits its picture."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal

import pyarrow as pa
from torch import Tensor

from infra.schema import column
from operators.fixed_batches import run_fixed
from operators.image_features import ImageFeatures, features_of
from operators.open_clip_model import OpenClip


@dataclass(frozen=True)
class CaptionSimilarity:
    """Write ``caption_similarity``: the cosine of the picture's and the caption's features.

    With ``of: text`` it reads the column ``text``, the caption that was made, and writes
    ``text_similarity``: before and after recaptioning, on one scale.

    Any CLIP or SigLIP model (``model`` and ``pretrained``, see `open_clip_model`); there is no
    default that works without one, because captions need a text encoder. The cosine is the model's
    own scale: CLIP ViT-L/14 gives 0.2 to 0.3 for a fitting caption; look at the distribution before
    choosing a cut. A caption longer than the model's context is cut off there. A row without a
    caption, or with an empty one, gets null. The picture's features are read from the column of
    ``tower``, an operator to run before this one.

    Raises ValueError for a model that cannot be found.
    """

    version: ClassVar[int] = 1

    model: str
    pretrained: str = ""
    batch_rows: int = 16
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"  # of both towers
    of: Literal["caption", "text"] = "caption"

    def __post_init__(self) -> None:
        _ = self.tower  # its checks are ours
        if self.of not in ("caption", "text"):
            raise ValueError(f"of is {self.of!r}: choose caption or text")

    @property
    def tower(self) -> ImageFeatures:
        """The image tower whose features are compared."""
        return ImageFeatures(
            self.model, self.pretrained, self.batch_rows, self.device, self.precision
        )

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.tower.column, self.of, "error")

    @property
    def writes(self) -> pa.Schema:
        meaning = {
            "caption": "cosine of image and given caption",
            "text": "cosine of image and text",
        }
        name = f"{self.of}_similarity"
        return pa.schema([column(name, pa.float32(), "-1..1", meaning[self.of])])

    @property
    def identity(self) -> str:
        """Hash or published name of the weights the scores depend on."""
        return self.tower.identity

    def __call__(self, batch: pa.Table) -> pa.Table:
        images = features_of(batch, self.tower)
        captions = [
            None if image is None else text or None
            for image, text in zip(images, batch.column(self.of).to_pylist(), strict=True)
        ]
        scores: list[float | None] = [None] * len(captions)
        if any(captions):
            texts = run_fixed(
                captions, self._prepare, self._open_clip.encode_tokens, self.batch_rows, self.device
            )
            for row, (image, text) in enumerate(zip(images, texts, strict=True)):
                if image is not None and text is not None:
                    scores[row] = float(image @ text)
        return batch.append_column(self.writes.field(0), pa.array(scores, pa.float32()))

    def __getstate__(self) -> dict[str, Any]:
        # The loaded model stays in this process: a copy loads its own.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _open_clip(self) -> OpenClip:
        return self.tower.open_clip

    def _prepare(self, caption: str) -> Tensor:
        return self._open_clip.tokenize([caption])[0]
