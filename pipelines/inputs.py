"""What each phase reads: samples, kept samples, or documents, part by part.

Parts of a dataset are the parts of its sources in the recipe's order. Tables with pictures cut each
of them further by the hash of the id (`DatasetPart.slice`), so that a file stays small and a row
stays in its file whatever the rules keep.
"""

from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from infra.runs import TableRecord
from infra.schema import CAPTIONS, DOCUMENTS, SAMPLES, doc_id, uniform
from infra.storage import Storage
from pipelines.rules import value_sql
from pipelines.source import Source
from pipelines.sources import load_order, media_column, read_media

SAMPLES_PER_MEDIA_PART = 2_048  # x 100 kB a picture: about 200 MB a file
SAMPLES_PER_TEXT_PART = 65_536  # x 3 kB a page: as much


@dataclass(frozen=True)
class SampleInput:
    """Samples of a source with their media; with a gate, only those that it lets through.

    A group that did not see a sample has NULL for it, which a gate that asks does not let through.
    """

    source: Source
    samples: TableRecord
    earlier: tuple[TableRecord, ...] = ()  # score groups the gate may ask
    gate: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (*SAMPLES.names, media_column(self.source))

    @property
    def is_remote(self) -> bool:
        return not self.source.storage.is_local

    def rows(self, storage: Storage, part: int) -> pa.Table:
        rows = storage.read_table(self.samples.path(part))
        if self.earlier:
            passed = self._passed(storage, part, rows)["sample_id"].combine_chunks()
            rows = rows.filter(pc.is_in(rows["sample_id"], passed))
        return load_order(rows)

    def _passed(self, storage: Storage, part: int, samples: pa.Table) -> pa.Table:
        """Ids that no earlier group failed and the gate lets through (NULL does not)."""
        con = duckdb.connect(config={"threads": 1, "enable_external_access": False})
        con.register("s", samples)
        groups = []
        for i, record in enumerate(self.earlier):
            groups.append(f"g{i}")
            con.register(groups[-1], storage.read_table(record.path(part)))
        joins = " ".join(f"LEFT JOIN {name} USING (sample_id)" for name in groups)
        fine = " AND ".join(f"{name}.error IS NULL" for name in ("s", *groups))
        scores = ", ".join(f"{name}.* EXCLUDE (sample_id, error)" for name in groups)
        # The gate was checked before the start (rules.check_expression).
        return con.sql(
            f"SELECT sample_id FROM (SELECT s.* EXCLUDE (error), {scores} FROM s {joins} "
            f"WHERE {fine}) WHERE {value_sql(self.gate or 'true')}"
        ).to_arrow_table()

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        return read_media(self.source, rows)


@dataclass(frozen=True)
class DatasetPart:
    """A part of a dataset: slice ``slice`` of ``slices`` of part ``part`` of a source."""

    source: Source
    samples: TableRecord
    part: int  # of the source
    index: int  # of the dataset's unsliced part
    slice: int = 0
    slices: int = 1


