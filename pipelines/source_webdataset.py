"""WebDataset tars (the layout that img2dataset writes): members with one basename are one sample.

Only headers are read: a row says at which byte of which tar its picture or video lies. A tar that
breaks off gives the samples before the break and one failed row for itself.
"""

import tarfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from infra.schema import sample_id
from infra.storage import Storage
from pipelines.source import Entry, File, Source
from pipelines.source_folder import parse_sidecar, suffixes_of
from pipelines.spans import clip_key

MAX_SIDECAR_BYTES = 1 << 20  # a caption or a row of metadata; more is not one


def list_entries(source: Source, files: list[File]) -> tuple[list[Entry], int]:
    """The tars, and how many other files there are. Raises ValueError for compressed tars."""
    compressed = [uri for uri, *_ in files if uri.endswith((".tar.gz", ".tgz", ".tar.zst"))]
    if compressed:
        raise ValueError(
            f"{compressed[0]} is compressed and cannot be read by range: unpack to .tar"
        )
    tars = [Entry(uri, None, size, f"{size}|{v}") for uri, size, v in files if uri.endswith(".tar")]
    return tars, len(files) - len(tars)


def index(source: Source, storage: Storage, entries: pa.Table) -> list[dict[str, Any]]:
    """Rows of `samples` for all samples of these tars."""
    rows: list[dict[str, Any]] = []
    for entry in entries.to_pylist():
        rows += _index_tar(source, storage, entry["uri"], entry["size_bytes"])
    return rows


def _index_tar(source: Source, storage: Storage, uri: str, size_bytes: int) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    suffixes = suffixes_of(source)

    def row_of(key: str) -> dict[str, Any]:
        full = clip_key(f"{uri}/{key}", source.video_stream)
        empty = {
            "sample_id": sample_id(source.name, full),
            "source": source.name,
            "key": full,
            "uri": uri,
            "offset": None,
            "length": None,
            "media": source.media,
            "caption": None,
            "metadata": None,
            "error": None,
        }
        return rows.setdefault(key, empty)

    def fail(key: str, kind: str, message: str) -> None:
        row_of(key)["error"] = {"stage": "index", "type": kind, "message": f"{uri}: {message}"}

    try:
        with (
            storage.open(uri) as file,
            tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as tar,
        ):
            for member in tar:
                key, suffix = _split(member.name)
                if not member.isfile() or key.rpartition("/")[2] == "":  # hidden, as ._0001.jpg
                    continue
                row_of(key)
                if suffix in suffixes:
                    if row_of(key)["offset"] is not None:
                        repeat = f"{key}#{member.offset_data}"
                        fail(repeat, "duplicate_key", f"{member.name} stands twice under {key}")
                    elif member.offset_data + member.size > size_bytes:
                        fail(key, "truncated", f"{member.name} ends behind the end of the tar")
                    else:
                        rows[key] |= {"offset": member.offset_data, "length": member.size}
                elif suffix in ("txt", "json"):
                    _read_sidecar(tar, member, row_of(key), fail, key)
            # tarfile takes a damaged header, or none, for the end.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no header and no end mark at byte {tar.offset:,}")
    except (tarfile.TarError, EOFError) as error:
        fail("#broken", "broken_tar", f"{error}, after {len(rows)} samples")
    except FileNotFoundError:
        fail("#missing", "missing", "the file is gone since it was listed")
    for key, row in rows.items():
        if row["offset"] is None and row["error"] is None:
            fail(key, f"no_{source.media}", f"{key} has no {source.media}")
    return list(rows.values())


def _read_sidecar(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    row: dict[str, Any],
    fail: Callable[[str, str, str], None],
    key: str,
) -> None:
    if member.size > MAX_SIDECAR_BYTES:
        fail(key, "bad_sidecar", f"{member.name} has {member.size:,} bytes")
        return
    reader = tar.extractfile(member)
    assert reader is not None  # a regular file
    try:
        caption, metadata = parse_sidecar(member.name, reader.read())
    except ValueError as error:
        fail(key, "bad_sidecar", f"{member.name}: {error}")
        return
    # img2dataset writes the caption twice: as .txt and inside .json.
    row["caption"] = row["caption"] or caption
    row["metadata"] = row["metadata"] or metadata


def _split(name: str) -> tuple[str, str]:
    """``dir/0001.seg.png`` -> (``dir/0001``, ``seg.png``): WebDataset splits at the first dot."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()
