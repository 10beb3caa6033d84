"""Where a step's time goes: data, forward, backward, optimiser, communication, the rest.

    python tests/benchmarks/step_shares.py [steps] [zero stage] [seed]

Two processes (gloo, one thread each) train the decoder of real_steps.py on its documents, packed by
cost. The engine's calls and torch's collectives are timed around the trainer, which knows nothing
of it; time inside a collective counts as communication alone, waiting for the other rank with it.
Steps after the first two, on the first rank.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from real_steps import FACTS_OF, MODEL, RANKS, TOKENS_PER_PACK, mixture, write_packs
from torch import distributed, multiprocessing

import trainer.train
from packing.cost import coefficients
from packing.strategies import Packing
from trainer.config import TrainConfig
from trainer.log import StepLog

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object",
               "reduce", "reduce_scatter_tensor", "broadcast", "barrier")  # fmt: skip
WARM_UP = 2


class Clock:
    """Seconds by name; what runs inside a timed call is taken off the call around it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.inside: list[float] = []

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            self.inside.append(0.0)
            start = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                took = time.perf_counter() - start
                self.seconds[name] += took - self.inside.pop()
                if self.inside:
                    self.inside[-1] += took

        return run


def main(steps: int = 20, zero_stage: int = 2, seed: int = 0) -> None:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (folder, steps, zero_stage, seed), RANKS)


def work(rank: int, folder: str, steps: int, zero_stage: int, seed: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(RANKS)}
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    packs = Path(folder) / "packs"
    if rank == 0:
        theory = coefficients(MODEL.shape(FACTS_OF.vocabulary))
        write_packs(packs, mixture(600, seed), Packing(tokens_per_pack=TOKENS_PER_PACK), theory)
    distributed.barrier()

    clock = Clock()
    for name in COLLECTIVES:  # DeepSpeed looks some of them up when it starts
        setattr(distributed, name, clock.timed("communication", getattr(distributed, name)))
    build = trainer.train.build_engine

    def build_timed(*arguments: Any, **named: Any) -> Any:
        engine = build(*arguments, **named)
        for method, name in {"forward": "forward", "backward": "backward"}.items():
            setattr(engine, method, clock.timed(name, getattr(engine, method)))
        engine.step = clock.timed("optimiser", engine.step)
        return engine

    trainer.train.build_engine = build_timed
    entries: list[StepLog] = []

    def on_step(entry: StepLog, _: int) -> None:
        entries.append(entry)
        if len(entries) == WARM_UP:
            clock.seconds.clear()

    config = TrainConfig(
        packs=str(packs), output=f"{folder}/run", steps=steps, model=MODEL, num_threads=1,
        epochs=steps, checkpoint_every=10**6,
    )  # fmt: skip
    trainer.train.train(replace(config, zero_stage=zero_stage), on_step)  # type: ignore[arg-type]
    if rank == 0:
        show(entries[WARM_UP:], clock.seconds, zero_stage)


def show(entries: list[StepLog], seconds: Counter[str], zero_stage: int) -> None:
    whole = sum(entry.duration_s for entry in entries)
    tokens = sum(entry.num_tokens for entry in entries)
    shares = {"data": sum(entry.data_s for entry in entries)} | seconds
    shares["rest"] = whole - sum(shares.values())
    print(
        f"{len(entries)} steps of {RANKS} ranks, ZeRO-{zero_stage}: {tokens / whole:,.0f} tokens/s"
    )
    for name in ("data", "forward", "backward", "optimiser", "communication", "rest"):
        print(f"  {name:14} {shares[name] / whole:6.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
