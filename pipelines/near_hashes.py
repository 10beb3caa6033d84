"""All pairs of 64-bit hashes within a Hamming radius, without comparing all with all.

Cut into B bands, two hashes at distance <= r agree on at least B - r of them. So for each of the
C(B, r) choices of B - r bands, hashes are sorted by these bits and compared where they agree: every
pair is found, by one key at least (G. Manku, A. Jain, A. Das Sarma, "Detecting near-duplicates for
web crawling", WWW 2007). More bands make longer keys and fewer comparisons, but more sorts: B grows
with the number of hashes, and is chosen on a sample of them, because the bits of pictures are
neither even nor independent.

Where more than `REACH` hashes agree on a key (thousands of nearly blank pictures), each is compared
with the `REACH` that follow it in the order of the other bits, so that costs stay linear. Only
there can a pair be missed, and only if it is out of reach under all of its keys.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.storage import Storage
from pipelines.progress import Progress

BITS = 64
REACH = 512
# A key costs a hash 40 ns, a comparison 20 ns. Keys weigh less than that here, because comparisons
# are what grows with the number of hashes: at radius 4 a hash outside crowds meets about 10 others.
KEY_COST = 0.5
MOST_BANDS = 5  # more than r; 9 bands make 126 keys of 35 bits at radius 4
SAMPLE_HASHES = 1 << 18
SAMPLE_CROWD = 8
CHUNK_PAIRS = 1 << 21
BYTES_PER_HASH = 64  # of a slice: the hashes, sorted, their keys, and where buckets start
SLICE_BITS = 12  # slices part at the first bits of a key; no key at radius <= 8 is shorter than 6

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Key:
    """Bits that come first when hashes are sorted: ``fields`` (lowest bit, width), in order.

    Hashes that agree on the first ``width`` bits of their image under the key are compared.
    """

    fields: tuple[tuple[int, int], ...]
    width: int

    @property
    def sql(self) -> str:
        """The image of column ``key``: its bits in the order of the fields, as an UBIGINT."""
        moved, top = [], BITS
        for low, width in self.fields:
            top -= width
            moved.append(f"(((key >> {low}) & {(1 << width) - 1}::UBIGINT) << {top})")
        return " | ".join(moved)

    def image(self, hashes: Hashes) -> Hashes:
        """As `sql`, of an array. Distances between hashes are those between their images."""
        moved, top = np.zeros_like(hashes), BITS
        for low, width in self.fields:
            top -= width
            field = (hashes >> np.uint64(low)) & np.uint64((1 << width) - 1)
            moved |= field << np.uint64(top)
        return moved

    def origin(self, images: Hashes) -> Hashes:
        """The hashes with these images."""
        hashes, top = np.zeros_like(images), BITS
        for low, width in self.fields:
            top -= width
            field = (images >> np.uint64(top)) & np.uint64((1 << width) - 1)
            hashes |= field << np.uint64(low)
        return hashes


def keys_of(bands: int, radius: int) -> list[Key]:
    """The C(bands, radius) keys: each puts ``bands - radius`` bands first."""
    edges = [round(i * BITS / bands) for i in range(bands + 1)]
    cut = [(low, high - low) for low, high in itertools.pairwise(edges)]
    keys = []
    for chosen in itertools.combinations(range(bands), bands - radius):
        rest = [i for i in range(bands) if i not in chosen]
        width = sum(cut[i][1] for i in chosen)
        keys.append(Key(tuple(cut[i] for i in (*chosen, *rest)), width))
    return keys


def choose_bands(sample: Hashes, total: int, radius: int) -> int:
    """How many bands make finding pairs among ``total`` hashes cheapest, judged by a sample."""
    costs = {}
    for bands in range(radius + 1, radius + 1 + MOST_BANDS):
        keys = keys_of(bands, radius)
        probed = keys[:: max(1, len(keys) // 8)]
        met = np.mean([_expected_pairs(sample, total, key) for key in probed])
        costs[bands] = len(keys) * (KEY_COST + float(met))
    return min(costs, key=lambda bands: (costs[bands], bands))


def _expected_pairs(sample: Hashes, total: int, key: Key) -> float:
    """Comparisons that a hash is expected to take part in under a key, each counted once."""
    if len(sample) < 2:
        return 0.0
    _, counts = np.unique(key.image(sample) >> np.uint64(BITS - key.width), return_counts=True)
    pairs = (counts - 1) * (total / len(sample)) / 2
    # Of the few that meet in a sample by chance there are many more; a crowd is cut at REACH.
    pairs = np.where(counts > SAMPLE_CROWD, np.minimum(pairs, REACH), pairs)
    return float((counts * pairs).sum() / len(sample))


@dataclass(frozen=True)
class Near:
    """Pairs under one key: hashes ``a`` and ``b``, how many were compared, how many crowded."""

    a: Hashes
    b: Hashes
    num_compared: int
    num_crowded: int  # hashes that had more than REACH after them in their bucket


def near_under(key: Key, images: Hashes, radius: int, reach: int = REACH) -> Near:
    """Pairs at distance <= ``radius`` among distinct hashes that agree on ``key``.

    ``images`` under the key, in any order; sorted in place.
    """
    images.sort()
    heads = images >> np.uint64(BITS - key.width)
    starts = np.flatnonzero(np.concatenate([[True], heads[1:] != heads[:-1]]))[: len(images)]
    sizes = np.diff(np.append(starts, len(images)))
    shared = sizes > 1
    starts, sizes = starts[shared], sizes[shared]
    found: list[Hashes] = [np.empty((2, 0), np.uint64)]
    num_compared, num_crowded = 0, 0
    for some in _runs(sizes):
        rows = _ranges(starts[some], sizes[some])
        after = np.repeat(starts[some] + sizes[some] - 1, sizes[some]) - rows
        num_crowded += int((after > reach).sum())
        after = np.minimum(after, reach)
        for here in _runs(after):
            a = images[np.repeat(rows[here], after[here])]
            b = images[_ranges(rows[here] + 1, after[here])]
            found.append(np.stack([a, b])[:, np.bitwise_count(a ^ b) <= radius])
            num_compared += len(a)
    pairs = key.origin(np.concatenate(found, axis=1))
    return Near(pairs[0], pairs[1], num_compared, num_crowded)


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, ... (count of them) for each, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def _runs(counts: NDArray[np.int64], most: int = CHUNK_PAIRS) -> Iterator[slice]:
    """Slices that sum up to ``most`` at most (or are a single one), so that memory is bounded."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, done + most, "right")), first + 1)
        yield slice(first, last)
        first = last


