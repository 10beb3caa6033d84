"""Semantic pairs over files: against brute force, over workers, over cuts and over restarts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.config import ConfigError, build
from infra.schema import ERROR, digest
from infra.storage import Storage
from operators.image_embedding import ImageEmbedding
from pipelines import near_embeddings
from pipelines.near_embeddings import PAIRS, Semantic, find_pairs
from pipelines.near_vectors import Vectors, unit

ROWS = 3_000
FAILED = {"stage": "probe", "type": "corrupt", "message": ""}
SCHEMA = pa.schema(
    [pa.field("sample_id", pa.string()), ImageEmbedding.writes[0].remove_metadata(), ERROR]
)
CLUSTERED = Semantic(threshold=0.9, clusters=40)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(15, 48))
    pictures = topics[rng.integers(0, 15, ROWS // 4)] + 0.8 * rng.normal(size=(ROWS // 4, 48))
    copies = pictures[rng.integers(0, len(pictures), ROWS)]
    noisy = copies + rng.uniform(0.05, 0.7, (ROWS, 1)) * rng.normal(size=copies.shape)
    return unit(noisy).astype(np.float16).astype(np.float32)


IDS = [digest(str(i)) for i in range(ROWS)]


def write(storage: Storage, vectors: Vectors, parts: int) -> list[str]:
    """Embeddings as canonical parts, row i in part i % parts; every 100th row has failed."""
    paths = []
    for part in range(parts):
        rows = [
            {
                "sample_id": IDS[i],
                "embedding": None if i % 100 == 0 else vectors[i].astype(np.float16),
                "error": FAILED if i % 100 == 0 else None,
            }
            for i in range(part, len(vectors), parts)
        ]
        path = f"scores/s/embeddings/v/part-{part:05d}.parquet"
        storage.write_part(path, pa.Table.from_pylist(rows, SCHEMA), SCHEMA, "sample_id")
        paths.append(path)
    return paths


def read(storage: Storage, paths: list[str]) -> set[tuple[str, str]]:
    table = pa.concat_tables([storage.read_table(path) for path in paths])
    assert table.schema == PAIRS
    pairs = list(zip(table["a"].to_pylist(), table["b"].to_pylist(), strict=True))
    assert all(a < b for a, b in pairs)
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def brute(vectors: Vectors, threshold: float) -> set[tuple[str, str]]:
    wide = unit(vectors).astype(np.float64)
    near = np.triu(wide @ wide.T >= threshold, 1)
    near[::100] = near[:, ::100] = False
    return {tuple(sorted((IDS[a], IDS[b]))) for a, b in np.argwhere(near)}  # type: ignore[misc]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray, whose session other tests may have started."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.mark.parametrize("threshold", [0.85, 0.95])
def test_pairs_are_those_of_brute_force(
    storage: Storage, vectors: Vectors, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(storage, vectors, 3)
    truth = brute(vectors, threshold)
    assert len(truth) > 1_000
    # Few rows are one cluster: exact.
    assert read(storage, find_pairs(storage, paths, Semantic(threshold=threshold), "w")) == truth
    # Clusters, in several groups: nothing wrong, hardly anything missed.
    monkeypatch.setattr(near_embeddings, "GROUP_ROWS", 500)
    files = find_pairs(storage, paths, Semantic(threshold=threshold, clusters=60), "w")
    assert len(files) == 6
    pairs = read(storage, files)
    assert pairs <= truth
    assert len(pairs) >= 0.99 * len(truth)


def test_workers_make_the_same_files(
    storage: Storage, vectors: Vectors, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(storage, vectors[:800], 3)
    alone = find_pairs(storage, paths, CLUSTERED, "alone")
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    with_workers = find_pairs(storage, paths, CLUSTERED, "with")
    assert [storage.read(path) for path in with_workers] == [storage.read(path) for path in alone]


def test_a_search_goes_on_where_it_was(
    storage: Storage, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_embeddings, "GROUP_ROWS", 500)
    paths = write(storage, vectors, 3)
    whole = find_pairs(storage, paths, CLUSTERED, "whole")
    spread, searched = near_embeddings._spread, near_embeddings._search
    log: list[tuple[str, int]] = []

    def spread_twice(search: near_embeddings.Search, file: int) -> None:
        log.append(("spread", file))
        spread(search, file)
        if file == 1:
            raise KeyboardInterrupt

    def search_once(search: near_embeddings.Search, group: int) -> None:
        log.append(("search", group))
        searched(search, group)
        if group == 2 and len(log) < 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(near_embeddings, "_spread", spread_twice)
    monkeypatch.setattr(near_embeddings, "_search", search_once)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            find_pairs(storage, paths, CLUSTERED, "cut")
    cut = find_pairs(storage, paths, CLUSTERED, "cut")
    assert log == [
        *(("spread", file) for file in range(3)),
        *(("search", group) for group in range(6)),
    ]
    assert [storage.read(path) for path in cut] == [storage.read(path) for path in whole]
    assert not storage.exists(f"{cut[0].rpartition('/')[0]}/spread")
    assert find_pairs(storage, paths, CLUSTERED, "cut") == cut
    assert len(log) == 9


def test_a_group_too_large_for_a_task_is_searched_in_runs(
    storage: Storage, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(storage, vectors[:600], 3)
    monkeypatch.setattr(near_embeddings, "MOST_ROWS", 250)
    pairs = read(storage, find_pairs(storage, paths, Semantic(threshold=0.9), "w"))
    part_of = {IDS[i]: i % 3 for i in range(600)}
    within = {(a, b) for a, b in brute(vectors[:600], 0.9) if part_of[a] == part_of[b]}
    assert pairs == within


def test_another_search_has_another_name(storage: Storage, vectors: Vectors) -> None:
    paths = write(storage, vectors[:50], 2)
    names = [
        find_pairs(storage, given, semantic, "w")[0]
        for given, semantic in (
            (paths, Semantic()),
            (paths[:1], Semantic()),
            (paths, Semantic(threshold=0.9)),
            (paths, Semantic(seed=1)),
        )
    ]
    assert len(set(names)) == 4


def test_nothing_to_compare(storage: Storage, vectors: Vectors) -> None:
    assert find_pairs(storage, [], Semantic(), "w") == []
    paths = write(storage, vectors[:1], 2)  # one failed row, and a part without any
    assert read(storage, find_pairs(storage, paths, Semantic(), "w")) == set()
    assert find_pairs(storage, paths[1:], Semantic(), "w") == []


def test_embeddings_of_two_kinds_are_refused(storage: Storage, vectors: Vectors) -> None:
    [first] = write(storage, vectors[:50], 1)
    rows = [{"sample_id": "x", "embedding": [1.0, 0.0], "error": None}]
    second = "other.parquet"
    storage.write_part(second, pa.Table.from_pylist(rows, SCHEMA), SCHEMA, "sample_id")
    with pytest.raises(ValueError, match="let one operator make them all"):
        find_pairs(storage, [first, second], Semantic(), "w")


def test_how_many_clusters() -> None:
    assert Semantic().num_clusters(4_000) == 1
    assert Semantic().num_clusters(1_000_000) == 2_828
    assert Semantic().num_clusters(10**9) == 65_536
    assert Semantic(clusters=7).num_clusters(10**9) == 7


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match=r"threshold is 0\.3: choose a cosine from 0\.5 to 1"):
        Semantic(threshold=0.3)
    with pytest.raises(ValueError, match="clusters is 0: choose 1 to 65,536"):
        Semantic(clusters=0)
    with pytest.raises(ValueError, match="probes is 0"):
        Semantic(probes=0)
    with pytest.raises(ValueError, match="seed is -1"):
        Semantic(seed=-1)
    with pytest.raises(ConfigError, match="unknown key `treshold`: did you mean `threshold`"):
        build(Semantic, {"treshold": 0.9})
