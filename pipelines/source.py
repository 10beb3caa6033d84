"""What a recipe says of one source, and one file of it."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from infra.storage import Storage


class Entry(NamedTuple):
    """A file that holds media; ``version`` changes when its content or its sidecar's does."""

    uri: str
    sidecar: str | None
    size_bytes: int
    version: str


class File(NamedTuple):
    """A file as the store lists it."""

    uri: str
    size_bytes: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of a recipe. ``name`` is part of every sample's id; ``path`` is not."""

    name: str
    kind: Literal["folder", "webdataset", "parquet"]
    path: str
    image_column: str = "image"  # Parquet: bytes, a URI, or the Hugging Face image struct
    caption_column: str = "caption"  # Parquet: ignored where absent
    part_rows: int = 100_000  # files per part of a folder
    part_files: int = 16  # tars or Parquet files per part

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", self.name):
            raise ValueError(f"source name {self.name!r}: use letters, digits, `_`, `.` and `-`")
        if self.part_rows < 1 or self.part_files < 1:
            raise ValueError("part_rows and part_files must be at least 1")

    @property
    def storage(self) -> Storage:
        return Storage(self.path)

    @property
    def files_per_part(self) -> int:
        return self.part_rows if self.kind == "folder" else self.part_files
