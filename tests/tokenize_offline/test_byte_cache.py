import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenize_offline.byte_cache import ByteCache


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 60))),
    st.integers(0, 100),
)
def test_it_keeps_what_was_used_last_as_far_as_it_fits(
    calls: list[tuple[bool, int, int]], max_bytes: int
) -> None:
    cache, held = ByteCache(max_bytes), OrderedDict[int, tuple[str, int]]()
    for number, (puts, key, size) in enumerate(calls):
        if puts:
            cache.put(key, f"value {number}", size)
            if size <= max_bytes:
                held.pop(key, None)
                held[key] = f"value {number}", size
                while sum(size for _, size in held.values()) > max_bytes:
                    held.popitem(last=False)
        else:
            if key in held:
                held.move_to_end(key)
            assert cache.get(key) == (held[key][0] if key in held else None)
        assert cache.num_bytes == sum(size for _, size in held.values()) <= max_bytes


def test_many_threads_neither_break_it_nor_its_count() -> None:
    cache = ByteCache(500)

    def use(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for key in rng.integers(0, 40, 2_000).tolist():
            found = cache.get(key)
            assert found is None or found == key
            cache.put(key, key, key)
            assert cache.num_bytes < 500 + 40  # one may be coming in

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert cache.num_bytes == sum(key for key in range(40) if cache.get(key) is not None) <= 500


def test_of_threads_that_want_the_same_one_makes_it() -> None:
    cache, start, made = ByteCache(100), Barrier(8), list[int]()

    def make(key: int) -> tuple[int, int]:
        made.append(key)
        time.sleep(0.02)
        return 10 * key, 1

    def use(_: int) -> list[int]:
        start.wait()
        return [cache.fetch(key, lambda key=key: make(key)) for key in (1, 2, 3)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(use, range(8))) == [[10, 20, 30]] * 8
    assert made == [1, 2, 3]


def test_what_cannot_be_made_is_tried_again() -> None:
    cache = ByteCache(100)

    def fail() -> tuple[int, int]:
        raise OSError("not there")

    for _ in range(2):
        with pytest.raises(OSError, match="not there"):
            cache.fetch("key", fail)
    assert cache.fetch("key", lambda: (7, 1)) == 7
    assert cache.fetch("large", lambda: (8, 1_000)) == 8  # made each time
    assert cache.get("large") is None
