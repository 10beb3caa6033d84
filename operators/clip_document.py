"""Documents of a clip: its caption, then its kept frames with what leads from one to the next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from infra.schema import DOCUMENTS
from operators.kept_frames import KeptFrame, kept_frames

TASK = "interleaved"


@dataclass(frozen=True)
class ClipDocument:
    """One document per clip, its task ``interleaved`` (paper, 5.4).

    Text (the clip's caption, where it has one), image, bridge, image, …, image: frames in time
    order as targets, bridges from ``transitions`` where these were written. All have loss. The
    frames are taken as they are: `frame_selection` has cut them to their schedules.

    A row fails with type ``no_text`` where a bridge was written and holds nothing, as a caption
    that holds nothing does, and with ``too_few_frames`` where no frame is kept.
    """

    reads: ClassVar[tuple[str, ...]] = (
        "doc_id",
        "sample_id",
        "text",
        "transitions",
        "candidates",
        "error",
    )
    writes: ClassVar[pa.Schema] = pa.schema(
        [DOCUMENTS.field(n) for n in ("sample_ids", "segments")]
    )
    version: ClassVar[int] = 1

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = batch["error"].to_pylist()
        samples = batch["sample_id"].to_pylist()
        texts = batch["text"].to_pylist()
        transitions = batch["transitions"].to_pylist()
        documents: list[list[dict[str, Any]] | None] = [None] * len(batch)
        for row, frames in enumerate(kept_frames(batch)):
            if frames is None:
                continue
            bridges = [one["text"] for one in transitions[row] or ()]
            problem = _problem(frames, bridges)
            if problem is not None:
                errors[row] = {"stage": "documents"} | problem
                continue
            caption = [_text(texts[row])] if texts[row] else []
            segments = [*caption, *_in_turn(frames, bridges)]
            documents[row] = [one | {"sample_id": samples[row]} for one in segments]
        place = batch.column_names.index("error")
        error = batch.schema.field(place)
        batch = batch.set_column(place, error, pa.array(errors, error.type))
        written = ([[id_] for id_ in samples], documents)
        for field, values in zip(self.writes, written, strict=True):
            batch = batch.append_column(field, pa.array(values, field.type))
        return batch


def _problem(frames: Sequence[KeptFrame], bridges: Sequence[str]) -> dict[str, str] | None:
    if not frames:
        return {"type": "too_few_frames", "message": "no frame of the clip is kept"}
    if bridges and len(bridges) != len(frames) - 1:
        raise AssertionError(f"{len(bridges)} bridges between {len(frames)} frames")
    empty = [number for number, text in enumerate(bridges, 1) if not text]
    if empty:
        return {"type": "no_text", "message": f"bridge {empty[0]} of {len(bridges)} is empty"}
    return None


def _in_turn(frames: Sequence[KeptFrame], bridges: Sequence[str]) -> list[dict[str, Any]]:
    segments = [_image(frames[0])]
    for number, frame in enumerate(frames[1:]):
        if bridges:
            segments.append(_text(bridges[number]))
        segments.append(_image(frame))
    return segments


def _text(text: str) -> dict[str, Any]:
    return {"kind": "text", "text": text, "loss": True}


def _image(frame: KeptFrame) -> dict[str, Any]:
    return {
        "kind": "image",
        "image": frame.image,
        "width": frame.width,
        "height": frame.height,
        "cropped": frame.cropped,
        "role": "target",
        "loss": True,
    }
