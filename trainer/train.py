"""The training loop: packs in their order, one optimiser step per ranks x micro_batches packs.

    nextscale train RECIPE                                    one process
    deepspeed --module trainer.train RECIPE [key=value ...]   one process per GPU; or torchrun -m

A run continues from the newest checkpoint in its output folder. On the CPU the continued run is,
bit for bit, the uninterrupted one: the number of packs consumed is the data's whole state.
"""

import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from infra.config import ConfigError, load
from infra.layout import layout
from infra.segments import Vocabulary
from packing.cost import flops
from packing.reader import Pack, PackError, Packs, PackStream, open_packs, read_pack
from trainer import checkpoint, codebook, log
from trainer.batch import PackTensors, pack_tensors
from trainer.checkpoint import Progress
from trainer.config import ModelConfig, TrainConfig
from trainer.engine import build_engine, gradient_norm, process_group
from trainer.intact import check_packs, check_shards
from trainer.log import StepLog, StepTotals
from trainer.model import Decoder
from trainer.pretrained import initialise

OnStep = Callable[[StepLog, int], None]
"""Called on the first rank after every step, with the number of steps of the whole run."""
Tell = Callable[[str], None]
"""Called on the first rank of a new run with lines that its user should know."""


@dataclass(frozen=True)
class TrainResult:
    """What `train` did; ``steps`` and ``packs_consumed`` count from the start of the run."""

    steps: int
    packs_consumed: int
    resumed_from: int  # step of the checkpoint that was continued; 0: a new run
    last: StepLog | None  # None if there was nothing left to do
    checkpoint: Path
    log: Path


def train(
    config: TrainConfig, on_step: OnStep | None = None, tell: Tell | None = None
) -> TrainResult:
    """Train as configured, or continue; whatever can be wrong is found before the first step.

    Raises ConfigError where packs, codebook and checkpoint do not belong together, and PackError
    for packs that cannot be read.
    """
    packs = open_packs(config.packs)
    check_shards(packs)
    facts, vectors = packs.facts, None
    if path := config.codebook or codebook.of_packs(packs):
        vectors = codebook.read(path, facts.num_codes, facts.tokenizer_id)
    code_dim = config.code_dim if vectors is None else vectors.shape[1]
    output = Path(config.output)
    checkpoints, log_path = output / "checkpoints", output / "log.jsonl"
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output {output} cannot be a folder: {error}") from None
    if config.num_threads:
        torch.set_num_threads(config.num_threads)

    with process_group() as (rank, ranks, device):
        steps = _num_steps(config, packs, ranks)
        identity = _identity(config, packs, code_dim, ranks * config.micro_batches)
        newest = next(reversed(checkpoint.complete(checkpoints)), None)
        if newest:
            checkpoint.check(newest, identity)
        progress = checkpoint.reached(newest) if newest else Progress()
        resumed_from = progress.step
        if rank == 0 and tell and not newest:
            _tell(tell, config, steps, with_codebook=vectors is not None)

        torch.manual_seed(config.seed)
        model = Decoder(config.model, facts.vocabulary, code_dim)
        model.recompute = config.recompute
        if vectors is not None:
            model.load_codebook(vectors)
        if config.initialise_from is not None and not newest:
            initialise(model, config, facts)
        # Packs are read only now, as at scale it takes hours: what goes wrong fast went before.
        if config.verify_packs and progress.step < steps:
            check_packs(
                packs,
                rank=rank,
                ranks=ranks,
                micro_steps=config.micro_batches,
                packs_consumed=progress.packs_consumed % packs.num_packs,
                steps=steps - progress.step,
            )
        universal = newest is not None and checkpoint.convert(newest)
        if config.compile:
            model.compile_layers()
        engine = build_engine(model, config, device, universal)
        if newest:
            checkpoint.load(newest, engine)
        if rank == 0:
            log.keep_until(log_path, progress.step)

        if progress.step < steps:
            _probe(engine, packs, config, device)
        entry = None
        batches = _batches(packs, config, progress.packs_consumed, rank, ranks)
        while progress.step < steps:
            began = time.perf_counter()
            batch, packs_consumed = next(batches)
            data_s = time.perf_counter() - began
            progress = Progress(progress.step + 1, packs_consumed)
            rate = _learning_rate(config, progress.step, steps)
            totals, norm = _step(engine, batch, rate, device)
            duration_s = time.perf_counter() - began
            entry = totals.log(
                step=progress.step,
                packs_consumed=packs_consumed,
                duration_s=duration_s,
                data_s=data_s,
                gradient_norm=norm,
                learning_rate=rate,
                mfu=_mfu(config, packs, packs_consumed, ranks, duration_s),
            )
            if not math.isfinite(entry.loss + norm):  # before it is saved
                raise FloatingPointError(
                    f"step {entry.step} has loss {entry.loss} and gradient norm {norm}: go on from "
                    "the last checkpoint with a lower learning_rate"
                )
            if rank == 0:
                log.append(log_path, entry)
                if on_step:
                    on_step(entry, steps)
            if progress.step % config.checkpoint_every == 0 or progress.step == steps:
                checkpoint.save(checkpoints, engine, progress, identity, config.keep_checkpoints)
        engine.destroy()
    return TrainResult(
        steps=progress.step,
        packs_consumed=progress.packs_consumed,
        resumed_from=resumed_from,
        last=entry,
        checkpoint=checkpoint.complete(checkpoints)[-1],
        log=log_path,
    )


