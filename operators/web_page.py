"""What stands in a web document: texts and the names of pictures, in order.

A sample is one JSON object, {"texts": [...], "images": [...]}, as OmniCorpus (Q. Li et al.,
arXiv:2406.08418) and OBELICS (H. Laurençon et al., arXiv:2306.16527) write pages: lists of the same
length, at each place a text or the name of a picture. Crawls are not that tidy: where both are set,
the text comes first; blank texts and names, and places with neither, say nothing and are passed
over.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from infra.schema import ERROR_TYPE
from operators.text_probe import TextError

# The file of a document's picture, or why it could not be had. Transient: never stored.
PICTURE_TYPE = pa.struct(
    [("place", pa.int32()), ("data", pa.large_binary()), ("error", ERROR_TYPE)]
)


class Part(NamedTuple):
    """What stands at one place of a document: a text, the name of a picture, or both."""

    place: int
    text: str | None
    image: str | None


def parse(data: bytes | None) -> list[Part]:
    """The places of a document that hold anything, in order.

    Raises TextError: ``missing_bytes``, ``bad_json``, ``bad_document`` (no parallel lists of texts
    and nulls), ``bad_text`` (U+0000 or half a surrogate pair), ``empty`` (nothing anywhere).
    """
    if data is None:
        raise TextError("missing_bytes", "the row has no bytes to read")
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TextError("bad_json", f"the document is not JSON: {error}") from None
    texts, images = (_members(tree, name) for name in ("texts", "images"))
    if len(texts) != len(images):
        counts = f"{len(texts):,} texts and {len(images):,} images"
        raise TextError("bad_document", f"the lists are not parallel: {counts}")
    parts = [
        Part(place, text if text and text.strip() else None, name if name.strip() else None)
        for place, (text, name) in enumerate(zip(texts, images, strict=True))
    ]
    for part in parts:
        if "\0" in (part.text or ""):
            raise TextError("bad_text", f"the text at place {part.place} holds U+0000")
    found = [part for part in parts if part.text or part.image]
    if not found:
        raise TextError("empty", f"{len(parts):,} places, and neither text nor image in any")
    return found


def _members(tree: object, name: str) -> list[str]:
    """A list of the document, its nulls as empty texts."""
    values = tree.get(name) if isinstance(tree, dict) else None
    if not isinstance(values, list):
        raise TextError("bad_document", f"the document has no list `{name}`")
    for place, value in enumerate(values):
        if not isinstance(value, str | None):
            kind = type(value).__name__
            raise TextError("bad_document", f"`{name}` holds {kind} at place {place}")
        try:
            (value or "").encode("utf-8")
        except UnicodeEncodeError:
            message = f"`{name}` holds half a surrogate pair at place {place}"
            raise TextError("bad_text", message) from None
    return [value or "" for value in values]


def wanted_images(parts: Sequence[Part], max_images: int) -> list[tuple[int, str]]:
    """(place, name) of the pictures to open: each name once, of the first ``max_images`` places."""
    named = [(part.place, part.image) for part in parts if part.image][:max_images]
    first = {name: place for place, name in reversed(named)}
    return [(place, name) for place, name in named if first[name] == place]


def content_hash(parts: Sequence[Part], hashes: Mapping[int, str | None]) -> str:
    """SHA-256 of a document's texts and pictures in order, as hex: equal ones are duplicates.

    Texts are taken after NFC with white space evened, pictures by their files' hashes, place by
    place, or by their names where these are not known.
    """
    evened = [
        (
            " ".join(unicodedata.normalize("NFC", part.text or "").split()),
            hashes.get(part.place) or part.image,
        )
        for part in parts
    ]
    return hashlib.sha256(json.dumps(evened).encode()).hexdigest()
