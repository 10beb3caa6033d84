"""Pairs of hashes against all pairs, planted groups, crowds and interrupted searches."""

import itertools
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.storage import Storage
from pipelines import near_hashes
from pipelines.near_hashes import (
    Hashes,
    Key,
    choose_bands,
    find_pairs,
    keys_of,
    near_under,
    search_facts,
)

FOLDER = "duplicates/d/perceptual/v-1/_units"
Pairs = set[tuple[int, int]]


def uniform(count: int, seed: int = 0) -> Hashes:
    rng = np.random.default_rng(seed)
    return np.unique(rng.integers(0, 2**64, count, dtype=np.uint64))


def flipped(hashes: Hashes, bits: int, seed: int = 0) -> Hashes:
    """The hashes with ``bits`` bits of each turned over."""
    order = np.random.default_rng(seed).random((len(hashes), 64)).argsort(axis=1)[:, :bits]
    return hashes ^ np.bitwise_or.reduce(np.uint64(1) << order.astype(np.uint64), axis=1)


def all_pairs(hashes: Hashes, radius: int) -> Pairs:
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= radius
    return {(int(hashes[i]), int(hashes[j])) for i, j in np.argwhere(near) if hashes[i] < hashes[j]}


def as_set(a: Hashes, b: Hashes) -> Pairs:
    return {(int(x), int(y)) for x, y in zip(np.minimum(a, b), np.maximum(a, b), strict=True)}


def database(hashes: Hashes) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect(config={"threads": 2})
    con.register("hashes", pa.table({"key": hashes, "place": np.arange(1, len(hashes) + 1)}))
    con.execute("CREATE TABLE nodes AS FROM hashes")
    return con


def found(storage: Storage, paths: list[str]) -> Pairs:
    tables = [storage.read_table(path) for path in paths]
    return set().union(*(as_set(t["a"].to_numpy(), t["b"].to_numpy()) for t in tables))


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(0, 10**6),
)
@example([0, 2**64 - 1, 1, 2**63], 4, 2, 0)
@settings(max_examples=25, deadline=None)
def test_every_pair_is_found(centres: list[int], radius: int, more: int, seed: int) -> None:
    copies = [flipped(np.array(centres, np.uint64), bits, seed + bits) for bits in range(7)]
    hashes = np.unique(np.concatenate(copies))
    pairs: Pairs = set()
    for key in keys_of(radius + more, radius):
        near = near_under(key, key.image(hashes), radius)
        pairs |= as_set(near.a, near.b)
        assert near.num_crowded == 0
    assert pairs == all_pairs(hashes, radius)


@pytest.mark.parametrize(("bands", "radius"), [(5, 4), (6, 4), (8, 4), (3, 1), (9, 8)])
def test_keys_cover_what_they_must(bands: int, radius: int) -> None:
    keys = keys_of(bands, radius)
    hashes = np.concatenate([uniform(100), np.array([0, 1, 2**63, 2**64 - 1], np.uint64)])
    con = database(hashes)
    for key in keys:
        assert sorted(bit for low, width in key.fields for bit in range(low, low + width)) == list(
            range(64)
        )
        assert np.array_equal(key.origin(key.image(hashes)), hashes)
        in_sql = con.sql(f"SELECT {key.sql} AS image FROM nodes ORDER BY place").fetchnumpy()
        assert np.array_equal(in_sql["image"], key.image(hashes))
        distances = np.bitwise_count(hashes[:-1] ^ hashes[1:])
        images = key.image(hashes)
        assert np.array_equal(np.bitwise_count(images[:-1] ^ images[1:]), distances)
    # Whichever bands the flipped bits fall into, some key holds none of them.
    heads = [{b for low, w in _head(key) for b in range(low, low + w)} for key in keys]
    edges = [round(i * 64 / bands) for i in range(bands)]
    for bits in itertools.combinations(edges, radius):
        assert any(not head & set(bits) for head in heads)


def _head(key: Key) -> list[tuple[int, int]]:
    widths = np.cumsum([width for _, width in key.fields])
    return [field for field, end in zip(key.fields, widths, strict=True) if end <= key.width]


