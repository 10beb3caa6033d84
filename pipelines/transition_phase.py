"""Transition texts and documents of clips whose frames are chosen.

    frames/<dataset>-<level> -> captions/<dataset> (text, transitions) -> documents/<dataset>

A clip is one row all the way. Parts of captions are those of the dataset, as for pictures, so that
decisions and rules find them; parts of documents are those of the frames, which lie in slices.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.runs import TableRecord
from infra.schema import CAPTIONS, DOCUMENTS, FRAMES, SAMPLES, doc_id
from infra.storage import Storage
from operators.clip_document import TASK, ClipDocument
from operators.transitions import TRANSITIONS, Transitions
from pipelines.inputs import DatasetPart
from pipelines.phase import Phase
from pipelines.sections import Pool


@dataclass(frozen=True)
class FramesInput:
    """Clips with their frames, in the order of the table of frames, whose errors they carry on.

    ``parts`` are the places of its parts. Output parts are the same, or, if ``whole``, those of the
    dataset: all slices of one together. Frames are read row by row as they are needed, and only
    with ``images``.

    With ``captions``, which are of whole parts, rows have their ``text`` and ``transitions`` and
    their errors. Where each row is a document, ``documents_of`` names its dataset. ``decisions``,
    where captioned clips were judged, keep some.
    """

    parts: tuple[DatasetPart, ...]
    frames: TableRecord
    captions: TableRecord | None = None
    decisions: TableRecord | None = None
    documents_of: str | None = None
    images: bool = True
    whole: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        added = [
            ("text", self.captions is not None),
            ("transitions", self.captions is not None),
            ("candidates", self.images),
            ("task", self.documents_of is not None),
            ("doc_id", self.documents_of is not None),
        ]
        return (*SAMPLES.names, *(name for name, there in added if there))

    @property
    def is_remote(self) -> bool:
        return False  # frames lie in the workspace

    @property
    def num_parts(self) -> int:
        return self.parts[-1].index + 1 if self.whole and self.parts else len(self.parts)

    def rows(self, storage: Storage, part: int) -> pa.Table:
        numbers = [part]
        if self.whole:
            numbers = [n for n, place in enumerate(self.parts) if place.index == part]
        place = self.parts[numbers[0]]
        samples = storage.read_table(place.samples.path(place.part))
        rows = pa.concat_tables([self._clips(storage, number, samples) for number in numbers])
        if self.captions is not None:
            rows = _with_captions(rows, storage.read_table(self.captions.path(place.index)))
        if self.decisions is not None:
            path = self.decisions.path(place.index)
            judged = storage.read_table(path, ["sample_id", "status"])
            kept = judged.filter(pc.equal(judged["status"], "kept"))["sample_id"]
            rows = rows.filter(pc.is_in(rows["sample_id"], kept.combine_chunks()))
        if self.documents_of is not None:
            ids = [doc_id(self.documents_of, TASK, [s]) for s in rows["sample_id"].to_pylist()]
            rows = rows.append_column("task", pa.repeat(pa.scalar(TASK), len(rows)))
            rows = rows.append_column("doc_id", pa.array(ids, pa.string()))
        return rows

    def _clips(self, storage: Storage, number: int, samples: pa.Table) -> pa.Table:
        """The clips of a part of the frames and where their frames lie."""
        frames = storage.read_table(self.frames.path(number), ["sample_id", "error"])
        rows = _of_clips(samples, frames)
        rows = rows.set_column(rows.column_names.index("error"), "error", frames["error"])
        rows = rows.append_column("_row", pa.array(range(len(rows)), pa.int64()))
        return rows.append_column("_part", pa.repeat(pa.scalar(number), len(rows)))

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        bare = rows.drop_columns(["_row", "_part"])
        if not self.images:
            return bare
        type_ = FRAMES.field("candidates").type
        found = [pa.chunked_array([], type_)]
        parts = rows["_part"].to_numpy()
        for part in np.unique(parts):  # rows are in the order of the parts
            numbers = rows["_row"].to_numpy()[parts == part].tolist()
            table = storage.read_rows(self.frames.path(int(part)), numbers)
            found.append(table["candidates"].cast(type_))
        chunks = [chunk for column in found for chunk in column.chunks]
        return bare.append_column("candidates", pa.chunked_array(chunks, type_))


def _of_clips(table: pa.Table, clips: pa.Table) -> pa.Table:
    """The rows of a table by sample_id, one for each clip."""
    place = pc.index_in(clips["sample_id"], table["sample_id"].combine_chunks())
    assert not place.null_count, "tables of clips are of the same clips"
    return table.take(place)


def _with_captions(rows: pa.Table, captions: pa.Table) -> pa.Table:
    found = _of_clips(captions, rows)
    for name in ("text", "transitions"):
        rows = rows.append_column(name, found[name])
    return rows.set_column(rows.column_names.index("error"), "error", found["error"])


def transition_schema() -> pa.Schema:
    """Columns of ``captions/<dataset>`` where it is of clips."""
    error = CAPTIONS.get_field_index("error")
    return pa.schema([*list(CAPTIONS)[:error], TRANSITIONS, CAPTIONS.field(error)])


def transition_phase(
    dataset: str,
    parts: tuple[DatasetPart, ...],
    frames: TableRecord,
    transitions: Transitions,
    *,
    pool: Pool,
) -> Phase:
    """Captions of the clips and texts between their kept frames; ``parts`` are the frames'."""
    clips = FramesInput(parts, frames, images="candidates" in transitions.reads, whole=True)
    return Phase(
        table=f"captions/{dataset}",
        key="sample_id",
        schema=transition_schema(),
        input=clips,
        num_parts=clips.num_parts,
        stages=(pool.stage(transitions),),
        spec={},
        # Of the frames even where nobody looks at them: whether a row has failed is a value.
        value_inputs=(*_samples(parts), frames),
        unit_rows=pool.unit_rows,
    )


def clip_document_phase(
    dataset: str,
    parts: tuple[DatasetPart, ...],
    frames: TableRecord,
    captions: TableRecord,
    *,
    level: int,
    pool: Pool,
    decisions: TableRecord | None = None,
) -> Phase:
    """Documents of the clips; of those that ``decisions`` keep, where captions were judged."""
    clips = FramesInput(parts, frames, captions, decisions, documents_of=dataset)
    return Phase(
        table=f"documents/{dataset}",
        key="doc_id",
        schema=DOCUMENTS,
        input=clips,
        num_parts=clips.num_parts,
        stages=(pool.stage(ClipDocument()),),
        spec={"dataset": dataset},
        value_inputs=(*_samples(parts), frames, captions),
        row_inputs=(decisions,) if decisions is not None else (),
        unit_rows=pool.unit_rows,
        facts={"level": level, "dataset": dataset},
    )


def _samples(parts: tuple[DatasetPart, ...]) -> tuple[TableRecord, ...]:
    return tuple({part.samples.table: part.samples for part in parts}.values())
