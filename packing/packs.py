"""A folder of packs: open it, read any pack by byte range. Neither torch nor Ray is needed.

The folder (local or ``s3://``) holds ``packs.json`` with the facts, ``index.parquet`` with one row
per pack, and the shards.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from infra.config import as_dict, build
from infra.layout import Segment, Vocabulary
from infra.storage import Storage, client_errors
from packing.members import Document, decode
from packing.plan import Strategy
from packing.shards import MAX_PACK_BYTES, PACK_INDEX, SHARD_NAME, split_members

FACTS, INDEX = "packs.json", "index.parquet"
ATTEMPTS = 4  # at a pack: stores fail for seconds, and now and then send half an answer
WAIT_S = 0.5  # before the second attempt, twice as long before each further one
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

    Only facts and index are read. Raises PackError if they are absent or impossible; other
    storage errors pass.
    """
    storage = Storage(str(path))
    if not storage.exists(FACTS) and storage.exists(COMPLETION):
        file: str = storage.read_json(COMPLETION)["parts"][0]["file"]
        storage = Storage(storage.path(file.rpartition("/")[0]))
    try:
        tree = json.loads(storage.read(FACTS))
        index = storage.read_table(INDEX)
    except FileNotFoundError as error:
        raise PackError(f"{path} is no folder of packs: {error} is missing") from None
    except (json.JSONDecodeError, pa.ArrowInvalid) as error:
        raise PackError(f"{path}: facts or index are damaged: {error}") from None
    facts = build(Facts, tree, FACTS)
    missing = [name for name in PACK_INDEX.names if name not in index.column_names]
    if missing:
        raise PackError(f"{path}/{INDEX} lacks the columns {', '.join(missing)}")
    index = index.select(PACK_INDEX.names).sort_by("pack")
    if not np.array_equal(index["pack"].to_numpy(), np.arange(index.num_rows)):
        raise PackError(f"{path}/{INDEX} does not list the packs 0 to {index.num_rows - 1} once")
    return Packs(storage, facts, index)


def read_pack(packs: Packs, i: int) -> Pack:
    """Read pack ``i`` by its byte range and check it.

    A store that fails, or answers with too few or other bytes, is asked again. Raises IndexError
    if there is no such pack, PackError if it stays unreadable or is missing.
    """
    if not 0 <= i < packs.num_packs:
        raise IndexError(f"pack {i} does not exist: {packs.num_packs} packs")
    shard, offset, length, sha256 = (
        packs.index[name][i].as_py() for name in ("shard", "offset", "length", "sha256")
    )
    place = f"shard {shard}, pack {i}"
    if not SHARD_NAME.fullmatch(shard) or offset < 0 or not 0 < length <= MAX_PACK_BYTES:
        raise PackError(f"{place}: the index says {length} bytes at {offset} of {shard!r}")
    faults = client_errors(packs.storage.root)
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT_S * 2 ** (attempt - 1))
        try:
            data = packs.storage.read(shard, offset, length)
        except FileNotFoundError:
            raise PackError(f"{place}: the shard is missing from {packs.storage.root}") from None
        except faults as error:
            problem = f"the store fails ({type(error).__name__}: {' '.join(str(error).split())})"
            continue
        if len(data) != length:
            problem = f"only {len(data)} of {length} bytes: the shard is truncated"
        elif hashlib.sha256(data).hexdigest() != sha256:
            problem = "the checksum differs: the shard or its index is damaged"
        else:
            break
        if packs.storage.is_local:
            raise PackError(f"{place}: {problem}")
    else:
        raise PackError(f"{place}: {problem}")
    try:
        return Pack(i, decode(split_members(data, i)))
    except ValueError as error:
        raise PackError(f"{place}: {error}") from None