def dataset_parts(
    sources: tuple[Source, ...], samples: tuple[TableRecord, ...], slice_rows: int = 0
) -> tuple[DatasetPart, ...]:
    """The dataset's parts in order, cut into slices of about ``slice_rows`` samples (0: whole)."""
    parts: list[DatasetPart] = []
    index = 0
    for source, record in zip(sources, samples, strict=True):
        for number, part in enumerate(record.parts):
            slices = -(-max(part.num_rows, 1) // slice_rows) if slice_rows else 1
            parts += [DatasetPart(source, record, number, index, i, slices) for i in range(slices)]
            index += 1
    return tuple(parts)


@dataclass(frozen=True)
class KeptInput:
    """Samples that the decisions keep; with their captions where these are made already.

    Where each row is a document, ``document`` says of which dataset and task. Task inversion: one
    that is ``t2i`` becomes ``i2t`` if u(sample_id, ``inversion_seed``) is below ``inversion`` (the
    paper's 10% late in pre-training, 6.7). As ids hold the task, another share or seed makes other
    rows and leaves the rest as they are.

    ``extra`` are score groups whose columns ``extra_columns`` come along as text; null for samples
    that a group did not see. With them a sample that came without a caption has no text and has not
    failed: what reads the other columns decides.
    """

    parts: tuple[DatasetPart, ...]
    decisions: TableRecord
    captions: TableRecord | None = None
    media: bool = True
    document: tuple[str, str] | None = None
    inversion: float = 0.0
    inversion_seed: int = 0
    extra: tuple[TableRecord, ...] = ()
    extra_columns: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        added = [
            ("text", self.captions is not None),
            (media_column(self.parts[0].source) if self.parts else "bytes", self.media),
            ("task", self.document is not None),
            ("doc_id", self.document is not None),
        ]
        return (*SAMPLES.names, *(name for name, there in added if there), *self.extra_columns)

    @property
    def is_remote(self) -> bool:
        return not all(part.source.storage.is_local for part in self.parts)

    def rows(self, storage: Storage, part: int) -> pa.Table:
        place = self.parts[part]
        rows = storage.read_table(place.samples.path(place.part))
        kept = storage.read_table(self.decisions.path(place.index), ["sample_id", "status"])
        kept = kept.filter(pc.equal(kept["status"], "kept"))["sample_id"].combine_chunks()
        rows = rows.filter(pc.is_in(rows["sample_id"], kept))
        if place.slices > 1:
            mine = [
                int(id_[:8], 16) * place.slices >> 32 == place.slice
                for id_ in rows["sample_id"].to_pylist()
            ]
            rows = rows.filter(pa.array(mine, pa.bool_()))
        if self.captions is not None:
            rows = self._with_captions(storage, place.index, rows)
        for name in self.extra_columns:
            rows = rows.append_column(name, self._extra(storage, place, name, rows["sample_id"]))
        if self.document is not None:
            rows = self._as_documents(*self.document, rows)
        # The input knows the row's part again when it loads: sources differ from part to part.
        rows = rows.append_column("_part", pa.repeat(pa.scalar(part), len(rows)))
        return load_order(rows)

    def _with_captions(self, storage: Storage, index: int, rows: pa.Table) -> pa.Table:
        assert self.captions is not None
        captions = storage.read_table(self.captions.path(index), ["sample_id", "text", "error"])
        place = pc.index_in(rows["sample_id"], captions["sample_id"].combine_chunks())
        found = captions.take(place)
        rows = rows.append_column(CAPTIONS.field("text").remove_metadata(), found["text"])
        errors = found["error"]
        if self.extra_columns:
            without = pc.equal(pc.struct_field(errors, "type"), "no_caption")
            errors = pc.if_else(pc.fill_null(without, False), pa.scalar(None, errors.type), errors)
        return rows.set_column(rows.column_names.index("error"), "error", errors)

    def _as_documents(self, dataset: str, task: str, rows: pa.Table) -> pa.Table:
        samples = rows["sample_id"].to_pylist()
        tasks = [task] * len(samples)
        if task == "t2i":
            u = (uniform(sample, self.inversion_seed) for sample in samples)
            tasks = ["i2t" if number < self.inversion else task for number in u]
        ids = [doc_id(dataset, task, [s]) for task, s in zip(tasks, samples, strict=True)]
        rows = rows.append_column("task", pa.array(tasks, pa.string()))
        return rows.append_column("doc_id", pa.array(ids, pa.string()))

    def _extra(
        self, storage: Storage, place: DatasetPart, name: str, samples: pa.ChunkedArray
    ) -> pa.ChunkedArray:
        """A score of these samples as text."""
        for record in self.extra:
            # Groups belong to a source: scores/<source>/<group>.
            if record.table.split("/")[1] == place.source.name:
                table = storage.read_table(record.path(place.part), ["sample_id", name])
                if name in table.column_names:
                    row = pc.index_in(samples, table["sample_id"].combine_chunks())
                    return table[name].take(row).cast(pa.string())
        raise KeyError(f"no score group of {place.source.name} has a column {name}")

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        if not len(rows) or not self.media:
            return rows.drop_columns(["_part"])
        source = self.parts[rows["_part"][0].as_py()].source
        return read_media(source, rows.drop_columns(["_part"]))


@dataclass(frozen=True)
class DocumentInput:
    """Documents, in the order of their part."""

    documents: TableRecord

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(DOCUMENTS.names)

    @property
    def is_remote(self) -> bool:
        return False  # documents lie in the workspace

    def rows(self, storage: Storage, part: int) -> pa.Table:
        ids = storage.read_table(self.documents.path(part), ["doc_id", "error"])
        numbers = pa.array(range(len(ids)), pa.int32())
        return ids.append_column("_row", numbers).append_column(
            "_part", pa.repeat(pa.scalar(part), len(ids))
        )

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        if not len(rows):
            bare = pa.schema([field.remove_metadata() for field in DOCUMENTS])
            return bare.empty_table()
        path = self.documents.path(rows["_part"][0].as_py())
        return storage.read_rows(path, rows["_row"].to_pylist())