def _tell(tell: Tell, config: TrainConfig, steps: int, with_codebook: bool) -> None:
    if steps < config.steps:
        tell(
            f"epochs: {config.epochs} of these packs are {steps:,} steps, fewer than the "
            f"{config.steps:,} of `steps`"
        )
    if not with_codebook and config.initialise_from is None:
        tell("no codebook, no model to start from: visual embeddings start at random")


def _probe(engine: Any, packs: Packs, config: TrainConfig, device: torch.device) -> None:
    """Run the longest pack forward and backward first: memory that is too small shows at once.

    Its gradients are thrown away, so that no step differs for it. They are there all at once, where
    ZeRO-2 and 3 would pass them on: on the safe side by their size. Raises ConfigError.
    """
    longest = int(np.argmax(packs.index["num_tokens"].to_numpy()))
    to_tensors = partial(_tensors, packs.facts.vocabulary, config.model, config.scale_alpha)
    pack = to_tensors(read_pack(packs, longest)).to(device)
    parameters = [p for p in engine.parameters() if p.requires_grad]
    try:
        torch.autograd.grad(engine.module(pack).loss, parameters)
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"the longest pack, {longest} with {pack.num_tokens:,} tokens, does not fit into the "
            "memory of the device: set `recompute`, raise zero_stage, or lower tokens_per_pack"
        ) from None


