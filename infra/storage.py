"""Local folders and ``s3://`` buckets behind one small class: read, list, write-then-commit.

Ray tasks, pyarrow and DuckDB all go through the fsspec client made here, so that they share
endpoint and credentials (the usual ``AWS_*`` variables). A file is either absent or whole: local
writes go to a temporary name, are synced and renamed; an S3 put is atomic by itself.
"""

import io
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.config import ConfigError

# Large enough to scan fast, small enough that a reader of pictures holds few at a time; both are
# part of the bytes.
ROW_GROUP_ROWS = 16_384
ROW_GROUP_ROWS_WITH_MEDIA = 64


@dataclass(frozen=True)
class Storage:
    """A root (``/path``, relative path or ``s3://bucket/prefix``) under which paths are relative.

    Picklable: the client is made once per process, on first use.
    """

    root: str

    def __post_init__(self) -> None:
        # Made absolute here and now: a worker's current folder may be another one.
        root = os.path.abspath(self.root) if self.is_local else self.root.rstrip("/")
        object.__setattr__(self, "root", root)

    @cached_property
    def fs(self) -> Any:
        """The fsspec filesystem. Raises ConfigError for an unknown or uninstalled scheme."""
        scheme = self.root.partition("://")[0] if "://" in self.root else "file"
        if "://" in self.root and scheme in ("file", "local"):
            raise ConfigError(f"`{self.root}`: write local paths without `{scheme}://`")
        try:
            # Listings must be true while other workers write, hence no cache.
            options = {"use_listings_cache": False} if scheme == "s3" else {}
            return fsspec.filesystem(scheme, **options)
        except ImportError:
            raise ConfigError(
                f"`{self.root}` needs the {scheme} client: pip install 'nextscale[{scheme}]'"
            ) from None
        except ValueError as error:
            raise ConfigError(f"`{self.root}`: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    def path(self, relative: str = "") -> str:
        """The full path or URI of ``relative``, as the client and DuckDB take it."""
        return f"{self.root}/{relative}" if relative else self.root

    def check(self, writable: bool = False) -> None:
        """Raises ConfigError, in one line, unless the store answers (and takes a file)."""
        try:
            self.exists("_")  # not the root: s3fs calls an unreachable bucket absent
            if writable:
                self.write(".writable", b"")
                self.remove(".writable")
        except client_errors(self.root) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"`{self.root}` cannot be used ({type(error).__name__}: {reason}): check path, "
                "permissions and, for S3, the AWS_* variables"
            ) from None

    def exists(self, relative: str = "") -> bool:
        return bool(self.fs.exists(self.path(relative)))

    def open(self, relative: str) -> BinaryIO:
        """A seekable reader; raises FileNotFoundError."""
        return self.fs.open(self.path(relative), "rb")

    def read(
        self, relative: str, offset: int = 0, length: int = 0, timeout_s: float | None = None
    ) -> bytes:
        """``length`` bytes from ``offset`` (0: to the end); raises FileNotFoundError.

        Without ``timeout_s`` a silent S3 is given up by the client alone, after all its retries.
        With it TimeoutError is raised then, by clients that can (S3's; a local disk's cannot).
        """
        end = offset + length if length else None
        limit = {"timeout": timeout_s} if self.fs.async_impl and timeout_s else {}
        return self.fs.cat_file(self.path(relative), start=offset or None, end=end, **limit)

    def write(self, relative: str, data: bytes) -> None:
        """Write a whole file; it appears at once or not at all."""
        target = self.path(relative)
        if not self.is_local:
            self.fs.pipe_file(target, data)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        temporary = f"{target}.tmp-{uuid.uuid4().hex}"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError:  # a full disk, or a folder in the target's place
            Path(temporary).unlink(missing_ok=True)
            raise

    def read_json(self, relative: str) -> Any:
        return json.loads(self.read(relative))

    def write_json(self, relative: str, value: Any) -> None:
        self.write(relative, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")

    def names(self, relative: str = "") -> list[str]:
        """Names directly below ``relative``, sorted; empty where there is nothing."""
        try:
            entries = self.fs.ls(self.path(relative), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries}
        return sorted(name for name in names if ".tmp-" not in name)

    def find(self, relative: str = "") -> list[tuple[str, int, str]]:
        """All files below ``relative``: (path relative to the root, size, version), sorted.

        The version is the entity tag or the modification time: it changes with the content. A
        local name that is no UTF-8 is given with ``\\x`` escapes: it can be told, not opened.
        """
        prefix = self.fs._strip_protocol(self.path(relative)).rstrip("/") + "/"
        base = self.fs._strip_protocol(self.path()).rstrip("/") + "/"
        found = self.fs.find(prefix, detail=True)
        return sorted(
            (
                os.fsencode(path[len(base) :]).decode(errors="backslashreplace"),
                int(info.get("size") or 0),
                str(info.get("ETag") or info.get("mtime") or "").strip('"'),
            )
            for path, info in found.items()
        )

    def remove(self, relative: str) -> None:
        """Remove a file or a folder with all below it; nothing there is fine."""
        if self.exists(relative):
            self.fs.rm(self.path(relative), recursive=True)

    def remove_unfinished(self, relative: str) -> None:
        """Remove the temporary files that killed writers left directly below a folder."""
        folder = Path(self.path(relative))
        if self.is_local and folder.is_dir():
            for file in folder.glob("*.tmp-*"):
                file.unlink(missing_ok=True)

    def read_table(self, relative: str, columns: list[str] | None = None) -> pa.Table:
        """A whole Parquet file; raises FileNotFoundError."""
        # Opened by us: given a path, pyarrow would read Hive partitions out of its folder names.
        with self.open(relative) as file:
            return pq.ParquetFile(file).read(columns=columns)

    def read_rows(self, relative: str, rows: Sequence[int]) -> pa.Table:
        """The rows with these numbers, in this order; only row groups that hold one are read."""
        numbers = np.asarray(rows, np.int64)
        wanted, place = np.unique(numbers, return_inverse=True)
        with self.open(relative) as file:
            parquet = pq.ParquetFile(file)
            tables, first = [parquet.schema_arrow.empty_table()], 0
            for group in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(group).num_rows
                here = wanted[(wanted >= first) & (wanted < first + count)] - first
                if len(here):
                    tables.append(parquet.read_row_group(group).take(pa.array(here)))
                first += count
        return pa.concat_tables(tables).take(pa.array(place))

    def write_part(self, relative: str, table: pa.Table, schema: pa.Schema, key: str) -> int:
        """Write rows in canonical form, so that the bytes are a function of the rows alone.

        Sorted by ``key``, one chunk per column, fixed row groups, no schema metadata. Returns the
        size in bytes. Raises AssertionError where ``key`` repeats: ids are unique in every table.
        """
        bare = pa.schema([field.remove_metadata() for field in schema])
        table = table.select(bare.names).cast(bare).replace_schema_metadata(None)
        table = table.take(pc.sort_indices(table[key])).combine_chunks()
        ids = table[key]
        repeated = pc.any(pc.equal(ids.slice(1), ids.slice(0, max(len(ids) - 1, 0)))).as_py()
        assert not repeated, f"{relative}: {key} repeats"
        buffer = io.BytesIO()
        rows = ROW_GROUP_ROWS_WITH_MEDIA if "large_binary" in str(bare) else ROW_GROUP_ROWS
        pq.write_table(table, buffer, row_group_size=rows, compression="zstd")
        self.write(relative, buffer.getvalue())
        return buffer.tell()


def client_errors(root: str) -> tuple[type[Exception], ...]:
    """What the client of this store raises when the store fails it."""
    if not root.startswith("s3://"):
        return (OSError,)
    try:
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return (OSError,)
    return (OSError, BotoCoreError, ClientError, TimeoutError)
