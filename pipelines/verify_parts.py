"""What ``nextscale verify`` reads, piece by piece: shards of packs, and parts of tokens.

Every call reads its piece once, from end to end, and leaves a file of `pipelines.document_digests`
for the joins. What a shard alone can tell, it tells at once: its bytes, and what the index says of
them.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.layout import layout
from infra.runs import TableRecord
from infra.storage import Storage
from packing.cost import Coefficients, cost
from packing.members import Document, decode
from packing.packs import Facts
from packing.shards import SHARD_NAME, split_members
from pipelines.document_digests import PACKED, TOKENIZED, Place, of_pack, of_tokens

MAX_SHOWN = 20
BATCH_ROWS = 256  # rows of tokens at a time: those of level 1024 take 80 KB each
END = bytes(1024)  # of a tar archive
RELATIVE = 1e-9  # costs are sums of floats, in another order elsewhere
UNREAD = pa.schema([("pack", pa.int64())])


@dataclass(frozen=True, order=True)
class Damage:
    """One thing that is not as it should be; a ``pack`` of -1 and an empty name: none."""

    shard: str
    pack: int
    doc_id: str
    what: str

    @property
    def line(self) -> str:
        """``shard shard-000000.tar, pack 3, document 5f…: what``."""
        places = [
            f"shard {self.shard}" if self.shard else "",
            f"pack {self.pack}" if self.pack >= 0 else "",
            f"document {self.doc_id}" if self.doc_id else "",
        ]
        where = ", ".join(place for place in places if place)
        return f"{where}: {self.what}" if where else self.what


@dataclass
class Damages:
    """How many there are, and the first of them in the order of shards and packs."""

    count: int = 0
    first: list[Damage] = field(default_factory=list)

    def add(self, damages: Iterable[Damage], count: int | None = None) -> None:
        """``count``: of all, where ``damages`` are only the first."""
        found = list(damages)
        self.count += len(found) if count is None else count
        self.first = sorted(self.first + found)[:MAX_SHOWN]


@dataclass(frozen=True)
class Packed:
    """A folder of packs, and where the rows of its documents go to."""

    storage: Storage
    folder: str
    facts: Facts
    coefficients: Coefficients
    rows: str


def read_shard(of: Packed, shard: str, index: list[dict[str, Any]]) -> Damages:
    """Check a shard against its rows of the index, in order of offset, and leave its documents."""
    damages = Damages()
    data = None
    if not SHARD_NAME.fullmatch(shard):
        damages.add([Damage(shard, -1, "", "the index says a name that no shard has")])
    else:
        try:
            data = of.storage.read(f"{of.folder}/{shard}")
        except FileNotFoundError:
            damages.add([Damage(shard, -1, "", "the shard is missing")])
    rows: list[dict[str, Any]] = []
    unread: list[int] = []
    end = 0
    for row in index:
        pack = row["pack"]
        if data is None:
            unread.append(pack)
            continue
        found: list[str] = []
        if row["offset"] != end:
            found.append(f"the index says it starts at byte {row['offset']}, expected {end}")
        end = row["offset"] + row["length"]
        piece = data[row["offset"] : end] if row["offset"] >= 0 else b""
        documents = _documents(piece, row, found)
        if documents is None:
            unread.append(pack)
        else:
            found += _check_numbers(documents, row, of)
            rows += of_pack(pack, documents)
        damages.add(Damage(shard, pack, "", what) for what in found)
    if data is not None and data[end:] != END:
        what = f"{len(data)} bytes, the packs end at {end} and an archive {len(END)} zeros later"
        damages.add([Damage(shard, -1, "", what)])
    name = os.path.basename(shard)
    _write(of.storage, f"{of.rows}/packed/{name}.parquet", pa.Table.from_pylist(rows, PACKED))
    gone = pa.table({"pack": unread}, UNREAD)
    _write(of.storage, f"{of.rows}/unread/{name}.parquet", gone)
    return damages


def read_tokens(storage: Storage, table: TableRecord, place: Place, rows: str) -> Damages:
    """Leave the documents of one part of a table of tokens."""
    columns = ["doc_id", "task", "source", "segments", "num_tokens", "num_loss", "num_pairs"]
    path, said = table.path(place.part), table.parts[place.part].num_rows
    tables = [TOKENIZED.empty_table()]
    row = 0
    damages = Damages()
    try:
        with storage.open(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=[*columns, "error"]):
                tables.append(of_tokens(pa.Table.from_batches([batch]), place, row))
                row += len(batch)
        if row != said:
            damages.add([Damage("", -1, "", f"{path} has {row:,} rows, its record says {said:,}")])
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        damages.add([Damage("", -1, "", f"{path} cannot be read: {reason}")])
    name = "-".join(f"{number:06d}" for number in place)
    _write(storage, f"{rows}/tokens/{name}.parquet", pa.concat_tables(tables))
    return damages


def leave_none(storage: Storage, rows: str) -> None:
    """Leave an empty file of each kind, so that there is one to read even of no shard or part."""
    for name, schema in (("packed", PACKED), ("unread", UNREAD), ("tokens", TOKENIZED)):
        _write(storage, f"{rows}/{name}/none.parquet", schema.empty_table())


def _documents(piece: bytes, row: dict[str, Any], found: list[str]) -> tuple[Document, ...] | None:
    """The documents of a pack's bytes; None, and the reason in ``found``, if these hold none."""
    if len(piece) != row["length"]:
        found.append(f"only {len(piece)} of {row['length']} bytes are there")
        return None
    if hashlib.sha256(piece).hexdigest() != row["sha256"]:
        found.append("the checksum differs from the index")
    try:
        return decode(split_members(piece, row["pack"]))
    except ValueError as error:
        found.append(str(error))
        return None


def _check_numbers(
    documents: tuple[Document, ...], row: dict[str, Any], of: Packed
) -> Iterator[str]:
    """What the index says of a pack against its layout as a sequence."""
    said = tuple(row[name] for name in ("num_tokens", "num_loss", "num_pairs"))
    if row["num_documents"] != len(documents):
        yield f"holds {len(documents)} documents, the index says {row['num_documents']}"
    try:
        counts = layout([document.segments for document in documents], of.facts.vocabulary).counts
    except ValueError as error:
        yield f"is no sequence: {error}"
        return
    for name, ours, theirs in zip(counts._fields, counts, said, strict=True):
        if ours != theirs:
            yield f"{name} is {ours:,}, the index says {theirs:,}"
    if counts.num_tokens > of.facts.token_cap:
        yield f"has {counts.num_tokens:,} tokens, the cap is {of.facts.token_cap:,}"
    due = float(cost(*counts, of.coefficients)) + of.coefficients.per_pack
    if not np.isclose(row["cost"], due, rtol=RELATIVE, atol=0):
        yield f"costs {due:.12g}, the index says {row['cost']:.12g}"


def _write(storage: Storage, path: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write(path, buffer.getvalue())
