"""Functions as Ray tasks where a session runs, one after the other where none does."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

T = TypeVar("T")


def each(work: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Do ``work`` for all arguments, one CPU each, yielding what it returns, in order.

    Arguments are taken, and handed to Ray, a bounded number at a time. ``work`` may be run again at
    any time.
    """
    if not ray.is_initialized():
        for values in arguments:
            yield work(*values)
        return
    task = ray.remote(work).options(num_cpus=1)
    cpus = ray.cluster_resources().get("CPU", 1.0)  # type: ignore[no-untyped-call]
    ahead = max(2, 2 * int(cpus))
    running: deque[Any] = deque()
    for values in arguments:
        if len(running) == ahead:
            yield ray.get(running.popleft())
        running.append(task.remote(*values))
    while running:
        yield ray.get(running.popleft())
