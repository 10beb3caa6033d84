"""Web documents with the files of their pictures: all of them to be judged, or the kept ones."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from infra.runs import TableRecord
from infra.storage import Storage
from operators.text_probe import TextError
from operators.web_page import PICTURE_TYPE, parse, wanted_images
from pipelines.inputs import KeptInput, SampleInput
from pipelines.media_files import Errors, path_of, read_ranges
from pipelines.source import Source

_PATH_BYTES = 4_096  # PATH_MAX of Linux: beyond it a client raises what looks like its own fault


@dataclass(frozen=True)
class WebInput:
    """Samples of a source with ``pictures``: the files that the operator is to judge."""

    samples: SampleInput
    max_images: int

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.samples.columns, "pictures")

    @property
    def is_remote(self) -> bool:
        return self.samples.is_remote

    def rows(self, storage: Storage, part: int) -> pa.Table:
        return self.samples.rows(storage, part)

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        rows = self.samples.load(storage, rows)
        wanted = [_wanted(data.as_py(), self.max_images) for data in rows["bytes"]]
        return rows.append_column("pictures", _pictures(self.samples.source, wanted))


@dataclass(frozen=True)
class KeptWebInput:
    """Kept samples with ``images``, as they were judged, and the files of those that are kept.

    ``scores`` are the tables ``scores/<source>/web``.
    """

    kept: KeptInput
    scores: tuple[TableRecord, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.kept.columns, "images", "pictures")

    @property
    def is_remote(self) -> bool:
        return self.kept.is_remote

    def rows(self, storage: Storage, part: int) -> pa.Table:
        rows = self.kept.rows(storage, part)
        place = self.kept.parts[part]
        table = f"scores/{place.source.name}/web"
        [record] = [record for record in self.scores if record.table == table]
        scores = storage.read_table(record.path(place.part), ["sample_id", "images"])
        at = pc.index_in(rows["sample_id"], scores["sample_id"].combine_chunks())
        return rows.append_column("images", scores["images"].take(at))

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        if not len(rows):
            rows = self.kept.load(storage, rows)
            rows = rows.append_column("bytes", pa.array([], pa.large_binary()))
            return rows.append_column("pictures", pa.array([], pa.list_(PICTURE_TYPE)))
        source = self.kept.parts[rows["_part"][0].as_py()].source
        rows = self.kept.load(storage, rows)
        wanted = []
        for data, images in zip(rows["bytes"], rows["images"].to_pylist(), strict=True):
            kept = {image["place"] for image in images or () if image["kept"]}
            most = len(images or ())
            wanted.append([one for one in _wanted(data.as_py(), most) if one[0] in kept])
        return rows.append_column("pictures", _pictures(source, wanted))


def _wanted(data: bytes | None, max_images: int) -> list[tuple[int, str]]:
    """(place, name) of a document's pictures; none of one that its operator will refuse."""
    try:
        return wanted_images(parse(data), max_images)
    except TextError:
        return []


def _pictures(source: Source, wanted: Sequence[Sequence[tuple[int, str]]]) -> pa.Array:
    """The files of each row's (place, name), each name fetched once."""
    storage = source.storage
    names = list(dict.fromkeys(name for row in wanted for _, name in row))
    data: list[bytes | None] = [None] * len(names)
    errors: Errors = [_refused(storage, name) for name in names]
    ranged: list[tuple[int, str, int, int | None]] = [
        (i, name, 0, None) for i, name in enumerate(names) if errors[i] is None
    ]
    read_ranges(storage, ranged, data, errors)
    number = {name: i for i, name in enumerate(names)}
    rows = [
        [
            {"place": place, "data": data[number[name]], "error": errors[number[name]]}
            for place, name in row
        ]
        for row in wanted
    ]
    return pa.array(rows, pa.list_(PICTURE_TYPE))


def _refused(storage: Storage, name: str) -> dict[str, str] | None:
    """Why a name, which strangers wrote, is not asked for: it leads out of the root, or nowhere."""
    problem = None
    path = path_of(storage, name)
    if ".." in name.split("/"):
        problem = f"{name[:200]!r} leads out of the source"
    elif path is None or len(os.fsencode(path)) >= _PATH_BYTES:
        problem = f"{name[:200]!r} is no file of this store"
    elif storage.is_local and os.path.exists(path) and not os.path.isfile(path):
        problem = f"{name[:200]!r} is no file"  # a device or a pipe would never end
    return None if problem is None else {"stage": "load", "type": "bad_uri", "message": problem}
