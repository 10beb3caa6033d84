"""What a recipe says of one source, and one file of it."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from infra.storage import Storage

# What each kind may hold, its default first.
_MEDIA = {
    "folder": ("image", "video"),
    "webdataset": ("image", "video"),
    "parquet": ("image", "text", "video", "interleaved"),
    "jsonl": ("text", "video", "interleaved"),
    "csv": ("video",),
}


class Entry(NamedTuple):
    """A file that holds media; ``version`` changes when its content or its sidecar's does.

    A file of lines may be several entries: ``start`` is the byte where this piece of it begins.
    """

    uri: str
    sidecar: str | None
    size_bytes: int  # of the file
    version: str
    start: int = 0


class File(NamedTuple):
    """A file as the store lists it."""

    uri: str
    size_bytes: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of a recipe. ``name`` is part of every sample's id; ``path`` is not.

    A text is, in this order: a chat in ``messages_column`` (a list of {role, content} or of {from,
    value}), ``prompt_column`` (text, or the messages so far) with ``response_column``, or
    ``text_column``.

    A table of videos (Parquet, JSONL, CSV) names a file in each row, relative to ``path``, and a
    span of it in seconds or H:MM:SS.mmm. Where ``start_column`` and ``end_column`` are one, it
    holds both: [start, end]. All other columns but the caption are metadata.

    A web document is two lists of the same length, ``texts_column`` and ``images_column``, of which
    each place has a text or the name of an image.
    """

    name: str
    kind: Literal["folder", "webdataset", "parquet", "jsonl", "csv"]
    path: str
    # default: text for JSONL, video for CSV, else image
    media: Literal["image", "text", "video", "interleaved"] | None = None
    image_column: str = "image"  # Parquet: bytes, a URI, or the Hugging Face image struct
    caption_column: str = "caption"  # of images in Parquet and of videos: ignored where absent
    text_column: str = "text"  # of texts, as the next three: ignored where absent
    messages_column: str = "messages"
    prompt_column: str = "prompt"
    response_column: str = "response"
    video_column: str = "video"  # of tables of videos, as the next two: a URI
    start_column: str = "start"  # ignored where absent, as the end
    end_column: str = "end"
    video_stream: int = 0  # which of a file's video streams
    texts_column: str = "texts"  # of interleaved documents, as the next
    images_column: str = "images"
    part_rows: int = 100_000  # files per part of a folder
    part_files: int = 16  # tars, tables or pieces of JSONL per part

    def __post_init__(self) -> None:
        if self.media is None:
            object.__setattr__(self, "media", _MEDIA[self.kind][0])
        if self.media not in _MEDIA[self.kind]:
            kinds = [kind for kind, media in _MEDIA.items() if self.media in media]
            raise ValueError(
                f"media is {self.media}, kind is {self.kind}: {self.kind} holds "
                f"{' or '.join(_MEDIA[self.kind])}, {self.media} comes as {' or '.join(kinds)}"
            )
        if self.video_stream < 0:
            raise ValueError(f"video_stream is {self.video_stream}: the first is 0")
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", self.name):
            raise ValueError(f"source name {self.name!r}: use letters, digits, `_`, `.` and `-`")
        if self.part_rows < 1 or self.part_files < 1:
            raise ValueError("part_rows and part_files must be at least 1")

    @property
    def storage(self) -> Storage:
        return Storage(self.path)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that may hold a sample's text; all others are its metadata."""
        return (self.messages_column, self.prompt_column, self.response_column, self.text_column)

    @property
    def media_columns(self) -> tuple[str, ...]:
        """The columns that may hold a sample's media; all others are its metadata."""
        if self.media == "video":
            return (self.video_column, self.start_column, self.end_column, self.caption_column)
        if self.media == "interleaved":
            return (self.texts_column, self.images_column)
        return self.text_columns if self.media == "text" else (self.image_column,)

    @property
    def files_per_part(self) -> int:
        return self.part_rows if self.kind == "folder" else self.part_files
