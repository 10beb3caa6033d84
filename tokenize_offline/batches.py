"""What a training loop asks for next, made ahead by threads: its batches."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(
    make: Callable[[int], T], start: int, stop: int, workers: int
) -> Generator[T, None, None]:
    """make(start), make(start + 1), … make(stop - 1), in order; ``workers`` threads run ahead.

    At most two results per thread are ready or being made beyond the one that is asked for. What
    ``make`` raises comes out at its place. Close the iterator (`contextlib.closing`) to stop early:
    its threads have ended then. 0 workers: made when asked for, in the calling thread.
    """
    if workers == 0:
        yield from map(make, range(start, stop))
        return
    waiting = deque[Future[T]]()
    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        try:
            for number in range(start, stop):
                waiting.append(pool.submit(make, number))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
