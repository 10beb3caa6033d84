"""The processes of one training: those of torchrun, or this one alone.

    torchrun --nproc-per-node 8 -m pipelines.cli train-tokenizer RECIPE

NCCL joins GPUs and gloo joins CPUs. Gradients are averaged by plain all-reduces after the backward
pass, not by DistributedDataParallel: the stages train different parts, one of them exchanges its
decoder for a larger one, a discriminator has an optimiser of its own and dead codes start again
between steps; each would be a special case of the wrapper's. What DDP would gain, hiding the
exchange behind the backward pass, is small for a tokenizer: half a billion gradients are 2 GB.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from infra.config import ConfigError

_BUCKET_BYTES = 64 * 2**20  # gradients are exchanged in copies of this size
_PATIENCE = timedelta(hours=1)  # for the slowest: it opens tables, or writes the state, meanwhile


@dataclass(frozen=True)
class Ranks:
    """This process among all; where there is only one, nothing is exchanged."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the ranks; a copy in any case."""
        values = values.clone()
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean of ``values`` over the ranks."""
        return self.total(values) / self.size

    def gather(self, values: Tensor) -> Tensor:
        """``values`` [B, ...] of all ranks, one after the other: [size * B, ...]."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values.contiguous()) for _ in range(self.size)]
        distributed.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """``rows`` [n, d] of all ranks, of which each may have another number: [sum of n, d]."""
        longest, missing = self.largest(len(rows)), rows.new_full((1,), torch.nan)
        padded = torch.cat([rows, missing.expand(longest - len(rows), rows.shape[1])])
        counts = self.gather(torch.tensor([len(rows)], device=self.device)).tolist()
        parts = self.gather(padded).reshape(self.size, longest, rows.shape[1])
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every gradient := its mean over the ranks, which all take the same losses."""
        if self.size == 1:
            return
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = self.mean(torch.cat([gradient.flatten() for gradient in bucket]))
            means = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, mean in zip(bucket, means, strict=True):
                gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def copy_from_first(self, module: nn.Module) -> None:
        """Make parameters and buffers those of the first rank, bit for bit."""
        if self.size > 1:
            for values in module.state_dict().values():
                exact = values.contiguous()
                distributed.broadcast(exact, 0)
                values.copy_(exact)

    def largest(self, value: int) -> int:
        """The largest of the ranks' numbers."""
        return int(self.gather(torch.tensor([value], device=self.device)).max())

    def from_first(self, value: int) -> int:
        """The first rank's number."""
        return int(self.gather(torch.tensor([value], device=self.device))[0])

    @contextmanager
    def together(self) -> Iterator[None]:
        """A ConfigError that any rank raises in here, every rank raises: none waits for another.

        Nothing in here may exchange anything.
        """
        problem = None
        try:
            yield
        except ConfigError as error:
            problem = str(error)
        problems = [problem]
        if self.size > 1:
            problems = [None] * self.size
            distributed.all_gather_object(problems, problem)
        for told in problems:
            if told is not None:
                raise ConfigError(told)

    def agree(self, value: int) -> bool:
        """Whether all ranks hold the same number."""
        values = self.gather(torch.tensor([value], device=self.device))
        return bool((values == value).all())


@contextmanager
def join(device: str) -> Iterator[Ranks]:
    """Join torchrun's processes, or be the only one, on ``device`` ("": a GPU if there is one).

    Raises ConfigError for a device that this machine does not have.
    """
    chosen = check_device(device)
    if "RANK" not in os.environ:
        yield Ranks(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), chosen)
    finally:
        distributed.destroy_process_group()


def num_processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_device(name: str) -> torch.device:
    """The device that ``name`` means for this process. Raises ConfigError if there is none."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f'device is {name!r}: use cpu, cuda, cuda:N or ""')
    if device.type == "cuda":
        index = int(os.environ["LOCAL_RANK"]) if num_processes() > 1 else device.index or 0
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"device is {name!r}, and GPU {index} is not among the {torch.cuda.device_count()} "
                'that torch sees: use cpu, fewer processes, or "" to take what there is'
            )
        device = torch.device("cuda", index)
    return device


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(g.nbytes for g in bucket) >= _BUCKET_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