def find_pairs(
    con: duckdb.DuckDBPyConnection, storage: Storage, folder: str, radius: int, memory_bytes: int
) -> list[str]:
    """Write all pairs of hashes of table ``nodes`` (key UBIGINT, distinct; place) into ``folder``.

    Returns the paths of Parquet files with columns a and b (hashes): one a key, or a slice of it.
    Files that are there are not made again; a pair may stand in several. About ``memory_bytes`` are
    held beside the connection: hashes are read and sorted in slices by the key's first bits.
    """
    [(total,)] = con.execute("SELECT count(*) FROM nodes").fetchall()
    if radius == 0 or total < 2:
        return []
    every = -(-total // SAMPLE_HASHES)
    sample = _fetch(con, f"SELECT key AS image FROM nodes WHERE place % {every} = 0")
    bands = choose_bands(sample, total, radius)
    keys = keys_of(bands, radius)
    progress = Progress(folder.rpartition("/v-")[0], len(keys), "keys")
    there = set(storage.names(folder))
    paths = []
    for number, key in enumerate(keys):
        for first, last in _slices(con, key, total, memory_bytes // BYTES_PER_HASH):
            name = f"pairs-{bands}-{number:03d}-{first:04d}-{last:04d}.parquet"
            if name not in there:
                shift = BITS - min(SLICE_BITS, key.width)
                images = _fetch(
                    con,
                    f"SELECT image FROM (SELECT {key.sql} AS image FROM nodes) "
                    f"WHERE image >> {shift} BETWEEN {first} AND {last}",
                )
                _write(storage, f"{folder}/{name}", near_under(key, images, radius))
            paths.append(f"{folder}/{name}")
        progress.add(1)
    told = search_facts(storage, folder)
    progress.close(f"{told['comparisons'] / total:.1f} comparisons a hash")
    return paths


def search_facts(storage: Storage, folder: str) -> dict[str, int]:
    """Of the files in ``folder``: comparisons made, and ``crowded``: how often a hash had more
    than REACH others behind it under a key, so that pairs may be missing."""
    facts = {"comparisons": 0, "crowded": 0}
    for name in storage.names(folder):
        with storage.open(f"{folder}/{name}") as file:
            told = pq.read_schema(file).metadata
        for fact in facts:
            facts[fact] += int(told[fact.encode()])
    return facts


def _slices(
    con: duckdb.DuckDBPyConnection, key: Key, total: int, most: int
) -> list[tuple[int, int]]:
    """Ranges of the key's first bits with about ``most`` hashes each; no bucket is cut."""
    bits = min(SLICE_BITS, key.width)
    whole = [(0, (1 << bits) - 1)]
    if total <= most:
        return whole
    counted = con.execute(
        f"SELECT ({key.sql}) >> {BITS - bits} AS head, count(*) FROM nodes GROUP BY head"
    ).fetchall()
    counts = np.zeros(1 << bits, np.int64)
    for head, count in counted:
        counts[head] = count
    return [(run.start, run.stop - 1) for run in _runs(counts, most)]


def _fetch(con: duckdb.DuckDBPyConnection, sql: str) -> Hashes:
    images: Hashes = con.sql(sql).to_arrow_table()["image"].to_numpy()
    return np.array(images, np.uint64)


def _write(storage: Storage, path: str, near: Near) -> None:
    told = {"comparisons": str(near.num_compared), "crowded": str(near.num_crowded)}
    table = pa.table({"a": near.a, "b": near.b}).replace_schema_metadata(told)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write(path, buffer.getvalue())
