"""Where raw media come from: folders, WebDataset tars, Parquet, JSONL and CSV, local or on S3.

A source is listed once (files only), its files are grouped into parts, and a phase turns each part
into rows of `samples`: where every sample's bytes lie, its given caption, or why it cannot be had.
Media are not copied; `read_media` fetches them by byte range when a phase needs them, and says of
a video where it lies.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.config import ConfigError
from infra.schema import ERROR_TYPE, FILE_TYPE, SAMPLES, digest
from infra.storage import Storage
from pipelines import source_csv, source_folder, source_jsonl, source_parquet, source_webdataset
from pipelines.media_files import locate, read_ranges
from pipelines.phase import Phase, Stage
from pipelines.progress import say
from pipelines.source import Entry, File, Source

LISTING = pa.schema(
    [
        ("entry", pa.string()),  # uri, and the place in it of a piece
        ("uri", pa.string()),
        ("sidecar", pa.string()),
        ("size_bytes", pa.int64()),
        ("start", pa.int64()),
    ],
)
INDEX_ROWS = 8_192  # rows of `samples` that are Python objects at a time
# A part of texts: about 300,000 pages, compressed. Pictures are ten times fewer in as many bytes.
PARQUET_TEXT_BYTES = 256 << 20


@dataclass(frozen=True)
class IndexInput:
    """The files of a source, part by part, turned into rows of `samples`."""

    source: Source
    listing: str  # folder of the listing in the workspace, a file per part
    columns: tuple[str, ...] = tuple(SAMPLES.names)

    @property
    def is_remote(self) -> bool:
        return not self.source.storage.is_local

    def rows(self, storage: Storage, part: int) -> pa.Table:
        return storage.read_table(f"{self.listing}/{part:05d}.parquet")

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        # A Parquet file may hold millions of rows: as dicts they would take ten times the memory.
        samples = _index(self.source, rows)
        tables = [_table([])]
        while some := list(itertools.islice(samples, INDEX_ROWS)):
            tables.append(_table(some))
        return pa.concat_tables(tables)


def _index(source: Source, entries: pa.Table) -> Iterator[dict[str, Any]]:
    index: Callable[[Any, Storage, pa.Table], Iterable[dict[str, Any]]] = {
        "folder": source_folder.index,
        "webdataset": source_webdataset.index,
        "parquet": source_parquet.index,
        "jsonl": source_jsonl.index,
        "csv": source_csv.index,
    }[source.kind]
    return iter(index(source, source.storage, entries))


def _table(samples: list[dict[str, Any]]) -> pa.Table:
    bare = pa.schema([field.remove_metadata() for field in SAMPLES])
    return pa.Table.from_pylist(samples, schema=bare)


def first_media(source: Source) -> bytes | None:
    """The bytes of the first sample that has any; None if there is none. Raises ConfigError."""
    for entry in list_source(source):
        samples = _index(source, pa.Table.from_pylist([entry._asdict()], LISTING))
        for sample in samples:
            data = read_media(source, _table([sample]))["bytes"][0].as_py()
            if data is not None:
                return bytes(data)
    return None


def index_phase(source: Source, table: str | None = None) -> Phase:
    """The phase that lists a source as ``table``. Raises ConfigError if the source is empty.

    By default ``samples/<source>``: every file, or row of a table, is a sample. Where videos are
    cut into clips, ``videos/<source>``, of which `clip_samples.clip_phase` makes the samples.
    """
    entries = list_source(source)
    table = table or f"samples/{source.name}"
    version = digest(source.kind, *(f"{entry.uri}|{entry.version}" for entry in entries))
    listing = f"{table}/listing-{version[:12]}"
    parts = parts_of(source, entries)
    options = {k: getattr(source, k) for k in ("name", "kind", "image_column", "caption_column")}
    if source.media == "text":
        options["media"] = "text"
        options |= {"columns": source.text_columns}
    elif source.media != "image":
        options |= {"media": source.media, "columns": source.media_columns}
        options |= {"video_stream": source.video_stream}
    return Phase(
        table=table,
        key="sample_id",
        schema=SAMPLES,
        input=IndexInput(source, listing),
        num_parts=len(parts),
        stages=(Stage(operators=(), batch_rows=1024),),
        spec={"source": options, "listing": version, "files_per_part": source.files_per_part},
        value_inputs=(),
        unit_rows=4096 if source.kind == "folder" else 1,
        facts={"path": source.storage.path(), "kind": source.kind},
        prepare=partial(_write_listing, listing, parts),
    )


def _write_listing(listing: str, parts: list[list[Entry]], storage: Storage) -> None:
    """Write the entries of each part where they are missing, and drop older listings."""
    table, _, own = listing.rpartition("/")
    for name in storage.names(table):
        if name.startswith("listing-") and name != own:
            storage.remove(f"{table}/{name}")
    there = set(storage.names(listing))
    for part, some in enumerate(parts):
        name = f"{part:05d}.parquet"
        if name not in there:
            rows = [e._asdict() | {"entry": f"{e.uri}#{e.start:015d}"} for e in some]
            listed = pa.Table.from_pylist(rows, LISTING)
            storage.write_part(f"{listing}/{name}", listed, LISTING, "entry")


def parts_of(source: Source, entries: list[Entry]) -> list[list[Entry]]:
    """The entries of each part: no more of them, and of Parquet with texts no more bytes."""
    most = PARQUET_TEXT_BYTES if (source.kind, source.media) == ("parquet", "text") else math.inf
    parts: list[list[Entry]] = []
    size = 0
    for entry in entries:
        size += entry.size_bytes
        if not parts or len(parts[-1]) == source.files_per_part or size > most:
            parts.append([])
            size = entry.size_bytes
        parts[-1].append(entry)
    return parts


def list_source(source: Source) -> list[Entry]:
    """Every file of the source that holds media, sorted by uri. Raises ConfigError."""
    place = f"source `{source.name}`: {source.path}"
    source.storage.check()
    if not source.storage.exists():
        raise ConfigError(f"{place} does not exist: check `path` in the recipe")
    if source.storage.fs.isfile(source.storage.path()):
        raise ConfigError(f"{place} is a file: `path` must be the folder that holds it")
    files = [File(*found) for found in source.storage.find()]
    list_entries = {
        "folder": source_folder.list_entries,
        "webdataset": source_webdataset.list_entries,
        "parquet": source_parquet.list_entries,
        "jsonl": source_jsonl.list_entries,
        "csv": source_csv.list_entries,
    }[source.kind]
    try:
        entries, ignored = list_entries(source, files)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None
    if not entries:
        raise ConfigError(
            f"{place} holds no {source.kind} files ({len(files)} other files): check `path`, `kind`"
        )
    if ignored:
        say(f"  {place}: {ignored:,} files are no media and are left out")
    return sorted(entries)


def read_media(source: Source, rows: pa.Table) -> pa.Table:
    """Append ``bytes`` to rows of `samples`; what cannot be read becomes the row's error.

    A text's bytes are one JSON object, whatever its source (see `operators.text_probe`), as are a
    web document's. A video gets ``file`` instead (`schema.FILE_TYPE`): a film is not for tables.

    A missing or forbidden file is bad data. Any other fault of the store is raised: retrying the
    phase is the remedy, not a failed row.
    """
    errors = rows["error"].to_pylist()
    if source.media == "video":
        rows = rows.append_column("file", pa.array(locate(source, rows, errors), FILE_TYPE))
    else:
        rows = rows.append_column(
            "bytes", pa.array(_bytes(source, rows, errors), pa.large_binary())
        )
    place = rows.column_names.index("error")
    return rows.set_column(place, "error", pa.array(errors, ERROR_TYPE))


def media_column(source: Source) -> str:
    """The column that `read_media` appends."""
    return "file" if source.media == "video" else "bytes"


def _bytes(
    source: Source, rows: pa.Table, errors: list[dict[str, str] | None]
) -> list[bytes | None]:
    storage = source.storage
    data: list[bytes | None] = [None] * len(rows)
    ranged = []
    in_parquet = []
    in_lines = []
    columns = (rows[name].to_pylist() for name in ("uri", "offset", "length"))
    for i, (uri, offset, length) in enumerate(zip(*columns, strict=True)):
        if errors[i] is not None:
            continue
        if source.kind == "parquet" and offset is not None:
            in_parquet.append((i, uri, offset))
        elif source.kind == "jsonl":
            in_lines.append((i, uri, offset, length))
        elif length == 0:
            data[i] = b""
        else:
            ranged.append((i, uri, offset or 0, length))
    if in_parquet:
        source_parquet.read_rows(source, storage, in_parquet, data, errors)
    if in_lines:
        source_jsonl.read_rows(source, storage, in_lines, data, errors)
    if ranged:
        read_ranges(storage, ranged, data, errors)
    return data


def load_order(rows: pa.Table) -> pa.Table:
    """Rows in the order in which their bytes lie, so that units read sequentially."""
    keys = [("uri", "ascending"), ("offset", "ascending"), ("sample_id", "ascending")]
    return rows.take(pc.sort_indices(rows, sort_keys=keys))