def test_planted_groups_and_few_comparisons(tmp_path: Path) -> None:
    """Every planted pair of 200,000 hashes, at a handful of comparisons a hash."""
    base = uniform(150_000)
    planted = [flipped(base[k * 9_000 : (k + 1) * 9_000], k, k) for k in range(1, 6)]
    hashes = np.unique(np.concatenate([base, *planted]))
    storage = Storage(str(tmp_path))
    pairs = found(storage, find_pairs(database(hashes), storage, FOLDER, 4, 2**30))
    near, far = np.concatenate(planted[:4]), planted[4]
    assert as_set(base[9_000 : 9_000 + len(near)], near) <= pairs
    assert not as_set(base[45_000 : 45_000 + len(far)], far) & pairs
    assert all((a ^ b).bit_count() <= 4 for a, b in pairs)
    facts = search_facts(storage, FOLDER)
    assert facts["crowded"] == 0
    assert facts["comparisons"] / len(hashes) < 5


def test_keys_grow_with_the_number_of_hashes() -> None:
    sample = uniform(1 << 16)
    totals = [2**k for k in range(16, 31)]
    bands = [choose_bands(sample, total, 4) for total in totals]
    assert bands == sorted(bands)
    assert bands[0] <= 6 < 8 <= bands[-1]
    for total, number in zip(totals, bands, strict=True):
        keys = keys_of(number, 4)
        # Half of the others that agree: each pair is compared once.
        assert sum(total / 2**key.width / 2 for key in keys) < 30


def test_slices_cut_no_bucket(tmp_path: Path) -> None:
    base = uniform(1_500)
    hashes = np.unique(np.concatenate([base, flipped(base, 2), flipped(base, 1)]))
    con = database(hashes)
    whole, sliced = Storage(str(tmp_path / "whole")), Storage(str(tmp_path / "sliced"))
    paths = find_pairs(con, whole, FOLDER, 2, 2**30)
    many = find_pairs(con, sliced, FOLDER, 2, 800 * near_hashes.BYTES_PER_HASH)
    assert len(many) >= 5 * len(paths)
    assert found(whole, paths) == found(sliced, many) == all_pairs(hashes, 2)
    assert search_facts(whole, FOLDER) == search_facts(sliced, FOLDER)


def test_a_crowd_costs_no_more_than_its_rows() -> None:
    """Hashes of one kind of picture: nearly all agree on nearly all keys."""
    rng = np.random.default_rng(0)
    crowd = np.zeros(40_000, np.uint64)
    for _ in range(6):
        crowd ^= np.uint64(1) << rng.integers(0, 64, len(crowd)).astype(np.uint64)
    reach = 50
    for count in (5_000, 40_000):
        hashes = np.unique(crowd[:count])
        near = [near_under(key, key.image(hashes), 4, reach) for key in keys_of(6, 4)]
        assert all(n.num_compared <= len(hashes) * reach for n in near)
        assert sum(n.num_crowded for n in near) > len(hashes)
        for n in near:
            assert np.bitwise_count(n.a ^ n.b).max() <= 4


def test_a_search_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = uniform(500)
    hashes = np.unique(np.concatenate([base, flipped(base, 2)]))
    storage, con = Storage(str(tmp_path)), database(hashes)
    paths = find_pairs(con, storage, FOLDER, 4, 2**30)
    files = {path: storage.read(path) for path in paths}
    searched: list[Key] = []

    def count(key: Key, images: Hashes, radius: int) -> near_hashes.Near:
        searched.append(key)
        return near_under(key, images, radius)

    monkeypatch.setattr(near_hashes, "near_under", count)
    storage.remove(paths[3])
    assert find_pairs(con, storage, FOLDER, 4, 2**30) == paths
    assert len(searched) == 1
    assert {path: storage.read(path) for path in paths} == files


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_hashes(tmp_path: Path, count: int) -> None:
    hashes = np.array([7, 6][:count], np.uint64)
    storage = Storage(str(tmp_path))
    assert found(storage, find_pairs(database(hashes), storage, FOLDER, 4, 2**30)) == (
        {(6, 7)} if count == 2 else set()
    )
    assert find_pairs(database(hashes), storage, FOLDER, 0, 2**30) == []
