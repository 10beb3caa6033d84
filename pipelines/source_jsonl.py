"""JSON Lines: a text, an instruction, a chat, a web document or a video's span per line.

A file is listed in pieces of `PIECE_BYTES`, so that a large one is indexed by many workers, each of
which holds one piece: a line belongs to the piece that holds its first byte. A sample's key is
``<file>#<byte>``, the place where its line begins, which no other line has to be read for. Blank
lines are no samples. A byte order mark and CRLF are let pass. Files may have any size.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from infra.schema import sample_id
from infra.storage import Storage
from operators.text_probe import TextError
from pipelines.source import Entry, File, Source
from pipelines.video_rows import failed_row, video_row

PIECE_BYTES = 8 << 20  # what a worker indexes at a time
MAX_LINE_BYTES = 8 << 20  # several books; a longer line is no text but a damaged file
MAX_GAP_BYTES = 64 << 10  # between lines that are fetched at once
MAX_FETCH_BYTES = 16 << 20

_MARK = b"\xef\xbb\xbf"
_SHAREGPT = {"human": "user", "gpt": "assistant"}


def list_entries(source: Source, files: list[File]) -> tuple[list[Entry], int]:
    """The pieces of all JSONL files, and how many other files. ValueError for compressed ones."""
    packed = [uri for uri, *_ in files if ".jsonl." in uri.rpartition("/")[2]]
    if packed:
        raise ValueError(
            f"{packed[0]} is compressed and cannot be read by range: unpack to .jsonl, or make "
            "Parquet of it"
        )
    found = [file for file in files if file.uri.endswith(".jsonl")]
    pieces = [
        Entry(uri, None, size, f"{size}|{version}|{start}", start)
        for uri, size, version in found
        for start in range(0, max(size, 1), PIECE_BYTES)
    ]
    return pieces, len(files) - len(found)


def index(source: Source, storage: Storage, entries: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows of `samples` for all lines of these pieces; texts and videos stay where they are."""
    for entry in entries.to_pylist():
        uri, start = entry["uri"], entry["start"]
        try:
            for offset, line in lines_of(storage, uri, start, entry["size_bytes"]):
                if line is None:
                    message = f"the line is longer than {MAX_LINE_BYTES:,} bytes"
                    yield _row(source, uri, offset, None) | {"error": _error("too_long", message)}
                elif line.removeprefix(_MARK).strip():
                    yield _index_line(source, uri, offset, line)
        except FileNotFoundError:
            gone = _error("missing", f"{uri} is gone since it was listed")
            row = _row(source, uri, start, None)
            key = f"{uri}#missing-{start}"
            yield row | {"key": key, "sample_id": sample_id(source.name, key), "error": gone}


def lines_of(
    storage: Storage, uri: str, start: int, size_bytes: int
) -> Iterator[tuple[int, bytes | None]]:
    """(offset, line without its end) of the lines that begin in the piece at ``start``.

    None for a line longer than `MAX_LINE_BYTES`. ``size_bytes`` is the file's.
    """
    if not size_bytes:
        return
    stop = min(start + PIECE_BYTES, size_bytes)
    before = min(start, 1)  # a line begins where the byte before it ends another
    first = start - before
    data = storage.read(uri, first, stop - first)
    at = data.find(b"\n") + 1 if before else 0
    if before and not at:
        return
    while at < len(data) and first + at < stop:
        end = data.find(b"\n", at)
        if end < 0:
            data, end = _read_on(storage, uri, first, data, at, size_bytes)
        offset = first + at
        yield offset, data[at:end] if end - at <= MAX_LINE_BYTES else None
        at = end + 1


def _read_on(
    storage: Storage, uri: str, first: int, data: bytes, at: int, size_bytes: int
) -> tuple[bytes, int]:
    """``data`` with the rest of its last line, which begins ``at``, and where that ends."""
    step = 64 << 10
    while first + len(data) < size_bytes and len(data) - at <= MAX_LINE_BYTES:
        more = storage.read(uri, first + len(data), min(step, size_bytes - first - len(data)))
        found = more.find(b"\n")
        data += more
        if found >= 0:
            return data, len(data) - len(more) + found
        if not more:  # shorter than when it was listed
            break
        step *= 4
    return data, len(data)


def _index_line(source: Source, uri: str, offset: int, line: bytes) -> dict[str, Any]:
    if source.media == "video":
        try:
            return video_row(source, uri, offset, _parse(line))
        except TextError as error:
            return failed_row(source, uri, offset, error.type, f"byte {offset:,}: {error}")
    row = _row(source, uri, offset, len(line))
    try:
        values = _parse(line)
        sample_bytes(source, values)
        others = {k: v for k, v in values.items() if k not in source.media_columns}
        if others:
            row["metadata"] = _metadata(others)
    except TextError as error:
        row["error"] = _error(error.type, str(error))
    return row


