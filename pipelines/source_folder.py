"""A folder of images or videos, any depth, with sidecars: ``a.jpg`` beside ``a.txt`` or .json."""

import json
from typing import Any

import pyarrow as pa

from infra.schema import sample_id
from infra.storage import Storage
from pipelines.source import Entry, File, Source
from pipelines.spans import clip_key

IMAGES = frozenset(["jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"])
# No .gif: as a file of a source it is a picture.
VIDEOS = frozenset("mp4 m4v mov mkv webm avi mpg mpeg ogv ts m2ts mts flv wmv 3gp mxf".split())
SIDECARS = ("json", "txt")


def list_entries(source: Source, files: list[File]) -> tuple[list[Entry], int]:
    """Images or videos with their sidecars, and how many other files there are."""
    suffixes = suffixes_of(source)
    sidecars: dict[str, File] = {}
    # Where there are both, the .json says more: it sorts first, the .txt does not replace it.
    for file in sorted(files):
        stem, _, suffix = file.uri.rpartition(".")
        if suffix.lower() in SIDECARS:
            sidecars.setdefault(stem, file)
    entries: list[Entry] = []
    used: set[str] = set()
    for file in files:
        stem, _, suffix = file.uri.rpartition(".")
        if suffix.lower() not in suffixes or _is_hidden(file.uri):
            continue
        sidecar = sidecars.get(stem)
        if sidecar:
            used.add(sidecar.uri)
        seen = f"{file.size_bytes}|{file.version}|{sidecar.version if sidecar else ''}"
        entries.append(Entry(file.uri, sidecar.uri if sidecar else None, file.size_bytes, seen))
    taken = used | {entry.uri for entry in entries}
    left_out = sum(file.uri not in taken and not _is_hidden(file.uri) for file in files)
    return entries, left_out


def suffixes_of(source: Source) -> frozenset[str]:
    """How the names of the source's media end, in lower case."""
    return VIDEOS if source.media == "video" else IMAGES


def _is_hidden(uri: str) -> bool:
    return any(part.startswith(".") for part in uri.split("/"))


def index(source: Source, storage: Storage, entries: pa.Table) -> list[dict[str, Any]]:
    """One row of `samples` per image or video."""
    paths = [uri for uri in entries["sidecar"].to_pylist() if uri]
    contents = storage.fs.cat_ranges(
        [storage.path(uri) for uri in paths],
        [None] * len(paths),
        [None] * len(paths),
        on_error="return",
    )
    sidecars = dict(zip(paths, contents, strict=True))
    rows = []
    for entry in entries.to_pylist():
        uri = entry["uri"]
        caption, metadata, error = None, None, None
        if entry["sidecar"]:
            content = sidecars[entry["sidecar"]]
            try:
                caption, metadata = parse_sidecar(entry["sidecar"], content)
            except ValueError as problem:
                message = f"{entry['sidecar']}: {problem}"
                error = {"stage": "index", "type": "bad_sidecar", "message": message}
        key = clip_key(uri, source.video_stream)
        rows.append(
            {
                "sample_id": sample_id(source.name, key),
                "source": source.name,
                "key": key,
                "uri": uri,
                "offset": 0,
                "length": entry["size_bytes"],
                "media": source.media,
                "caption": caption,
                "metadata": metadata,
                "error": error,
            }
        )
    return rows


def parse_sidecar(name: str, content: bytes | BaseException) -> tuple[str | None, str | None]:
    """(caption, metadata JSON) of a ``.txt`` or ``.json`` sidecar; raises ValueError if broken."""
    if isinstance(content, BaseException):
        raise ValueError(f"cannot be read ({type(content).__name__})")
    text = content.decode("utf-8-sig")  # UnicodeDecodeError is a ValueError
    if name.lower().endswith(".txt"):
        return text.strip() or None, None
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise ValueError(f"holds {type(tree).__name__}, expected an object with `caption`")
    caption = tree.pop("caption", None)
    if caption is not None and not isinstance(caption, str):
        raise ValueError(f"`caption` is {type(caption).__name__}, expected text")
    return caption, json.dumps(tree, sort_keys=True) if tree else None
