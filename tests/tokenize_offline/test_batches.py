import threading
import time
from contextlib import closing

import pytest

from tokenize_offline.batches import ahead


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (5, 40)])
def test_results_come_in_order(workers: int, start: int, stop: int) -> None:
    def make(number: int) -> int:
        time.sleep(0.001 * (number % 3))  # later ones are ready earlier
        return number * number

    assert list(ahead(make, start, stop, workers)) == [n * n for n in range(start, stop)]
    assert own_threads() == []


def test_without_workers_it_is_made_when_asked_for() -> None:
    made: list[tuple[int, int]] = []
    results = ahead(lambda n: made.append((n, threading.get_ident())), 0, 10, 0)
    next(results)
    assert made == [(0, threading.get_ident())]


def test_the_threads_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)  # each call waits for the other
    assert list(ahead(lambda n: both.wait() >= 0, 0, 6, 2)) == [True] * 6


@pytest.mark.parametrize("workers", [1, 2])
def test_the_look_ahead_is_bounded(workers: int) -> None:
    made: list[int] = []
    with closing(ahead(made.append, 0, 1_000, workers)) as results:
        for asked in range(1, 20):
            next(results)
            deadline = time.monotonic() + 30
            while len(made) < asked + 2 * workers and time.monotonic() < deadline:
                time.sleep(0.001)
            assert len(made) == asked + 2 * workers
        time.sleep(0.05)
        assert len(made) == asked + 2 * workers


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_is_raised_comes_out_at_its_place(workers: int) -> None:
    def make(number: int) -> int:
        if number == 7:
            raise ValueError("seven")
        return number

    results = ahead(make, 0, 100, workers)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="seven"):
        next(results)
    assert own_threads() == []
    assert list(results) == []


def test_closing_ends_the_threads_and_what_they_had_not_begun() -> None:
    begun, go_on = list[int](), threading.Event()

    def make(number: int) -> None:
        begun.append(number)
        if number:
            assert go_on.wait(30)

    results = ahead(make, 0, 1_000, 2)
    next(results)
    assert len(own_threads()) == 2
    threading.Timer(0.3, go_on.set).start()  # while close waits for the two that are being made
    results.close()  # type: ignore[attr-defined]
    assert own_threads() == []
    assert set(begun) <= {0, 1, 2}


def test_a_loop_that_fails_ends_the_threads() -> None:
    def fail() -> None:
        with closing(ahead(lambda n: n, 0, 1_000, 2)) as results:
            for _ in results:
                raise RuntimeError("the loop's own")

    with pytest.raises(RuntimeError, match="own"):
        fail()
    assert own_threads() == []
