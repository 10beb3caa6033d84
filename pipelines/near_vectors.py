"""All pairs of unit vectors with a high cosine, without comparing all with all; in memory.

A vector is at home in the cluster of its nearest centroid and *visits* further ones: those at home
in a cluster are compared with each other and with its visitors. Let a be at home at p and b at q,
with a cosine of at least t. The plane between p and q separates a and b, which are at most
sqrt(2 - 2t) apart: so one of them is no farther than half of that from the plane. Visiting the
clusters whose plane is so near therefore finds every pair, unless a vector would have to visit more
than ``probes`` clusters. `pipelines.near_embeddings` does this with clusters in files.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.config import ConfigError

MOST_COMPARED = 4_096  # vectors at home that are compared all with all; more are clustered again
# So many near ones of a vector are told, in order, and fewer of another cluster: else thousands of
# nearly equal pictures would make millions of pairs.
MOST_PAIRS = 512
MOST_PAIRS_ABROAD = 128
# Vectors near to 16 of 256 drawn from a large cluster are part of a crowd in it.
CROWD_SAMPLE, CROWD_HITS = 256, 16
BLOCK_ROWS = 1_024
ROUNDS = 10  # of k-means
_ROUNDING = 1e-4  # of a matrix product in fp32: what is nearer to the threshold is counted in fp64

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def library() -> Any:
    """faiss, on one thread, because results must not depend on the machine; raises ConfigError."""
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            "semantic duplicates need faiss: pip install 'nextscale[semantic]'"
        ) from None
    faiss.omp_set_num_threads(1)
    return faiss


def unit(vectors: NDArray[Any]) -> Vectors:
    """Vectors [n, d] in fp32, scaled to length 1; zeros stay zeros."""
    wide = vectors.astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    wide /= np.maximum(lengths, np.float32(1e-12))[:, None]
    return wide


def train(vectors: Vectors, clusters: int, seed: int) -> Vectors:
    """Unit centroids [clusters, d] by k-means, at most as many as there are vectors."""
    kmeans = library().Kmeans(
        vectors.shape[1],
        min(clusters, len(vectors)),
        niter=ROUNDS,
        seed=seed + 1,  # faiss takes 0 for "any"
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=1 << 30,
    )
    kmeans.train(vectors)
    return unit(kmeans.centroids)


def visits(vectors: Vectors, centroids: Vectors, reach: float | Vectors, probes: int) -> Numbers:
    """Clusters of each vector [n, 1 + probes]: its home, and those that it visits or -1.

    It visits the nearest ``probes`` clusters whose plane is within ``reach`` (one, or one each).
    """
    index = library().IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    count = min(1 + probes, len(centroids))
    found = np.full((len(vectors), 1 + probes), -1, np.int64)
    reaches = np.broadcast_to(np.float32(reach), len(vectors))
    for rows in blocks(len(vectors)):
        cosines, nearest = index.search(vectors[rows], count)
        found[rows, 0] = nearest[:, 0]
        for other in range(1, count):
            apart = np.linalg.norm(centroids[nearest[:, 0]] - centroids[nearest[:, other]], axis=1)
            near = cosines[:, 0] - cosines[:, other] <= (reaches[rows] + _ROUNDING) * apart
            found[rows, other] = np.where(near, nearest[:, other], -1)
    return found


def members(clusters: Numbers) -> Iterator[tuple[int, Numbers]]:
    """Each cluster of `visits` that has rows, with its rows in order."""
    rows, places = np.nonzero(clusters >= 0)
    numbers = clusters[rows, places]
    order = np.argsort(numbers, kind="stable")
    names, first, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    for name, start, count in zip(names, first, counts, strict=True):
        yield int(name), rows[order[start : start + count]]


def reach_of(threshold: float) -> float:
    """How near the plane one of two vectors with a cosine of ``threshold`` must be."""
    return float(np.sqrt(2 - 2 * threshold)) / 2


def near_pairs(
    vectors: Vectors, is_home: Flags, threshold: float, probes: int, seed: int
) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs (a, b) of a cluster's vectors, one of them at home in it, with a high cosine.

    Each pair comes once. A cluster with more than ``MOST_COMPARED`` at home is clustered again,
    without its crowds: where one in sixteen is near, all would be paired with all. Those of a crowd
    are compared in runs of ``MOST_COMPARED``, so that time and pairs are linear in the vectors.
    """
    if is_home.sum() <= MOST_COMPARED:
        yield _compare(vectors, is_home, threshold)
        return
    crowd = _in_crowd(vectors, is_home, threshold, seed)
    yield from _in_runs(vectors, is_home, np.flatnonzero(crowd), threshold)
    rest = np.flatnonzero(~crowd)
    at_home = is_home[rest]
    if at_home.sum() <= MOST_COMPARED:
        a, b = _compare(vectors[rest], at_home, threshold)
        yield rest[a], rest[b]
        return
    home = vectors[rest[at_home]]
    centroids = train(home, -(-4 * len(home) // MOST_COMPARED), seed)
    # Visitors go all the way to those at home, who would not find them.
    reach = np.where(at_home, 1, 2).astype(np.float32) * np.float32(reach_of(threshold))
    clusters = visits(vectors[rest], centroids, reach, probes)
    if np.bincount(clusters[at_home, 0]).max() > len(home) // 2:  # nothing takes them apart
        yield from _in_runs(vectors, is_home, rest, threshold)
        return
    for cluster, rows in members(clusters):
        lives_here = at_home[rows] & (clusters[rows, 0] == cluster)
        for a, b in near_pairs(vectors[rest[rows]], lives_here, threshold, probes, seed):
            a, b = rows[a], rows[b]
            once = told_here(a, b, clusters, at_home, cluster)
            yield rest[a[once]], rest[b[once]]


def told_here(a: Numbers, b: Numbers, clusters: Numbers, is_home: Flags, cluster: int) -> Flags:
    """Which pairs found in ``cluster`` are told there: where two find them, the lower tells."""
    home_a, home_b = clusters[a, 0], clusters[b, 0]
    at_a = is_home[a] & (clusters[b] == home_a[:, None]).any(1)
    at_b = is_home[b] & (clusters[a] == home_b[:, None]).any(1)
    told: Flags = ~(at_a & at_b) | (np.minimum(home_a, home_b) == cluster)
    return told


def _in_crowd(vectors: Vectors, is_home: Flags, threshold: float, seed: int) -> Flags:
    home = np.flatnonzero(is_home)
    drawn = np.random.default_rng(seed).choice(home, CROWD_SAMPLE, replace=False)
    sample = vectors[np.sort(drawn)]
    crowd = np.empty(len(vectors), np.bool_)
    for rows in blocks(len(vectors)):
        crowd[rows] = (vectors[rows] @ sample.T >= threshold).sum(1) >= CROWD_HITS
    return crowd


def _in_runs(
    vectors: Vectors, is_home: Flags, rows: Numbers, threshold: float
) -> Iterator[tuple[Numbers, Numbers]]:
    for start in range(0, len(rows), MOST_COMPARED):
        run = rows[start : start + MOST_COMPARED]
        a, b = _compare(vectors[run], is_home[run], threshold)
        yield run[a], run[b]


def blocks(rows: int) -> list[slice]:
    return [slice(start, min(start + BLOCK_ROWS, rows)) for start in range(0, rows, BLOCK_ROWS)]


def _compare(vectors: Vectors, is_home: Flags, threshold: float) -> tuple[Numbers, Numbers]:
    """All with all that are at home."""
    home = np.flatnonzero(is_home)
    at_home = vectors[home]
    most = np.where(is_home, MOST_PAIRS, MOST_PAIRS_ABROAD)
    found_a, found_b = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for block in blocks(len(vectors)):
        rows = np.arange(block.start, block.stop)
        cosines = vectors[block] @ at_home.T
        near = cosines >= threshold - _ROUNDING
        near &= ~is_home[block, None] | (home > rows[:, None])
        i, j = np.nonzero(near & (cosines < threshold + _ROUNDING))
        near[i, j] = cosine_of(vectors[rows[i]], at_home[j]) >= threshold
        if (near.sum(1) > most[block]).any():
            near &= near.cumsum(1) <= most[block, None]
        i, j = np.nonzero(near)
        found_a.append(np.minimum(rows[i], home[j]))
        found_b.append(np.maximum(rows[i], home[j]))
    return np.concatenate(found_a), np.concatenate(found_b)


def cosine_of(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """Cosines [n] of unit vectors in fp64, the same wherever two of them meet."""
    return np.einsum("nd,nd->n", a, b, dtype=np.float64)
