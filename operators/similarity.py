"""How well a caption fits its picture."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from infra.pixels import Pixels, pictures_of
from infra.schema import column
from operators import open_clip_model
from operators.fixed_batches import run_fixed


@dataclass(frozen=True)
class CaptionSimilarity:
    """Write ``caption_similarity``: the cosine of the picture's and the caption's features.

    Any CLIP or SigLIP model (``model`` and ``pretrained``, see `open_clip_model`); there is no
    default that works without one, because captions need a text encoder. The cosine is the model's
    own scale: CLIP ViT-L/14 gives 0.2 to 0.3 for a fitting caption; look at the distribution before
    choosing a cut. A caption longer than the model's context is cut off there. A row without a
    caption, or with an empty one, gets null.

    Raises ValueError for a model that cannot be found.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "caption", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [column("caption_similarity", pa.float32(), "-1..1", "cosine of image and caption")],
    )
    version: ClassVar[int] = 1

    model: str
    pretrained: str = ""
    batch_rows: int = 16
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("`model` is empty: see operators/open_clip_model.py for its forms")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows is {self.batch_rows}: choose at least 1")

    @property
    def identity(self) -> str:
        """Hash or published name of the weights the scores depend on."""
        return open_clip_model.identity(self.model, self.pretrained)

    def __call__(self, batch: pa.Table) -> pa.Table:
        captions = [text or None for text in batch.column("caption").to_pylist()]
        pictures = pictures_of(batch)
        pairs: list[tuple[Pixels, str] | None] = [
            None if picture is None or caption is None else (picture, caption)
            for picture, caption in zip(pictures, captions, strict=True)
        ]
        scores = self._cosines(pairs) if any(pairs) else [None] * len(pairs)
        return batch.append_column(
            self.writes.field("caption_similarity"), pa.array(scores, pa.float32())
        )

    def __getstate__(self) -> dict[str, Any]:
        # The loaded model stays in this process: a copy loads its own.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _open_clip(self) -> open_clip_model.OpenClip:
        return open_clip_model.load(self.model, self.pretrained, self.device)

    def _cosines(self, pairs: list[tuple[Pixels, str] | None]) -> list[float | None]:
        clip, rows, device = self._open_clip, self.batch_rows, self.device
        images = run_fixed(
            pairs, lambda pair: clip.prepare(pair[0]), clip.encode_images, rows, device
        )
        texts = run_fixed(
            pairs, lambda pair: clip.tokenize([pair[1]])[0], clip.encode_tokens, rows, device
        )
        return [
            None if image is None or text is None else float(image @ text)
            for image, text in zip(images, texts, strict=True)
        ]
