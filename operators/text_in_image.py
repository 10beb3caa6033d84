"""Where text stands in a picture, how much of it, and what it says."""

import importlib.util
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.config import ConfigError
from infra.pixels import Pixels, pictures_of
from infra.schema import column
from operators.mobilenets import file_hash

_DETECTOR = "PP-OCRv6_det_small.onnx"
_RECOGNIZER = "PP-OCRv6_rec_small.onnx"
_LEAST_SIDE = 8  # pixels: no letter is legible in less
_LARGE, _SQUARE = 0.1, 2.0  # share of the picture, long side / short side: see `is_object`


class TextFound(NamedTuple):
    """The text of one picture: boxes [n, 4, 2] as x, y corners in pixels, in reading order."""

    boxes: NDArray[np.float64]
    texts: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class TextInImage:
    """Write ``text_share``, ``num_text_boxes``, ``ocr_text`` and ``ocr_score``.

    The models of PaddleOCR (PP-OCRv6, small) as rapidocr carries them in its wheel: nothing is
    fetched. They read Chinese, Japanese and Latin script; others are found, but misread or dropped.
    A box is a line of text or a piece of one. ``text_share`` is the share of the picture under any
    box: a caption line has 0.02 to 0.1, a page 0.3 and more. ``ocr_text`` has the boxes of a line
    joined by spaces, lines by newlines, top to bottom; columns of a page are read across.
    ``ocr_score`` is the mean confidence of the recognizer. Both are null where there is no text.

    With ``recognize`` a box counts where its text is read with a confidence of at least
    ``min_score``: textures that look like text mostly fall out. Without, every box of the detector
    counts, and text and score are null; that costs a third less. Large and nearly square boxes are
    objects, not text, and never count: a single letter that fills the picture is not found.

    It sees the decoded picture as it is: at a short side of 512 pixels, letters of a page printed
    full are just legible. Raises ConfigError (from ``identity``) where the extra is not installed.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            column("text_share", pa.float32(), "0..1", "area covered by text boxes"),
            column("num_text_boxes", pa.int32(), "boxes", "lines of text, or pieces of lines"),
            column("ocr_text", pa.string(), "", "text read, line by line; null if none"),
            column("ocr_score", pa.float32(), "0..1", "mean confidence of the text; null if none"),
        ],
    )
    version: ClassVar[int] = 1

    recognize: bool = True
    min_score: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score is {self.min_score}: choose a confidence between 0 and 1")

    @property
    def identity(self) -> str:
        """Version of the package and hashes of the models the text depends on."""
        models = _models()
        names = (_DETECTOR, _RECOGNIZER) if self.recognize else (_DETECTOR,)
        hashes = " ".join(file_hash(models / name) for name in names)
        return f"rapidocr {version_of('rapidocr')} {hashes}"

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [None if p is None else self._row(p) for p in pictures_of(batch)]
        for i, field in enumerate(self.writes):
            values = [None if row is None else row[i] for row in rows]
            batch = batch.append_column(field, pa.array(values, field.type))
        return batch

    def __getstate__(self) -> dict[str, Any]:
        # The loaded models stay in this process: a copy loads its own.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def find(self, rgb: Pixels) -> TextFound:
        """The text of one picture [h, w, 3] uint8, in reading order."""
        nothing = TextFound(np.empty((0, 4, 2)), (), ())
        if min(rgb.shape[:2]) < _LEAST_SIDE:
            return nothing
        bgr = np.ascontiguousarray(rgb[..., ::-1])  # as PaddleOCR was trained
        found = self._engine(bgr, use_rec=self.recognize)
        if found.boxes is None or len(found.boxes) == 0:
            return nothing
        boxes = np.asarray(found.boxes, np.float64)
        kept = [i for i, box in enumerate(boxes) if not is_object(box, *rgb.shape[:2])]
        order = [kept[i] for line in reading_order(boxes[kept]) for i in line]
        if not self.recognize:
            return TextFound(boxes[order], (), ())
        scores = tuple(float(found.scores[i]) for i in order)
        return TextFound(boxes[order], tuple(found.txts[i] for i in order), scores)

    def _row(self, rgb: Pixels) -> tuple[float, int, str | None, float | None]:
        boxes, texts, scores = self.find(rgb)
        share = covered(boxes, *rgb.shape[:2])
        if not texts:
            return share, len(boxes), None, None
        lines = (" ".join(texts[i] for i in line) for line in reading_order(boxes))
        return share, len(boxes), "\n".join(lines), float(np.mean(scores))

    @cached_property
    def _engine(self) -> Any:
        from rapidocr import RapidOCR

        models = _models()
        one_thread = {
            f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")
        }
        return RapidOCR(
            params={
                "Global.log_level": "critical",  # it warns of every picture without text
                "Global.text_score": self.min_score,
                "Global.use_cls": False,  # pictures come upright
                "Global.use_preprocess_img": False,  # neither enlarged nor reduced
                "Global.width_height_ratio": -1,  # nor widened, but what is below 30 pixels
                "Det.limit_side_len": 32,  # one step of the network, whatever the picture
                "Det.model_path": str(models / _DETECTOR),
                "Rec.model_path": str(models / _RECOGNIZER),
                **one_thread,
            }
        )


def reading_order(boxes: NDArray[np.float64]) -> list[list[int]]:
    """Indices of ``boxes`` [n, 4, 2] by line: lines from top to bottom, boxes from left to right.

    A box belongs to the line whose first box it faces: its centre lies between that one's top and
    bottom, or the other way round.
    """
    if len(boxes) == 0:
        return []
    tops, bottoms = boxes[..., 1].min(1), boxes[..., 1].max(1)
    middles, lefts = (tops + bottoms) / 2, boxes[..., 0].min(1)
    lines: list[list[int]] = []
    for i in np.lexsort((lefts, middles)).tolist():
        first = lines[-1][0] if lines else i
        faces = tops[first] <= middles[i] <= bottoms[first] or (
            tops[i] <= middles[first] <= bottoms[i]
        )
        if lines and faces:
            lines[-1].append(i)
        else:
            lines.append([i])
    return [sorted(line, key=lambda i: (lefts[i], i)) for line in lines]


def is_object(box: NDArray[np.float64], height: int, width: int) -> bool:
    """Whether a box [4, 2] is too large and too square for a line of text.

    The detector takes a cup, a face or a pagoda that fills the picture for one huge sign, and the
    recognizer is sure to read an 8. All 20 such boxes in 90 pictures were above 0.14 of the picture
    and below 1.8 in shape; no line of text was both.
    """
    _, sides, _ = cv2.minAreaRect(box.astype(np.float32))
    short, long = sorted(sides)
    return short * long > _LARGE * height * width and long < _SQUARE * short


def covered(boxes: NDArray[np.float64], height: int, width: int) -> float:
    """Share of a picture's pixels under any of ``boxes`` [n, 4, 2], 0..1."""
    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        cv2.fillConvexPoly(mask, np.round(box).astype(np.int32), 1)
    return cv2.countNonZero(mask) / mask.size


def _models() -> Path:
    """The folder of rapidocr's models."""
    for package in ("rapidocr", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{package} is not installed: pip install 'nextscale[ocr]'")
    spec = importlib.util.find_spec("rapidocr")
    assert spec is not None
    assert spec.origin is not None
    models = Path(spec.origin).parent / "models"
    for name in (_DETECTOR, _RECOGNIZER):
        if not (models / name).is_file():
            raise ConfigError(f"{models} lacks {name}: pip install 'nextscale[ocr]' again")
    return models
