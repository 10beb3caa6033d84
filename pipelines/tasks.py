"""Functions as Ray tasks where a session runs, one after the other where none does."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray


def each(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> Iterator[None]:
    """Do ``work`` for all arguments, one CPU each, yielding as they end, in order.

    A bounded number is handed to Ray at a time. ``work`` may be run again at any time.
    """
    if not ray.is_initialized():
        for values in arguments:
            work(*values)
            yield
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
