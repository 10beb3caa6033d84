"""Which language a text is written in.

By py3langid 0.4 (M. Lui, T. Baldwin, "langid.py: An Off-the-shelf Language Identification Tool",
ACL 2012; maintained and retrained by A. Barbaresi): naive Bayes over byte n-grams, 140 languages,
its model inside the package (BSD-3-Clause). NumPy alone, half a millisecond for a page.
"""

import importlib.metadata
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from infra.schema import column, digest
from operators.text_probe import read_texts

UNKNOWN = "und"

# Below this a text holds no n-gram that the model knows: all languages then score below 0.015.
_FLOOR = 0.02


@dataclass(frozen=True)
class Language:
    """Write ``language`` and ``language_score`` from the first ``max_chars`` characters.

    The score is the model's probability, evened for length: whole sentences score 0.6 to 1, three
    words of it may score 0.1 and be wrong, so a rule wants both (``language = 'en' AND
    language_score > 0.5``). ``und`` with score 0: too short, or no language at all. ``zxx`` is the
    model's own name for figures and codes.
    """

    reads: ClassVar[tuple[str, ...]] = ("bytes", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            column("language", pa.string(), "ISO 639", "code of one (639-1) or three letters, und"),
            column("language_score", pa.float32(), "0..1", "probability of that language"),
        ],
    )
    version: ClassVar[int] = 1

    max_chars: int = 2_000

    def __post_init__(self) -> None:
        if self.max_chars < 1:
            raise ValueError(f"max_chars is {self.max_chars}: read at least 1 character")

    @property
    def identity(self) -> str:
        """Names the model; raises ValueError where it is not installed."""
        try:
            return digest("py3langid", importlib.metadata.version("py3langid"))
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(
                "py3langid is not installed: pip install 'nextscale[text]', or set it to null"
            ) from None

    @cached_property
    def _identifier(self) -> Any:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __call__(self, batch: pa.Table) -> pa.Table:
        turns, batch = read_texts(batch, "language")
        names: list[str | None] = []
        scores: list[float | None] = []
        for found in turns:
            name, score = None, None
            if found is not None:
                name, score = self._classify("\n".join(turn.text for turn in found))
            names.append(name)
            scores.append(score)
        batch = batch.append_column(self.writes.field("language"), pa.array(names, pa.string()))
        field = self.writes.field("language_score")
        return batch.append_column(field, pa.array(scores, pa.float32()))

    def _classify(self, text: str) -> tuple[str, float]:
        name, score = self._identifier.classify(text[: self.max_chars])
        # Sums of float32 differ in their last bits between processors.
        return (name, round(score, 4)) if score >= _FLOOR else (UNKNOWN, 0.0)