def _step(
    engine: Any, batch: Sequence[PackTensors], rate: float, device: torch.device
) -> tuple[StepTotals, float]:
    """One optimiser step over this rank's packs; what it sums up to, and the gradient's norm."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    batch = [pack.to(device) for pack in batch]
    # Every position counts the same, whatever pack and rank it is in: divide by the weight of the
    # whole step. DeepSpeed averages over ranks and micro-batches, which is taken back here.
    weight = torch.stack([pack.weights.sum() for pack in batch]).sum()
    torch.distributed.all_reduce(weight)
    share = torch.distributed.get_world_size() * len(batch) / weight.clamp_min(1.0)
    totals = StepTotals(device)
    norm = None
    for number, pack in enumerate(batch, start=1):
        result = engine(pack)
        engine.backward(result.loss * share)
        if number == len(batch):
            norm = gradient_norm(engine)
        engine.step()
        totals.add(pack, result)
    return totals.reduce(), float(norm if norm is not None else engine.get_global_grad_norm())


def _batches(
    packs: Packs, config: TrainConfig, packs_consumed: int, rank: int, ranks: int
) -> Iterator[tuple[list[PackTensors], int]]:
    """(this rank's packs of a step, packs consumed after it) from ``packs_consumed`` on, for ever.

    Packs that fill no whole step at the end of an epoch are left out, and counted as consumed.
    """
    to_tensors = partial(_tensors, packs.facts.vocabulary, config.model, config.scale_alpha)
    while True:
        epoch, consumed = divmod(packs_consumed, packs.num_packs)
        stream = PackStream(
            packs,
            rank=rank,
            num_ranks=ranks,
            micro_steps=config.micro_batches,
            packs_consumed=consumed,
        )
        loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=config.reader_workers,
            collate_fn=to_tensors,
            generator=torch.Generator(),  # else the loader draws from the global random state
        )
        read = iter(loader)
        for _ in range(stream.num_steps):
            packs_consumed += stream.packs_per_step
            yield list(islice(read, config.micro_batches)), packs_consumed
        packs_consumed = (epoch + 1) * packs.num_packs


def _tensors(vocabulary: Vocabulary, model: ModelConfig, alpha: float, pack: Pack) -> PackTensors:
    labels = ((document.task, document.source) for document in pack.documents)
    return pack_tensors(layout(pack.segments, vocabulary), model, alpha, labels)


def _num_steps(config: TrainConfig, packs: Packs, ranks: int) -> int:
    per_step = ranks * config.micro_batches
    if packs.num_packs < per_step:
        raise ConfigError(
            f"{config.packs} holds {packs.num_packs} packs, one step of {ranks} ranks with "
            f"micro_batches {config.micro_batches} takes {per_step}: lower one of them"
        )
    steps = min(config.steps, config.epochs * (packs.num_packs // per_step))
    if config.warmup_steps >= steps:
        raise ConfigError(
            f"warmup_steps is {config.warmup_steps}, but {config.epochs} epochs of "
            f"{packs.num_packs} packs are only {steps} steps: lower it, or raise epochs"
        )
    return steps


def _identity(config: TrainConfig, packs: Packs, code_dim: int, per_step: int) -> dict[str, Any]:
    """What must stay the same for a checkpoint to be continued."""
    content = hashlib.blake2b(digest_size=16)
    for checksum in packs.index["sha256"].to_pylist():
        content.update(checksum.encode())
    return {
        "tokenizer": packs.facts.tokenizer_id,
        "vocabulary": packs.facts.vocabulary_id,
        "packs": content.hexdigest(),
        "model": asdict(config.model) | {"code_dim": code_dim},
        "zero_stage": config.zero_stage,
        "trainable": config.trainable,
        "packs_per_step": per_step,
    }


def _mfu(
    config: TrainConfig, packs: Packs, packs_consumed: int, ranks: int, duration_s: float
) -> float | None:
    """The step's model FLOPs over what all ranks could have done meanwhile."""
    if config.peak_tflops is None or config.trainable != "all":
        return None  # frozen layers leave out a part of the work
    per_step = ranks * config.micro_batches
    # Every epoch's first step begins at its first pack, so a step never spans two.
    step = packs.index.slice((packs_consumed - per_step) % packs.num_packs, per_step)
    tokens, loss, pairs = (step[f"num_{of}"].to_numpy() for of in ("tokens", "loss", "pairs"))
    done = flops(tokens, loss, pairs, config.model.shape(packs.facts.vocabulary)).sum()
    return float(done) / (ranks * config.peak_tflops * 1e12 * duration_s)


def _learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Of step 1, 2, ...: a linear warm-up, then constant or half a cosine towards 0."""
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps + 1)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2


def main(arguments: Sequence[str]) -> None:
    """The entry point of launchers: RECIPE [key=value ...]."""
    # The deepspeed launcher adds --local_rank, which it also says by the environment.
    words = [word for word in arguments if not word.startswith("--local_rank")]
    if not words:
        sys.exit("trainer.train: name a recipe: RECIPE [key=value ...]")
    recipe, *overrides = words

    def show(entry: StepLog, steps: int) -> None:
        print(
            f"step {entry.step}/{steps} loss {entry.loss:.4f} {entry.tokens_per_s:.0f} tokens/s",
            flush=True,
        )

    try:
        config = load(TrainConfig, recipe, overrides)
        train(config, show, partial(print, flush=True))
    except (ConfigError, PackError, FloatingPointError) as error:
        sys.exit(f"trainer.train: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
