"""The seeded order of documents: a hash of their ids, so that the order given does not matter.

A document's copies and pieces are ordered each on its own. Sorting is the caller's: in memory
(`packing.plan.plan`) or on disk, by the key and, among equal keys, by id, copy and piece.
"""

from collections import abc

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PIECE = np.uint64(0xD1B54A32D192ED03)  # odd too, and no small multiple of the other
_SLICE = 1 << 16  # ids that are NumPy's fixed-width strings at a time: these take 128 bytes each

UInt64 = NDArray[np.uint64]


def order_keys(
    doc_ids: abc.Sequence[str], copies: ArrayLike, pieces: ArrayLike, seed: int
) -> UInt64:
    """The place of each row in the order to pack, as 64 bits: ``copies[i]`` and ``pieces[i]``, from
    0, say which copy and which piece of document ``doc_ids[i]`` it is.

    A function of these and the seed alone, whatever the other rows; ids may be an Arrow array. That
    two of 10^9 rows get the same key has a chance of 3%.
    """
    return keys_of(id_hashes(doc_ids, seed), copies, pieces)


def keys_of(hashes: UInt64, copies: ArrayLike, pieces: ArrayLike) -> UInt64:
    """`order_keys` of documents whose ids are hashed."""
    copy, piece = (np.atleast_1d(np.asarray(numbers, np.uint64)) for numbers in (copies, pieces))
    return _mix(hashes + copy * _GOLDEN + piece * _PIECE)


def id_hashes(doc_ids: abc.Sequence[str], seed: int) -> UInt64:
    """64 bits of each id and the seed; a function of these alone, computed for all ids at once.

    Not `infra.schema.uniform`: MD5 of one id after another would take longer than packing.
    """
    hashes = np.empty(len(doc_ids), np.uint64)
    for start in range(0, len(doc_ids), _SLICE):
        here = slice(start, start + _SLICE)
        hashes[here] = _hash_slice(np.asarray(doc_ids[here], np.str_), seed)
    return hashes


def check_unique(doc_ids: abc.Sequence[str], hashes: UInt64) -> None:
    """Raises ValueError for an id that is given more than once; ``hashes`` are those of the ids."""
    ordered = np.sort(hashes)
    equal = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(equal):
        return
    seen: set[str] = set()
    for i in np.flatnonzero(np.isin(hashes, equal)).tolist():
        if doc_ids[i] in seen:
            raise ValueError(f"document {doc_ids[i]} is given more than once: ids must be unique")
        seen.add(doc_ids[i])


def _hash_slice(names: NDArray[np.str_], seed: int) -> UInt64:
    try:
        encoded = names.astype(np.bytes_)
    except UnicodeEncodeError:
        encoded = np.char.encode(names, "utf-8")
    width = -(-max(encoded.dtype.itemsize, 1) // 8)
    words = encoded.astype(f"S{width * 8}").view(np.uint64).reshape(len(names), width)
    state = np.full(len(names), seed, np.int64).view(np.uint64)
    for word in words.T:
        # Zeros that fill up to the longest id must not count.
        state = np.where(word == 0, state, _mix((state ^ word) + _GOLDEN))
    return state


def _mix(value: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit depends on every bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
