"""Shards of packs: deterministic WebDataset tars, and the index that finds a pack by bytes.

A pack is the four members of `packing.members`, named ``<pack>.<member>`` with nine digits. Plain
``webdataset``, Ray and ``tar`` read the shards; our reader takes one pack by its byte range, which
is itself a piece of tar. Nothing in the headers depends on who wrote them, or when.
"""

import hashlib
import re
import struct
import tarfile
from collections.abc import Iterable, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from infra.layout import count
from infra.schema import column
from packing.cost import Coefficients, cost
from packing.members import MEMBERS, SMALL_CODES, Document, encode

PACK_INDEX = pa.schema(
    [
        column("pack", pa.int64(), "", "the pack's place in the global order, from 0"),
        column("shard", pa.string(), "", "file name of the shard, beside the index"),
        column("offset", pa.int64(), "bytes", "where the pack's first tar header starts"),
        column("length", pa.int64(), "bytes", "up to the end of its last member, padding included"),
        column("sha256", pa.string(), "hex", "of these bytes"),
        column("num_tokens", pa.int64(), "positions", "T of the pack"),
        column("num_loss", pa.int64(), "positions", "positions with a target"),
        column("num_pairs", pa.int64(), "pairs", "query-key pairs under the pack's mask"),
        column("cost", pa.float64(), "the cost model's", "cost of the pack"),
        column("num_documents", pa.int32(), "count", "documents of the pack"),
    ],
)

PACKS_PER_SHARD = 256  # 25 to 40 MB at 20,000 tokens a pack: few files, yet quick to fetch whole
MAX_PACK_BYTES = 1 << 30  # far above any real pack; bounds what a wrong index makes us allocate
SHARD_NAME = re.compile(r"shard-\d{6,}\.tar")
_BLOCK = tarfile.BLOCKSIZE
_HEADER = struct.Struct("100s 24x 12s 12x 8s c 355x")  # of ustar: name, size, checksum, type


def shard_name(number: int) -> str:
    """File name of the shard of packs ``number * PACKS_PER_SHARD`` and following."""
    return f"shard-{number:06d}.tar"


def write_shard(
    file: BinaryIO,
    name: str,
    packs: Iterable[tuple[int, Sequence[Document]]],
    of: Coefficients,
    num_codes: int = SMALL_CODES,
) -> pa.Table:
    """Write one shard into an empty ``file`` and return its rows of `PACK_INDEX`.

    ``packs`` gives (pack, documents) in the order to write, and is consumed one at a time;
    ``name`` is the file name that the index will say; ``num_codes`` is the tokenizer's. The same
    packs give the same bytes. Raises ValueError for a code that the tokenizer does not have.
    """
    rows: list[dict[str, object]] = []
    offset = 0
    for pack, documents in packs:
        data = _to_tar(pack, encode(documents, num_codes))
        if len(data) > MAX_PACK_BYTES:
            raise ValueError(f"pack {pack} takes {len(data)} bytes: lower tokens_per_pack")
        file.write(data)
        counts = np.array([count(document.segments) for document in documents]).reshape(-1, 3)
        num_tokens, num_loss, num_pairs = (int(n) for n in counts.sum(axis=0))
        rows.append(
            {
                "pack": pack,
                "shard": name,
                "offset": offset,
                "length": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "num_tokens": num_tokens,
                "num_loss": num_loss,
                "num_pairs": num_pairs,
                "cost": float(cost(num_tokens, num_loss, num_pairs, of)) + of.per_pack,
                "num_documents": len(documents),
            }
        )
        offset += len(data)
    file.write(bytes(2 * _BLOCK))  # the end of a tar archive
    return pa.Table.from_pylist(rows, schema=PACK_INDEX)


def split_members(data: bytes, pack: int) -> dict[str, bytes]:
    """The members of one pack out of its byte range, which must hold exactly these.

    Raises ValueError for a foreign or missing member, a link, or a size beyond the range.
    """
    members: dict[str, bytes] = {}
    at = 0
    for member in MEMBERS:
        name, kind, size = _header(data, at)
        expected = _member_name(pack, member)
        if name != expected or kind != tarfile.REGTYPE:
            raise ValueError(f"holds {name!r} where the file {expected} should be")
        at += _BLOCK
        if not 0 <= size <= len(data) - at:
            raise ValueError(f"{expected} says {size} bytes, {len(data) - at} are left")
        members[member] = data[at : at + size]
        at += size + -size % _BLOCK
    if at != len(data):
        raise ValueError(f"{len(data)} bytes where the members take {at}")
    return members


def _header(data: bytes, at: int) -> tuple[str, bytes, int]:
    """Name, type and size of the tar member at ``at``; `tarfile` takes several times as long."""
    block = data[at : at + _BLOCK]
    try:
        name, size, checksum, kind = _HEADER.unpack(block)
        told = int(checksum.rstrip(b"\0 "), 8)
        # The checksum is of the header in which its own eight bytes are blanks.
        if told != sum(block) - sum(checksum) + 8 * ord(" "):
            raise ValueError("bad checksum")
        return name.rstrip(b"\0").decode("ascii"), kind, int(size.rstrip(b"\0 "), 8)
    except (struct.error, ValueError) as error:
        raise ValueError(f"no tar header at byte {at}: {error}") from None


def _to_tar(pack: int, members: dict[str, bytes]) -> bytes:
    out = bytearray()
    for member in MEMBERS:
        data = members[member]
        header = tarfile.TarInfo(_member_name(pack, member))  # mtime, uid and gid 0, no names
        header.size, header.mode = len(data), 0o644
        out += header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK)
    return bytes(out)


def _member_name(pack: int, member: str) -> str:
    return f"{pack:09d}.{member}"
