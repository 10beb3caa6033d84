"""The shard reader for training: packs in their global order, for any rank and any loader.

    packs = open_packs("workspace/demo/packs/demo-256")
    stream = PackStream(packs, rank=rank, num_ranks=N, micro_steps=M, packs_consumed=consumed)
    for pack in torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2):
        sequence = layout(pack.segments, packs.facts.vocabulary)

The whole state is one integer, the number of packs consumed, whatever N, M and the number of
loader workers were or will be. Of the packs of a step, [start, start + N M), micro-step m of rank r
takes ``start + m N + r``: the N ranks run neighbours of the global order at the same time.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Literal

from torch.utils.data import IterableDataset, get_worker_info

from infra.storage import Storage
from packing.packs import (
    Facts,
    Pack,
    PackError,
    Packs,
    decode_pack,
    fetch_pack,
    open_packs,
    read_pack,
)

__all__ = ["Facts", "Pack", "PackError", "PackStream", "Packs", "open_packs", "read_pack"]


class PackStream(IterableDataset[Pack]):
    """The packs of one rank, in order, from ``packs_consumed`` on.

    Only whole steps are given: the last packs that do not fill one (`num_dropped`) are left out.
    A damaged pack raises PackError, or with ``on_error="skip"`` comes as an empty Pack with its
    ``error`` set, so that all ranks keep the same number of micro-steps. Give it to a DataLoader
    with ``batch_size=None``; its ``collate_fn`` then runs on each pack in the loader's workers.
    ``prefetch`` packs are fetched ahead, each by a thread of its own; 0 reads when asked.
    """

    def __init__(
        self,
        packs: Packs,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        micro_steps: int = 1,
        packs_consumed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        prefetch: int = 2,
    ) -> None:
        """Raises ValueError for a rank, a count or a state that cannot be."""
        super().__init__()
        if num_ranks < 1 or micro_steps < 1 or not 0 <= rank < num_ranks:
            raise ValueError(f"rank {rank} of {num_ranks} with {micro_steps} micro-steps is none")
        if not 0 <= packs_consumed <= packs.num_packs:
            raise ValueError(f"packs_consumed is {packs_consumed}: use 0 to {packs.num_packs}")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}: use 'raise' or 'skip'")
        if prefetch < 0:
            raise ValueError(f"prefetch is {prefetch}: use 0 or more")
        self.packs = packs
        self.rank, self.num_ranks, self.micro_steps = rank, num_ranks, micro_steps
        self.packs_consumed = packs_consumed
        self.on_error, self.prefetch = on_error, prefetch

    @property
    def packs_per_step(self) -> int:
        """What one step adds to ``packs_consumed``."""
        return self.num_ranks * self.micro_steps

    @property
    def num_steps(self) -> int:
        """Whole steps left."""
        return (self.packs.num_packs - self.packs_consumed) // self.packs_per_step

    @property
    def num_dropped(self) -> int:
        """Packs at the end that fill no step."""
        return (self.packs.num_packs - self.packs_consumed) % self.packs_per_step

    def __len__(self) -> int:
        """Packs that this rank gets: one per micro-step."""
        return self.num_steps * self.micro_steps

    def __iter__(self) -> Iterator[Pack]:
        worker = get_worker_info()
        first, stride, packs = 0, 1, self.packs
        if worker is not None:
            # The loader asks its workers in turn, so worker w has to give every W-th pack.
            first, stride = worker.id, worker.num_workers
            # A forked worker must not use the parent's storage client: it gets its own.
            packs = replace(packs, storage=Storage(packs.storage.root))
        places = (
            self.packs_consumed + k * self.num_ranks + self.rank
            for k in range(first, len(self), stride)
        )
        if not self.prefetch:
            yield from (self._or_empty(i, partial(read_pack, packs, i)) for i in places)
            return
        # The threads fetch, which waits for the store and hashes; decoding holds the interpreter,
        # and several threads that do so at once only hinder each other.
        ahead: deque[tuple[int, Future[bytes]]] = deque()
        with ThreadPoolExecutor(self.prefetch) as pool:
            try:
                for i in places:
                    ahead.append((i, pool.submit(fetch_pack, packs, i)))
                    if len(ahead) > self.prefetch:
                        yield self._decoded(packs, *ahead.popleft())
                while ahead:
                    yield self._decoded(packs, *ahead.popleft())
            finally:  # also where the loop over this stream stops early
                for _, future in ahead:
                    future.cancel()

    def _decoded(self, packs: Packs, i: int, data: Future[bytes]) -> Pack:
        return self._or_empty(i, lambda: decode_pack(packs, i, data.result()))

    def _or_empty(self, i: int, read: Callable[[], Pack]) -> Pack:
        try:
            return read()
        except PackError as error:
            if self.on_error == "raise":
                raise
            return Pack(i, (), error=str(error))
