"""Pairs of pictures whose embeddings have a high cosine, over tables of any size.

    train    centroids of clusters, by k-means on a seeded sample of the rows
    spread   per file of embeddings: its rows, by the group of clusters that they live in or visit
    search   per group: its rows of all files, compared cluster by cluster, exactly

Every step writes one file under a name that says what it is made from, and is not done again where
that is there. Steps run as Ray tasks where a session runs, else one after the other; the files are
the same. See `pipelines.near_vectors` for what visiting is and which pairs can be missed.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.runs import canonical
from infra.schema import digest, uniform
from infra.storage import Storage
from pipelines import near_vectors
from pipelines.grouped_rows import read_group, to_lists, to_matrix, write_groups
from pipelines.near_vectors import Numbers, Vectors
from pipelines.progress import Progress
from pipelines.tasks import each

PAIRS = pa.schema([("a", pa.string()), ("b", pa.string())])
VERSION = 1  # of the search: part of the names
MOST_CLUSTERS = 1 << 16
MOST_GROUPS = 1 << 14
GROUP_ROWS = 1 << 16  # at home in a group, on average; with its visitors a few times as many
MOST_ROWS = 1 << 20  # that a search task holds: 2.6 GB at 1,280 numbers a row
SLICE_ROWS = 1 << 14
SAMPLED_FILES = 64
SAMPLE_PER_CLUSTER = 64
TRAINING_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Semantic:
    """Pictures whose embeddings have a cosine of at least ``threshold``.

    The default fits the carried embedding of `operators.image_embedding`: other models have scales
    of their own. ``clusters``: by default sqrt(probes * rows), 1 up to 4,096 rows and 65,536 at
    most. ``probes``: how many further clusters a row may visit; more find more and cost more.
    """

    threshold: float = 0.85
    clusters: int | None = None
    probes: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.5 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}: choose a cosine from 0.5 to 1")
        if self.clusters is not None and not 1 <= self.clusters <= MOST_CLUSTERS:
            raise ValueError(f"clusters is {self.clusters}: choose 1 to {MOST_CLUSTERS:,}")
        if not 1 <= self.probes <= 256:
            raise ValueError(f"probes is {self.probes}: choose 1 to 256")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: at least 0")

    def num_clusters(self, rows: int) -> int:
        if self.clusters is not None:
            return self.clusters
        if rows <= near_vectors.MOST_COMPARED:
            return 1
        # A row is compared with `clusters` centroids and with `probes` clusters: both alike.
        return min(MOST_CLUSTERS, round((self.probes * rows) ** 0.5))


@dataclass(frozen=True)
class Search:
    """One search, as its tasks see it."""

    storage: Storage
    folder: str
    semantic: Semantic
    embeddings: tuple[str, ...]
    num_clusters: int
    num_groups: int

    @property
    def centroids(self) -> str:
        return f"{self.folder}/centroids.npy"

    def spread(self, file: int) -> str:
        return f"{self.folder}/spread/{file:05d}.bin"

    def pairs(self, group: int) -> str:
        return f"{self.folder}/pairs-{group:05d}.parquet"


@dataclass(frozen=True)
class Rows:
    """Rows of a group in the order of their ids; clusters as told by `near_vectors.visits`."""

    ids: pa.StringArray
    clusters: Numbers
    vectors: NDArray[np.float16]


def find_pairs(
    storage: Storage, embeddings: Sequence[str], semantic: Semantic, folder: str
) -> list[str]:
    """Write all pairs of rows with a cosine >= the threshold; returns the paths of their files.

    ``embeddings``: Parquet files (sample_id, unique over all of them; embedding, null for failed
    rows). The files written below ``folder`` have columns a < b (sample_ids); no pair stands there
    twice. Cosines are exact; pairs are missed beyond ``probes``, and in crowds of more than
    `near_vectors.MOST_PAIRS` rows that are all near each other, where each is paired with that
    many. Raises ConfigError where faiss is missing, and ValueError for embeddings of several
    lengths.
    """
    near_vectors.library()
    rows = sum(_num_rows(storage, path) for path in embeddings)
    if not rows:
        return []
    clusters = semantic.num_clusters(rows)
    groups = min(clusters, MOST_GROUPS, -(-rows // GROUP_ROWS))
    name = digest(str(VERSION), canonical(semantic), *embeddings)[:12]
    search = Search(storage, f"{folder}/{name}", semantic, tuple(embeddings), clusters, groups)
    done = set(storage.names(search.folder))
    missing = [n for n in range(groups) if search.pairs(n).rpartition("/")[2] not in done]
    if missing:
        if not storage.exists(search.centroids):
            list(each(_train, [(search,)]))
        there = set(storage.names(f"{search.folder}/spread"))
        spread = [n for n in range(len(embeddings)) if f"{n:05d}.bin" not in there]
        progress = Progress(folder.partition("/v-")[0], len(spread) + len(missing), "tasks")
        for _ in each(_spread, [(search, file) for file in spread]):
            progress.add(1)
        for _ in each(_search, [(search, group) for group in missing]):
            progress.add(1)
        progress.close(f"{clusters:,} clusters")
    storage.remove(f"{search.folder}/spread")
    return [search.pairs(group) for group in range(groups)]


def _train(search: Search) -> None:
    """Centroids from a sample: the rows of lowest u(sample_id, seed) of some of the files."""
    storage, seed = search.storage, search.semantic.seed
    files = sorted(search.embeddings, key=lambda path: uniform(path, seed))[:SAMPLED_FILES]
    sampled: list[Vectors] = []
    for path in files:
        ids, vectors = _read(storage, path, sampled[0].shape[1] if sampled else None)
        if not len(ids):
            continue
        most = min(
            SAMPLE_PER_CLUSTER * search.num_clusters, TRAINING_BYTES // (4 * vectors.shape[1])
        )
        drawn = np.argsort([uniform(id_, seed) for id_ in ids.tolist()], kind="stable")
        sampled.append(near_vectors.unit(vectors[np.sort(drawn[: -(-most // len(files))])]))
    centroids = np.empty((0, 0), np.float32)
    if sampled:
        sample = np.concatenate(sampled)
        centroids = near_vectors.train(sample, search.num_clusters, seed)
    buffer = io.BytesIO()
    np.save(buffer, centroids)
    storage.write(search.centroids, buffer.getvalue())


def _spread(search: Search, file: int) -> None:
    """A file's rows, by the groups of the clusters that they live in or visit."""
    storage, semantic = search.storage, search.semantic
    centroids = np.load(io.BytesIO(storage.read(search.centroids)))
    ids, vectors = _read(storage, search.embeddings[file], centroids.shape[1])
    reach = near_vectors.reach_of(semantic.threshold)
    clusters = np.empty((len(ids), 1 + semantic.probes), np.int64)
    for start in range(0, len(ids), SLICE_ROWS):
        rows = slice(start, start + SLICE_ROWS)
        unit = near_vectors.unit(vectors[rows])
        clusters[rows] = near_vectors.visits(unit, centroids, reach, semantic.probes)
    groups = np.where(clusters < 0, -1, clusters * search.num_groups // search.num_clusters)
    tables = {}
    for group, places in near_vectors.members(groups):
        here = np.unique(places)
        columns = {
            "sample_id": ids.take(pa.array(here)),
            "clusters": to_lists(clusters[here].astype(np.int32)),
            "embedding": to_lists(vectors[here]),
        }
        tables[group] = pa.table(columns)
    write_groups(storage, search.spread(file), tables, search.num_groups)


def _search(search: Search, group: int) -> None:
    """All pairs of a group's clusters."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, PAIRS, compression="zstd") as writer:
        for rows in _gather(search, group):
            for a, b in _pairs(search, group, rows):
                ids = [rows.ids.take(pa.array(side)) for side in (a, b)]
                writer.write_table(pa.table(ids, PAIRS))
    search.storage.write(search.pairs(group), buffer.getvalue())


def _pairs(search: Search, group: int, given: Rows) -> Iterator[tuple[Numbers, Numbers]]:
    semantic, clusters = search.semantic, given.clusters
    everyone = np.ones(len(clusters), np.bool_)
    for cluster, rows in near_vectors.members(clusters):
        if cluster * search.num_groups // search.num_clusters != group:
            continue
        at_home = clusters[rows, 0] == cluster
        unit = near_vectors.unit(given.vectors[rows])
        for a, b in near_vectors.near_pairs(
            unit, at_home, semantic.threshold, semantic.probes, semantic.seed
        ):
            a, b = rows[a], rows[b]
            once = near_vectors.told_here(a, b, clusters, everyone, cluster)
            if once.any():
                yield a[once], b[once]


def _num_rows(storage: Storage, path: str) -> int:
    with storage.open(path) as file:
        return int(pq.read_metadata(file).num_rows)


def _read(
    storage: Storage, path: str, width: int | None
) -> tuple[pa.StringArray, NDArray[np.float16]]:
    """Ids and embeddings [n, width] of a file's rows that have one."""
    table = storage.read_table(path, ["sample_id", "embedding"])
    table = table.filter(table["embedding"].is_valid())
    vectors = to_matrix(table["embedding"])
    if len(table) and width not in (None, vectors.shape[1]):
        raise ValueError(
            f"{path} has embeddings of {vectors.shape[1]} numbers, others have {width}: "
            "let one operator make them all"
        )
    return table["sample_id"].combine_chunks(), vectors


def _gather(search: Search, group: int) -> Iterator[Rows]:
    """A group's rows, all at once unless they are more than ``MOST_ROWS``.

    Then, as with hundreds of thousands of equal pictures, those of so many files at a time: rows of
    one run are not compared with those of another.
    """
    run: list[pa.Table] = []
    for file in range(len(search.embeddings)):
        table = read_group(search.storage, search.spread(file), group)
        if table is not None:
            if run and sum(map(len, run)) + len(table) > MOST_ROWS:
                yield _by_id(run)
                run = []
            run.append(table)
    if run:
        yield _by_id(run)


def _by_id(tables: list[pa.Table]) -> Rows:
    ids = pa.concat_arrays([table["sample_id"].combine_chunks() for table in tables])
    order = pc.sort_indices(ids)
    places = order.to_numpy()
    clusters = np.concatenate([to_matrix(table["clusters"]) for table in tables])[places]
    vectors = np.concatenate([to_matrix(table["embedding"]) for table in tables])[places]
    return Rows(ids.take(order), clusters.astype(np.int64), vectors)
