"""CSV and TSV tables of videos, with a header; read from start to end, a row at a time.

Cells that are numbers as JSON writes them become numbers in the metadata, all others stay text. A
sample's key is ``<file>#<row>``, counted from 0 behind the header.
"""

import csv
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from infra.storage import Storage
from pipelines.source import Entry, File, Source
from pipelines.video_rows import failed_row, video_row

_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,15})(\.\d+)?(?:[eE][-+]?\d{1,2})?")


def list_entries(source: Source, files: list[File]) -> tuple[list[Entry], int]:
    """The tables, and how many other files there are. ValueError where videos cannot be there."""
    found = [
        Entry(uri, None, size, f"{size}|{version}")
        for uri, size, version in files
        if uri.lower().endswith((".csv", ".tsv"))
    ]
    if found:
        uri = min(found).uri
        with source.storage.open(uri) as file:
            header = next(_reader(file, uri), [])
        _check_header(source, uri, header)
    return found, len(files) - len(found)


def index(source: Source, storage: Storage, entries: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows of `samples` for all rows of these tables."""
    for uri in entries["uri"].to_pylist():
        try:
            with storage.open(uri) as file:
                yield from _index_table(source, uri, _reader(file, uri))
        except FileNotFoundError:
            message = "the file is gone since it was listed"
            yield failed_row(source, uri, "missing", "missing", message)


def _index_table(source: Source, uri: str, rows: Iterator[list[str]]) -> Iterator[dict[str, Any]]:
    try:
        header = next(rows, [])
        _check_header(source, uri, header)
        for number, cells in enumerate(rows):
            if len(cells) != len(header):
                message = f"row {number} has {len(cells)} cells, the header {len(header)}"
                yield failed_row(source, uri, number, "ragged_row", message)
            elif any(_is_broken(cell) for cell in cells):
                yield failed_row(source, uri, number, "bad_utf8", f"row {number} is not UTF-8")
            else:
                values = dict(zip(header, cells, strict=True))
                others = values.keys() - set(source.media_columns)
                typed = {name: _value(values[name]) for name in others}
                yield video_row(source, uri, number, values | typed)
    except csv.Error as error:
        yield failed_row(source, uri, "broken", "broken_csv", str(error))
    except ValueError as error:  # of the header
        yield failed_row(source, uri, "broken", "wrong_schema", str(error))


def _reader(file: BinaryIO, uri: str) -> Iterator[list[str]]:
    # A byte that is no UTF-8 costs its own row, so it must get through to it.
    lines = (line.decode("utf-8", "surrogateescape") for line in file)
    marked = (line.removeprefix("\ufeff") if not i else line for i, line in enumerate(lines))
    rows = csv.reader(marked, delimiter="\t" if uri.lower().endswith(".tsv") else ",")
    return (cells for cells in rows if cells)  # blank lines are no rows


def _check_header(source: Source, uri: str, header: list[str]) -> None:
    if source.video_column not in header:
        names = ", ".join(name[:40] for name in header[:40])
        raise ValueError(
            f"{uri} has no column `{source.video_column}`: set `video_column` to one of {names}"
        )
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise ValueError(f"{uri} has two columns `{min(repeated)}`: rename one")


def _is_broken(cell: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in cell)


def _value(cell: str) -> str | int | float | None:
    found = _NUMBER.fullmatch(cell)
    if found is None:
        return cell or None
    return int(cell) if cell.lstrip("-").isdigit() else float(cell)
