"""Parquet files: images and their URIs, texts and chats, web documents, tables of videos."""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.schema import sample_id
from infra.storage import Storage
from operators.text_probe import TextError
from pipelines.source import Entry, File, Source
from pipelines.source_jsonl import sample_bytes
from pipelines.video_rows import video_row


class _WrongSchemaError(ValueError):
    """A file without the column that the recipe names."""


_UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError)


def list_entries(source: Source, files: list[File]) -> tuple[list[Entry], int]:
    """The Parquet files, and how many others. Raises ValueError where media cannot be there."""
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


def index(source: Source, storage: Storage, entries: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows of `samples` for all rows of these files; pictures and texts stay where they are."""
    for uri in entries["uri"].to_pylist():
        try:
            with storage.open(uri) as file:
                yield from _index_file(source, uri, pq.ParquetFile(file))
        except (_WrongSchemaError, *_UNREADABLE) as error:
            failed = _explain(error, "index", uri)
            yield _row(source, f"{uri}#broken", uri, None, None) | {"error": failed}


def _index_file(source: Source, uri: str, file: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    schema = file.schema_arrow
    media = _check_schema(source, uri, schema)
    if source.media == "video":
        yield from _index_videos(source, uri, file, media)
        return
    is_uri = source.media == "image" and _is_text(schema.field(source.image_column).type)
    read = [field.name for field in schema if field.name not in media and _is_plain(field.type)]
    number = 0
    for batch in file.iter_batches(columns=[*read, *(media if is_uri else [])]):
        for values in batch.to_pylist():
            caption = None
            if source.media == "image":
                caption = values.pop(source.caption_column, None)
            picture = values.pop(source.image_column, None) if is_uri else None
            row = _row(source, f"{uri}#{number}", uri, number, caption)
            if is_uri and picture:
                row |= {"uri": picture, "offset": None}
            elif is_uri:
                row["error"] = _error("no_image", f"{uri} row {number}: the URI is null")
            row["metadata"] = json.dumps(values, sort_keys=True, default=str) if values else None
            number += 1
            yield row


def _index_videos(
    source: Source, uri: str, file: pq.ParquetFile, media: list[str]
) -> Iterator[dict[str, Any]]:
    read = [f.name for f in file.schema_arrow if f.name in media or _is_plain(f.type)]
    number = 0
    for batch in file.iter_batches(columns=read):
        for values in batch.to_pylist():
            yield video_row(source, uri, number, values)
            number += 1


def _check_schema(source: Source, uri: str, schema: pa.Schema) -> list[str]:
    """The columns that hold the media; raises _WrongSchemaError where they cannot."""
    if source.media == "text":
        return _text_columns(source, uri, schema)
    if source.media == "interleaved":
        return _document_columns(source, uri, schema)
    if source.media == "video":
        return _video_columns(source, uri, schema)
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
    return [name]


def _text_columns(source: Source, uri: str, schema: pa.Schema) -> list[str]:
    found = [name for name in source.text_columns if name in schema.names]
    pair = {source.prompt_column, source.response_column}
    if not ({source.messages_column, source.text_column} & {*found} or pair <= {*found}):
        raise _WrongSchemaError(
            f"{uri} has none of the columns {', '.join(source.text_columns)}: set `text_column`, "
            "`messages_column`, or `prompt_column` and `response_column`, to some of "
            + ", ".join(schema.names)
        )
    for name in found:
        type_ = schema.field(name).type
        may_be_chat = name in (source.messages_column, source.prompt_column)
        if not (_is_text(type_) or (may_be_chat and _is_messages(type_))):
            expected = "text or a list of {role, content}" if may_be_chat else "text"
            raise _WrongSchemaError(f"{uri}: column `{name}` is {type_}, expected {expected}")
    return found


def _document_columns(source: Source, uri: str, schema: pa.Schema) -> list[str]:
    for option in ("texts_column", "images_column"):
        name = getattr(source, option)
        if name not in schema.names:
            names = ", ".join(schema.names)
            raise _WrongSchemaError(
                f"{uri} has no column `{name}`: set `{option}` to one of {names}"
            )
        type_ = schema.field(name).type
        if not (_is_list(type_) and _is_text(type_.value_type)):
            raise _WrongSchemaError(f"{uri}: column `{name}` is {type_}, expected a list of texts")
    return [source.texts_column, source.images_column]


def _video_columns(source: Source, uri: str, schema: pa.Schema) -> list[str]:
    name = source.video_column
    if name not in schema.names:
        names = ", ".join(schema.names)
        raise _WrongSchemaError(
            f"{uri} has no column `{name}`: set `video_column` to one of {names}"
        )
    type_ = schema.field(name).type
    if not _is_text(type_):
        raise _WrongSchemaError(f"{uri}: column `{name}` is {type_}, expected names of video files")
    return [column for column in source.media_columns if column in schema.names]


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_)


def _is_messages(type_: pa.DataType) -> bool:
    if not _is_list(type_):
        return False
    of = type_.value_type
    if not pa.types.is_struct(of):
        return False
    names = {field.name for field in of if _is_text(field.type)}
    return {"role", "content"} <= names or {"from", "value"} <= names


def _is_bytes(type_: pa.DataType) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_)


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        return _is_text(type_.value_type)
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _is_plain(type_: pa.DataType) -> bool:
    return not (pa.types.is_nested(type_) or _is_bytes(type_))


def _row(source: Source, key: str, uri: str, number: int | None, caption: Any) -> dict[str, Any]:
    return {
        "sample_id": sample_id(source.name, key),
        "source": source.name,
        "key": key,
        "uri": uri,
        "offset": number,
        "length": None,
        "media": source.media,
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
    """Fill ``data[i]`` with the media of each wanted (i, uri, row), or ``errors[i]``.

    Units follow the order of the file, and the row group read last stays in memory: one of texts
    may hold a million rows, of which a batch takes some hundred.
    """
    by_file: dict[str, dict[int, int]] = {}
    for i, uri, number in wanted:
        by_file.setdefault(uri, {})[number] = i
    for uri, places in by_file.items():
        try:
            version = _version(storage, uri)
            first = 0
            for group, count in enumerate(_group_rows(storage, uri, version)):
                here = {n - first: i for n, i in places.items() if first <= n < first + count}
                if here:
                    _read_group(source, storage, (uri, version, group), here, data, errors)
                first += count
        except _UNREADABLE as error:
            for i in places.values():
                errors[i] = _explain(error, "load", uri)


def _read_group(
    source: Source,
    storage: Storage,
    group: tuple[str, str, int],
    places: dict[int, int],
    data: list[bytes | None],
    errors: list[dict[str, str] | None],
) -> None:
    uri, _, number = group
    try:
        rows = _group(source, storage, *group)
    except (_WrongSchemaError, *_UNREADABLE) as error:
        # Only this group's rows: which others are read along must not matter.
        for i in places.values():
            errors[i] = _explain(error, "load", f"{uri} row group {number}")
        return
    for row, i in places.items():
        what = f"{uri} row {row} of row group {number}"
        if source.media == "image":
            value = rows[source.image_column][row].as_py()
            data[i] = value["bytes"] if isinstance(value, dict) else value
            if data[i] is None:
                errors[i] = _error("no_image", f"{what}: the image is null")
            continue
        try:
            data[i] = sample_bytes(source, {n: rows[n][row].as_py() for n in rows.column_names})
        except UnicodeDecodeError:
            errors[i] = _error("bad_utf8", f"{what} is not UTF-8")
        except TextError as error:
            errors[i] = _error(error.type, f"{what}: {error}")


def _version(storage: Storage, uri: str) -> str:
    """Changes with the file: a row group of an older one must not be taken for its own."""
    info = storage.fs.info(storage.path(uri))
    return f"{info['size']}|{info.get('ETag') or info.get('mtime')}"


@lru_cache(maxsize=4)
def _group_rows(storage: Storage, uri: str, version: str) -> list[int]:
    with storage.open(uri) as file:
        metadata = pq.ParquetFile(file).metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@lru_cache(maxsize=1)
def _group(source: Source, storage: Storage, uri: str, version: str, group: int) -> pa.Table:
    with storage.open(uri) as file:
        parquet = pq.ParquetFile(file)
        columns = _check_schema(source, uri, parquet.schema_arrow)
        return parquet.read_row_group(group, columns=columns)


def _explain(error: Exception, stage: str, place: str) -> dict[str, str]:
    """The error of a file that cannot be read; what is the store's fault is raised again."""
    missing = isinstance(error, FileNotFoundError)
    # Arrow raises OSError for damaged files too, without a number.
    if isinstance(error, OSError) and error.errno is not None and not missing:
        raise error
    if isinstance(error, _WrongSchemaError):
        return {"stage": stage, "type": "wrong_schema", "message": str(error)}
    kind = "missing" if missing else "broken_parquet"
    return {"stage": stage, "type": kind, "message": f"{place}: {' '.join(str(error).split())}"}
