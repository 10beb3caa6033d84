"""A folder of packs: open it, read any pack by byte range. Neither torch nor Ray is needed.

The folder (local or ``s3://``) holds ``packs.json`` with the facts, ``index.parquet`` with one row
per pack, the shards, and what a trainer starts its visual embeddings from: `CODEBOOK`.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.config import as_dict, build
from infra.layout import Segment, Vocabulary
from infra.storage import Storage, client_errors
from packing.members import Document, decode
from packing.plan import Strategy
from packing.shards import MAX_PACK_BYTES, PACK_INDEX, SHARD_NAME, split_members

FACTS, INDEX = "packs.json", "index.parquet"
CODEBOOK = "codebook.safetensors"  # of the visual tokenizer, where whoever packed had it
MAX_SHARD_BYTES = 1 << 43  # above what S3 stores as one object; no index points further
ATTEMPTS = 4  # at a file or pack: stores fail for seconds, and now and then send half an answer
WAIT_S = 0.5  # before the second attempt, twice as long before each further one
# Of one attempt, the client's own retries included: with the waits, a store that goes silent is
# given up after 4 minutes.
ATTEMPT_S = 60.0
COMPLETION = "_table.json"  # of the workspace: names the version of a table that is in use


class PackError(ValueError):
    """A pack that cannot be read as it was written; the message names shard and pack."""


@dataclass(frozen=True)
class Facts:
    """What a trainer must know of packs, beside their content. Stored as ``packs.json``.

    Codes and text ids mean nothing without the two identities: a trainer refuses a codebook and a
    checkpoint of others. Raises ValueError for sizes that no vocabulary has.
    """

    tokenizer_id: str  # hash of the visual tokenizer's weights and settings
    vocabulary_id: str  # hash of the text vocabulary
    num_codes: int
    text_vocab_size: int
    level: int
    strategy: Strategy
    token_cap: int  # no pack holds more tokens
    seed: int
    budget: float | None = None  # no pack costs more, in `cost_unit`; null: no such limit
    cost_unit: str = "FLOP"

    def __post_init__(self) -> None:
        _ = self.vocabulary

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.num_codes, self.text_vocab_size)

    def to_json(self) -> bytes:
        return json.dumps(as_dict(self), indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


@dataclass(frozen=True, eq=False)
class Pack:
    """One pack, or the reason why there is none: then ``documents`` is empty."""

    index: int  # place in the global order
    documents: tuple[Document, ...]
    error: str | None = None

    @property
    def segments(self) -> list[tuple[Segment, ...]]:
        """What `infra.layout.layout` takes."""
        return [document.segments for document in self.documents]


@dataclass(frozen=True, eq=False)
class Packs:
    """An opened folder of packs; picklable."""

    storage: Storage
    facts: Facts
    index: pa.Table  # schema PACK_INDEX, row i is pack i

    @property
    def num_packs(self) -> int:
        return self.index.num_rows


def open_packs(path: str | Path) -> Packs:
    """Open the folder ``path``: a version of packs, or a pack table, whose version in use is taken.

    Only facts and index are read. Raises PackError if they are absent, impossible or cannot be
    read, ConfigError for facts that no packs have.
    """
    storage = Storage(str(path))
    try:
        try:
            stored = _fetch(storage, FACTS)
        except FileNotFoundError:
            file: str = json.loads(_fetch(storage, COMPLETION))["parts"][0]["file"]
            storage = Storage(storage.path(file.rpartition("/")[0]))
            stored = _fetch(storage, FACTS)
        tree = json.loads(stored)
        index = _index(_fetch(storage, INDEX))
    except FileNotFoundError:
        raise PackError(
            f"{path} is no folder of packs, {FACTS} or {INDEX} is not there: `nextscale pack` or "
            "`nextscale mix` makes one"
        ) from None
    except PackError as error:
        raise PackError(f"{path}: {error}") from None
    except (OSError, ValueError, pa.ArrowException) as error:  # what damaged Parquet and JSON raise
        raise PackError(f"{path}: facts or index are damaged: {error}") from None
    return Packs(storage, build(Facts, tree, FACTS), index)


def read_pack(packs: Packs, i: int) -> Pack:
    """Pack ``i``, read by its byte range and checked. Raises as `fetch_pack` and `decode_pack`."""
    return decode_pack(packs, i, fetch_pack(packs, i))


def fetch_pack(packs: Packs, i: int) -> bytes:
    """The bytes of pack ``i``, as its checksum says.

    A store that fails, is silent, or answers with too few or other bytes, is asked again. Raises
    IndexError if there is no such pack, PackError if it stays unreadable or is missing.
    """
    if not 0 <= i < packs.num_packs:
        raise IndexError(f"pack {i} does not exist: {packs.num_packs} packs")
    shard, offset, length, sha256 = (
        packs.index[name][i].as_py() for name in ("shard", "offset", "length", "sha256")
    )
    place = f"shard {shard}, pack {i}"
    possible = 0 <= offset <= MAX_SHARD_BYTES and 0 < length <= MAX_PACK_BYTES
    if not SHARD_NAME.fullmatch(shard) or not possible:
        raise PackError(f"{place}: the index says {length} bytes at {offset} of {shard!r}")

    def problem(data: bytes) -> str:
        if len(data) != length:
            return f"only {len(data)} of {length} bytes: the shard is truncated"
        if hashlib.sha256(data).hexdigest() != sha256:
            return "the checksum differs: the shard or its index is damaged"
        return ""

    try:
        return _fetch(packs.storage, shard, offset, length, problem)
    except FileNotFoundError:
        raise PackError(f"{place}: the shard is missing from {packs.storage.root}") from None
    except PackError as error:
        raise PackError(f"{place}: {error}") from None


def decode_pack(packs: Packs, i: int, data: bytes) -> Pack:
    """Pack ``i`` out of its bytes. Raises PackError if they contradict each other."""
    try:
        return Pack(i, decode(split_members(data, i)))
    except ValueError as error:
        raise PackError(f"shard {packs.index['shard'][i]}, pack {i}: {error}") from None


def _fetch(
    storage: Storage,
    name: str,
    offset: int = 0,
    length: int = 0,
    problem: Callable[[bytes], str] = lambda _: "",
) -> bytes:
    """Bytes of a file in which ``problem`` finds none. Raises FileNotFoundError, PackError."""
    faults, found = client_errors(storage.root), ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT_S * 2 ** (attempt - 1))
        try:
            data = storage.read(name, offset, length, timeout_s=ATTEMPT_S)
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:  # below a file there is nothing
            raise FileNotFoundError(*error.args) from None
        except faults as error:
            reason = " ".join(str(error).split()) or f"no whole answer in {ATTEMPT_S:g} s"
            found = f"the store fails ({type(error).__name__}: {reason})"
            continue
        found = problem(data)
        if not found:
            return data
        if storage.is_local:
            break
    raise PackError(found)


def _index(data: bytes) -> pa.Table:
    """The rows of `PACK_INDEX` in their order, every value there. Raises as Arrow does, too."""
    file = pq.ParquetFile(pa.BufferReader(data))
    names = file.schema_arrow.names
    missing = [name for name in PACK_INDEX.names if names.count(name) != 1]
    if missing:
        raise ValueError(f"{INDEX} lacks the columns {', '.join(missing)}")
    bare = pa.schema([field.remove_metadata() for field in PACK_INDEX])
    index = file.read(columns=PACK_INDEX.names).select(PACK_INDEX.names).cast(bare)
    index.validate(full=True)
    empty = [name for name in PACK_INDEX.names if index[name].null_count]
    if empty:
        raise ValueError(f"{INDEX} has no value in rows of {', '.join(empty)}")
    # Not to or from NumPy by Arrow, which loads pandas for that: twice the time and memory.
    expected = [None, pa.py_buffer(np.arange(len(index)))]
    numbers = pa.chunked_array([pa.Array.from_buffers(pa.int64(), len(index), expected)])
    if not index["pack"].equals(numbers):  # packs are written in order, others may not do so
        index = index.sort_by("pack")
        if not index["pack"].equals(numbers):
            raise ValueError(f"{INDEX} does not list the packs 0 to {len(index) - 1} once")
    return index.combine_chunks()
