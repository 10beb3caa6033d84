"""Files that rows of `samples` name: pictures are read by range, videos are located.

A missing or forbidden file is bad data. Any other fault of the store is raised: retrying the phase
is the remedy, not a failed row.
"""

import errno
import os
from typing import Any

import pyarrow as pa

from infra.storage import Storage
from pipelines.source import Source

# What a file that is not there raises; everything else is the store's fault and stops the run.
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)

Errors = list[dict[str, str] | None]


def read_ranges(
    storage: Storage,
    ranged: list[tuple[int, str, int, int | None]],
    data: list[bytes | None],
    errors: Errors,
) -> None:
    """Fill ``data[i]`` with the bytes of each (i, uri, offset, length), or ``errors[i]``."""
    paths = []
    known = []
    for one in ranged:
        path = path_of(storage, one[1])
        if path is None:
            errors[one[0]] = _bad_uri(one[1])
        else:
            paths.append(path)
            known.append(one)
    found = storage.fs.cat_ranges(
        paths,
        [offset for *_, offset, _ in known],
        [None if length is None else offset + length for *_, offset, length in known],
        on_error="return",
    )
    for (i, uri, _, length), content in zip(known, found, strict=True):
        if isinstance(content, BaseException):
            errors[i] = _missing(uri, content)
        elif length is not None and len(content) < length:
            message = f"{uri}: {len(content)} of {length} bytes"
            errors[i] = {"stage": "load", "type": "truncated", "message": message}
        else:
            data[i] = content


def locate(source: Source, rows: pa.Table, errors: Errors) -> list[dict[str, Any] | None]:
    """Where the video of each row lies, as `schema.FILE_TYPE`; else None and ``errors[i]``.

    A byte of each file is asked for, so that one that is gone is found here and not by a decoder.
    """
    storage = source.storage
    files: list[dict[str, Any] | None] = [None] * len(rows)
    paths: dict[str, list[int]] = {}
    columns = ("uri", "offset", "length", "start_s", "end_s")
    for i, values in enumerate(rows.select(columns).to_pylist()):
        if errors[i] is not None:
            continue
        uri = values["uri"]
        path = path_of(storage, uri)
        if path is None:
            errors[i] = _bad_uri(uri)
            continue
        root = storage.root
        if path != storage.path(uri):  # of another folder of the same store
            root, _, uri = path.rpartition("/")
        place = {"root": root or "/", "uri": uri, "offset": values["offset"] or 0}
        if source.kind == "folder":
            place["length"] = None  # whole files are given to decoders as such
        files[i] = values | place | {"stream": source.video_stream}
        paths.setdefault(path, []).append(i)
    first = storage.fs.cat_ranges(
        list(paths), [0] * len(paths), [1] * len(paths), on_error="return"
    )
    for places, content in zip(paths.values(), first, strict=True):
        # S3 has no first byte of an empty file: the decoder says what is wrong with it.
        if isinstance(content, OSError) and content.errno == errno.EINVAL:
            continue
        if isinstance(content, BaseException):
            for i in places:
                files[i], errors[i] = None, _missing(rows["uri"][i].as_py(), content)
    return files


def path_of(storage: Storage, uri: str) -> str | None:
    """The path to ask the client for, or None for what it could only fail on."""
    scheme = "" if storage.is_local else storage.root.partition("://")[0] + "://"
    if "\0" in uri or (scheme and len(uri.encode()) > 1024):  # S3's limit on keys
        return None
    if "://" in uri:
        return uri if scheme and uri.startswith(scheme) else None
    if uri.startswith("/"):
        return None if scheme else uri
    too_long = not scheme and any(len(os.fsencode(name)) > 255 for name in uri.split("/"))
    return None if too_long else storage.path(uri)


def _bad_uri(uri: str) -> dict[str, str]:
    message = f"{uri[:200]!r} is no file of this store"
    return {"stage": "load", "type": "bad_uri", "message": message}


def _missing(uri: str, problem: BaseException) -> dict[str, str]:
    """The error of a file that is not there; raises what is the store's own fault."""
    if not isinstance(problem, MISSING):
        raise problem
    kind = "forbidden" if isinstance(problem, PermissionError) else "missing"
    return {"stage": "load", "type": kind, "message": f"{uri}: {kind}"}
