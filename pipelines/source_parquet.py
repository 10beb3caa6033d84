"""Parquet files with image bytes, the Hugging Face image struct, or URIs of images."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.schema import sample_id
from infra.storage import Storage
from pipelines.source import Entry, File, Source


class _WrongSchemaError(ValueError):
    """A file without the column that the recipe names."""


_UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError)


def list_entries(source: Source, files: list[File]) -> tuple[list[Entry], int]:
    """The Parquet files, and how many others. Raises ValueError where images cannot be there."""
    found = [
        Entry(uri, None, size, f"{size}|{v}") for uri, size, v in files if uri.endswith(".parquet")
    ]
    if found:
        with source.storage.open(sorted(found)[0][0]) as file:
            try:
                schema = pq.read_schema(file)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{found[0][0]} is no Parquet file ({error})") from None
        _check_schema(source, sorted(found)[0][0], schema)
    return found, len(files) - len(found)


def index(source: Source, storage: Storage, entries: pa.Table) -> list[dict[str, Any]]:
    """Rows of `samples` for all rows of these files; the pictures stay where they are."""
    rows: list[dict[str, Any]] = []
    for uri in entries["uri"].to_pylist():
        try:
            with storage.open(uri) as file:
                rows += _index_file(source, uri, pq.ParquetFile(file))
        except _WrongSchemaError as error:
            failed = {"stage": "index", "type": "wrong_schema", "message": str(error)}
            rows.append(_row(source.name, f"{uri}#broken", uri, None, None) | {"error": failed})
        except _UNREADABLE as error:
            failed = _explain(error, "index", uri)
            rows.append(_row(source.name, f"{uri}#broken", uri, None, None) | {"error": failed})
    return rows


def _index_file(source: Source, uri: str, file: pq.ParquetFile) -> list[dict[str, Any]]:
    schema = file.schema_arrow
    _check_schema(source, uri, schema)
    image_type = schema.field(source.image_column).type
    is_uri = _is_text(image_type)
    read = [
        field.name
        for field in schema
        if field.name != source.image_column and _is_plain(field.type)
    ]
    columns = read + ([source.image_column] if is_uri else [])
    rows: list[dict[str, Any]] = []
    for batch in file.iter_batches(columns=columns):
        for values in batch.to_pylist():
            number = len(rows)
            caption = values.pop(source.caption_column, None)
            picture = values.pop(source.image_column, None)
            row = _row(source.name, f"{uri}#{number}", uri, number, caption)
            if is_uri and picture:
                row |= {"uri": picture, "offset": None}
            elif is_uri:
                row["error"] = _error("no_image", f"{uri} row {number}: the URI is null")
            row["metadata"] = json.dumps(values, sort_keys=True, default=str) if values else None
            rows.append(row)
    return rows


def _check_schema(source: Source, uri: str, schema: pa.Schema) -> None:
    name = source.image_column
    if name not in schema.names:
        raise _WrongSchemaError(
            f"{uri} has no column `{name}`: set `image_column` to one of {', '.join(schema.names)}"
        )
    type_ = schema.field(name).type
    is_image_struct = pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0
    if not (is_image_struct or _is_bytes(type_) or _is_text(type_)):
        raise _WrongSchemaError(
            f"{uri}: column `{name}` is {type_}, expected bytes, URIs or a struct with `bytes`"
        )


def _is_bytes(type_: pa.DataType) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_)


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _is_plain(type_: pa.DataType) -> bool:
    return not (pa.types.is_nested(type_) or _is_bytes(type_))


def _row(source: str, key: str, uri: str, number: int | None, caption: Any) -> dict[str, Any]:
    return {
        "sample_id": sample_id(source, key),
        "source": source,
        "key": key,
        "uri": uri,
        "offset": number,
        "length": None,
        "media": "image",
        "caption": caption if isinstance(caption, str) else None,
        "metadata": None,
        "error": None,
    }


def _error(kind: str, message: str) -> dict[str, str]:
    return {"stage": "load", "type": kind, "message": message}


def read_rows(
    source: Source,
    storage: Storage,
    wanted: list[tuple[int, str, int]],
    data: list[bytes | None],
    errors: list[dict[str, str] | None],
) -> None:
    """Fill ``data[i]`` with the picture of each wanted (i, uri, row), or ``errors[i]``.

    Reads each row group that holds wanted rows once: units follow the order of the file.
    """
    by_file: dict[str, list[tuple[int, int]]] = {}
    for i, uri, number in wanted:
        by_file.setdefault(uri, []).append((number, i))
    for uri, numbers in by_file.items():
        try:
            with storage.open(uri) as handle:
                _read_file(source, uri, pq.ParquetFile(handle), dict(numbers), data, errors)
        except _UNREADABLE as error:
            for _, i in numbers:
                errors[i] = _explain(error, "load", uri)


def _read_file(
    source: Source,
    uri: str,
    file: pq.ParquetFile,
    places: dict[int, int],
    data: list[bytes | None],
    errors: list[dict[str, str] | None],
) -> None:
    column = source.image_column
    first = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        here = {number for number in places if first <= number < first + count}
        if here:
            try:
                values = file.read_row_group(group, columns=[column])[column]
            except _UNREADABLE as error:
                # Only this group's rows: which others are read along must not matter.
                for number in here:
                    errors[places[number]] = _explain(error, "load", f"{uri} row group {group}")
                here = set()
            for number in here:
                value, i = values[number - first].as_py(), places[number]
                data[i] = value["bytes"] if isinstance(value, dict) else value
                if data[i] is None:
                    errors[i] = _error("no_image", f"{uri} row {number}: the image is null")
        first += count


def _explain(error: Exception, stage: str, place: str) -> dict[str, str]:
    """The error of a file that cannot be read; what is the store's fault is raised again."""
    missing = isinstance(error, FileNotFoundError)
    # Arrow raises OSError for damaged files too, without a number.
    if isinstance(error, OSError) and error.errno is not None and not missing:
        raise error
    kind = "missing" if missing else "broken_parquet"
    return {"stage": stage, "type": kind, "message": f"{place}: {' '.join(str(error).split())}"}