def _parse(line: bytes) -> dict[str, Any]:
    """The object of a line; raises TextError."""
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise TextError("bad_utf8", f"byte {error.start:,} of the line is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise TextError("bad_json", f"the line is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise TextError("bad_json", f"the line is {type(values).__name__}, expected an object")
    return values


def _metadata(values: dict[str, Any]) -> str:
    """The other fields as JSON that any reader takes; raises TextError."""
    try:
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        raise TextError("bad_json", "a field beside the text holds half a pair") from None
    except (ValueError, RecursionError):
        raise TextError("bad_json", "a field beside the text is no JSON number, or deep") from None
    return json.dumps(values, sort_keys=True)


def sample_bytes(source: Source, values: Mapping[str, Any]) -> bytes:
    """A row's text as one JSON object, whatever its columns; see `operators.text_probe`.

    A web document's is {"texts": [..], "images": [..]}, as long as each other, each place a text or
    null. Raises TextError where there is none; whether roles and contents are right is for the
    probe, and whether pictures are there for what opens them.
    """
    if source.media == "interleaved":
        return _document_bytes(source, values)
    given = [values.get(name) for name in source.text_columns]
    messages, prompt, response, text = given
    sample: dict[str, Any]
    if messages is not None:
        sample = {"messages": _messages(messages)}
    elif prompt is not None and response is not None:
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        answer = {"role": "assistant", "content": response}
        sample = {"messages": [*_messages(asked), answer]}
    elif text is not None:
        sample = {"text": text}
    else:
        names = ", ".join(source.text_columns)
        raise TextError(
            "no_text", f"the row has no messages, prompt and response, or text: {names}"
        )
    try:
        return json.dumps(sample, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise TextError("bad_text", "the text holds half a surrogate pair") from None


def _document_bytes(source: Source, values: Mapping[str, Any]) -> bytes:
    lists = []
    for name in (source.texts_column, source.images_column):
        value = values.get(name)
        if value is None:
            raise TextError("no_document", f"the row has no `{name}`")
        if not isinstance(value, list) or any(not isinstance(v, str | None) for v in value):
            raise TextError("bad_document", f"`{name}` is no list of texts and nulls")
        lists.append(value)
    texts, images = lists
    if len(texts) != len(images):
        counts = f"{len(texts)} texts and {len(images)} images"
        raise TextError("bad_document", f"the lists are not parallel: {counts}")
    try:
        return json.dumps({"texts": texts, "images": images}, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise TextError("bad_text", "the text holds half a surrogate pair") from None


def _messages(value: Any) -> list[dict[str, Any]]:
    """Messages as a list of role and content alone, as {from, value} (ShareGPT) or JSON, too."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise TextError("bad_messages", f"the messages are not JSON: {error}") from None
    if not isinstance(value, list):
        raise TextError("bad_messages", f"the messages are {type(value).__name__}, no list")
    found = []
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise TextError("bad_messages", f"message {number} is {type(message).__name__}")
        if message.get("tool_calls"):
            raise TextError("bad_messages", f"message {number} calls tools: not supported")
        role = message.get("role", message.get("from"))
        if isinstance(role, str):
            role = _SHAREGPT.get(role, role)
        content = message.get("content", message.get("value"))
        found.append({"role": role, "content": content})
    return found


def read_rows(
    source: Source,
    storage: Storage,
    wanted: list[tuple[int, str, int, int]],
    data: list[bytes | None],
    errors: list[dict[str, str] | None],
) -> None:
    """Fill ``data[i]`` with the text of each wanted (i, uri, offset, length), or ``errors[i]``.

    Lines that lie together are fetched together: on an object store a request a line costs most.
    """
    runs: list[list[tuple[int, str, int, int]]] = []
    for line in sorted(wanted, key=lambda line: line[1:]):
        _, uri, offset, length = line
        if runs:
            _, before, last_offset, last_length = runs[-1][-1]
            near = uri == before and offset - last_offset - last_length <= MAX_GAP_BYTES
            if near and offset + length - runs[-1][0][2] <= MAX_FETCH_BYTES:
                runs[-1].append(line)
                continue
        runs.append([line])
    found = storage.fs.cat_ranges(
        [storage.path(run[0][1]) for run in runs],
        [run[0][2] for run in runs],
        [run[-1][2] + run[-1][3] for run in runs],
        on_error="return",
    )
    for run, content in zip(runs, found, strict=True):
        if isinstance(content, BaseException) and not isinstance(content, FileNotFoundError):
            raise content
        first = run[0][2]
        for i, uri, offset, length in run:
            if isinstance(content, FileNotFoundError):
                errors[i] = _error("missing", f"{uri}: missing", "load")
                continue
            try:
                data[i] = sample_bytes(source, _parse(content[offset - first :][:length]))
            except TextError as error:
                errors[i] = _error(error.type, str(error), "load")


def _row(source: Source, uri: str, offset: int, length: int | None) -> dict[str, Any]:
    key = f"{uri}#{offset}"
    return {
        "sample_id": sample_id(source.name, key),
        "source": source.name,
        "key": key,
        "uri": uri,
        "offset": offset,
        "length": length,
        "media": source.media,
        "caption": None,
        "metadata": None,
        "error": None,
    }


def _error(kind: str, message: str, stage: str = "index") -> dict[str, str]:
    return {"stage": stage, "type": kind, "message": message}
