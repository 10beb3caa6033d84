"""Which pictures of a web document are worth keeping, and why each of the others went.

Limits like these clean the pages of OBELICS (arXiv:2306.16527: 150 pixels, 2:1) and OmniCorpus
(arXiv:2406.08418, which scores aesthetics and NSFW too).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from infra.pixels import DecodeError
from infra.schedules import nearest
from infra.schema import ERROR, ERROR_TYPE, column
from operators.aesthetics import Aesthetics
from operators.clarity import Clarity
from operators.level_picture import LevelPicture
from operators.nsfw import Nsfw
from operators.probe import Probe
from operators.text_probe import TextError
from operators.web_page import Part, content_hash, parse, wanted_images

IMAGE_VERDICT = pa.struct(
    [
        ("place", pa.int32()),
        ("name", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("clarity", pa.float32()),
        ("aesthetic", pa.float32()),
        ("nsfw", pa.float32()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
    ],
)

_AT_A_TIME = 64  # pictures whose pixels are in memory; one document may have thousands
_NAME_CHARS = 1_024  # of a name that are stored: S3's limit, while a damaged one may be a megabyte
_OUT = {"stage": "web", "type": "out", "message": "the picture is out already"}


@dataclass(eq=False)
class _Picture:
    row: int
    told: dict[str, Any]  # of IMAGE_VERDICT
    data: pa.Scalar | None = None
    same_as: "_Picture | None" = None

    def drop(self, reason: str) -> None:
        self.told |= {"kept": False, "reason": reason}


@dataclass(frozen=True)
class WebImages:
    """Write ``images``: what is known of each picture of a document, in order, and its verdict.

    ``reason`` of a picture that is not ``kept`` is the first of: ``too_many_images`` (beyond the
    first ``max_images``, which are not opened); why its file could not be had (``missing``,
    ``bad_uri``, ...) or decoded (`infra.pixels.DecodeError`); ``repeated`` (the same name or bytes
    came before and was kept; else the reason of that one); ``too_small`` (short side below
    ``min_side``); ``extreme_shape`` (long side over short side above ``max_ratio``);
    ``too_small_for_level`` and ``too_elongated`` (see `operators.image_text`; not asked without a
    ``level``); ``blurred``, ``not_aesthetic``, ``nsfw`` (scores beyond ``min_clarity``,
    ``min_aesthetic``, ``max_nsfw``). Limits that are null are not asked, and scores are null where
    their operator is, or where the picture was out before.

    A bad picture never fails its document. A row fails, at stage ``web``, where `web_page.parse`
    raises. Raises ValueError for limits that cannot be, or that no operator gives a score for.
    """

    reads: ClassVar[tuple[str, ...]] = ("bytes", "pictures", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            column("images", pa.list_(IMAGE_VERDICT), "", "its pictures, and why each one went"),
            column("num_images", pa.int32(), "count", "places with the name of a picture"),
            column("num_images_kept", pa.int32(), "count", "pictures that are kept"),
            column("sha256", pa.string(), "", "SHA-256 of texts and pictures in order, evened"),
        ],
    )
    version: ClassVar[int] = 1

    probe: Probe = field(default_factory=Probe)
    clarity: Clarity | None = field(default_factory=Clarity)
    aesthetics: Aesthetics | None = None
    nsfw: Nsfw | None = None
    min_side: int | None = None  # pixels
    max_ratio: float | None = None
    min_clarity: float | None = None
    min_aesthetic: float | None = None
    max_nsfw: float | None = None
    max_images: int = 100
    level: int | None = None
    max_cropped: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("min_side", 1), ("max_ratio", 1), ("max_images", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} is {value}: choose at least {least}")
        for limit, operator in (
            ("min_clarity", "clarity"),
            ("min_aesthetic", "aesthetics"),
            ("max_nsfw", "nsfw"),
        ):
            if getattr(self, limit) is not None and getattr(self, operator) is None:
                raise ValueError(f"{limit} asks for a score: add `{operator}`, or set it to null")
        _ = self._at_level

    @property
    def _at_level(self) -> LevelPicture | None:
        return None if self.level is None else LevelPicture(self.level, 95, self.max_cropped)

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = batch["error"].to_pylist()
        documents: list[list[_Picture] | None] = [None] * len(batch)
        parts: list[list[Part]] = [[] for _ in errors]
        for row, data in enumerate(batch["bytes"]):
            if errors[row] is None:
                try:
                    parts[row] = parse(data.as_py())
                    documents[row] = self._pictures(row, parts[row], batch["pictures"][row])
                except TextError as error:
                    errors[row] = {"stage": "web", "type": error.type, "message": str(error)}
        every = [picture for document in documents for picture in document or ()]
        self._judge(every)
        told = [None if d is None else [picture.told for picture in d] for d in documents]
        written: dict[str, list[Any]] = {
            "images": told,
            "num_images": [None if d is None else len(d) for d in told],
            "num_images_kept": [None if d is None else sum(p["kept"] for p in d) for d in told],
            "sha256": [
                None if d is None else content_hash(p, {i["place"]: i["sha256"] for i in d})
                for p, d in zip(parts, told, strict=True)
            ],
        }
        place = batch.column_names.index("error")
        batch = batch.set_column(place, ERROR, pa.array(errors, ERROR.type))
        for of in self.writes:
            batch = batch.append_column(of, pa.array(written[of.name], of.type))
        return batch

    def _pictures(self, row: int, parts: Sequence[Part], loaded: pa.Scalar) -> list[_Picture]:
        """The pictures of a document, those that have a verdict already with it."""
        files = {file["place"].as_py(): file for file in (loaded.values or ())}
        wanted = {name: place for place, name in wanted_images(parts, self.max_images)}
        found: list[_Picture] = []
        first: dict[str, _Picture] = {}
        for part in parts:
            if part.image is None:
                continue
            told = dict.fromkeys(IMAGE_VERDICT.names) | {"kept": True, "place": part.place}
            picture = _Picture(row, told | {"name": part.image[:_NAME_CHARS]})
            if len(found) >= self.max_images:
                picture.drop("too_many_images")
            elif part.image in first:
                picture.same_as = first[part.image]
            else:
                first[part.image] = picture
                file = files[wanted[part.image]]
                if file["error"].is_valid:
                    picture.drop(file["error"]["type"].as_py())
                else:
                    picture.data = file["data"]
            found.append(picture)
        return found

    def _judge(self, pictures: Sequence[_Picture]) -> None:
        """Fill in the scores and the verdict of all pictures of a batch."""
        seen: dict[tuple[int, str], _Picture] = {}
        loaded = [picture for picture in pictures if picture.data is not None]
        for start in range(0, len(loaded), _AT_A_TIME):
            self._score(loaded[start : start + _AT_A_TIME], seen)
        for picture in pictures:
            if (first := picture.same_as) is not None:
                known = {name: first.told[name] for name in IMAGE_VERDICT.names}
                del known["place"], known["name"]
                picture.told |= known
                picture.drop(first.told["reason"] or "repeated")

    def _score(self, some: Sequence[_Picture], seen: dict[tuple[int, str], _Picture]) -> None:
        data = [None if picture.data is None else picture.data.as_py() for picture in some]
        none = pa.nulls(len(some), ERROR_TYPE)
        table = self.probe(pa.table({"bytes": pa.array(data, pa.large_binary()), "error": none}))
        facts = table.select(["width", "height", "sha256", "error"]).to_pylist()
        for picture, fact in zip(some, facts, strict=True):
            if (error := fact.pop("error")) is not None:
                picture.drop(error["type"])
                continue
            picture.told |= fact
            first = seen.setdefault((picture.row, fact["sha256"]), picture)
            if first is not picture:
                picture.same_as = first
            elif (reason := self._bad_size(fact["height"], fact["width"])) is not None:
                picture.drop(reason)
        for operator, name, reason in self._asked():
            # What is out already is not worth a model's time.
            out = [p.same_as is not None or not p.told["kept"] for p in some]
            place = table.column_names.index("error")
            marks = pa.array([_OUT if gone else None for gone in out], ERROR_TYPE)
            table = table.set_column(place, ERROR, marks)
            tower = getattr(operator, "tower", None)
            if tower is not None and tower.column not in table.column_names:
                table = tower(table)
            scores = operator(table)[name].to_pylist()
            for picture, score in zip(some, scores, strict=True):
                picture.told[name] = score
                if score is not None and self._is_beyond(name, score):
                    picture.drop(reason)

    def _bad_size(self, height: int, width: int) -> str | None:
        short, long = sorted((height, width))
        if self.min_side is not None and short < self.min_side:
            return "too_small"
        if self.max_ratio is not None and long > self.max_ratio * short:
            return "extreme_shape"
        if (at_level := self._at_level) is None:
            return None
        try:
            at_level.target(height, width)
        except DecodeError as error:
            return error.type
        ratio, of_grid = height / width, float(nearest(height, width).ratio)
        cropped = 1 - min(ratio / of_grid, of_grid / ratio)
        return "too_elongated" if cropped > self.max_cropped else None

    def _asked(self) -> Iterator[tuple[Any, str, str]]:
        """The operators that score, cheap ones first: their column, and why a picture goes."""
        for operator, name, reason in (
            (self.clarity, "clarity", "blurred"),
            (self.aesthetics, "aesthetic", "not_aesthetic"),
            (self.nsfw, "nsfw", "nsfw"),
        ):
            if operator is not None:
                yield operator, name, reason

    def _is_beyond(self, name: str, score: float) -> bool:
        least = {"clarity": self.min_clarity, "aesthetic": self.min_aesthetic}.get(name)
        most = self.max_nsfw if name == "nsfw" else None
        return (least is not None and score < least) or (most is not None and score > most)
