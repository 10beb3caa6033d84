"""What a recipe says of one source, and one file of it."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from infra.storage import Storage


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
    """

    name: str
    kind: Literal["folder", "webdataset", "parquet", "jsonl"]
    path: str
    media: Literal["image", "text"] | None = None  # default: text for JSONL, else image
    image_column: str = "image"  # Parquet: bytes, a URI, or the Hugging Face image struct
    caption_column: str = "caption"  # Parquet: ignored where absent
    text_column: str = "text"  # of texts, as the next three: ignored where absent
    messages_column: str = "messages"
    prompt_column: str = "prompt"
    response_column: str = "response"
    part_rows: int = 100_000  # files per part of a folder
    part_files: int = 16  # tars, Parquet files or pieces of JSONL per part

    def __post_init__(self) -> None:
        if self.media is None:
            object.__setattr__(self, "media", "text" if self.kind == "jsonl" else "image")
        if self.media == "text" and self.kind not in ("jsonl", "parquet"):
            raise ValueError(f"media is text, kind is {self.kind}: texts come as jsonl or parquet")
        if self.media == "image" and self.kind == "jsonl":
            raise ValueError("media is image, kind is jsonl: JSONL holds texts")
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
    def files_per_part(self) -> int:
        return self.part_rows if self.kind == "folder" else self.part_files
