"""``nextscale calibrate PACKS``: seconds per token, pair and target, from steps of the trainer.

    nextscale calibrate demo-256 --workspace workspace/demo --recipe demo

The recipe's model takes steps on pieces of real packs: whole packs and their first 1, 2, 4, ...
documents, as they are or joined into one document (as many tokens, more pairs), all predicted or
the first one alone. So tokens, pairs and targets vary apart from each other, whatever the packs
hold. Every piece is measured several times, in turns; its median counts. ``pack.cost_model`` takes
the file that is written. Under torchrun all ranks take the same piece at a time, so that what
ranks cost each other is part of the fixed time.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra.config import ConfigError, build, load, read
from infra.layout import Counts, Segment, count, layout
from infra.storage import Storage
from packing.calibration import Calibration, Fitted, fit, write_calibration
from packing.packs import PackError, Packs, open_packs, read_pack
from pipelines.recipe import Recipe, recipe_path
from trainer.config import TrainConfig

if TYPE_CHECKING:  # torch takes seconds to import
    import torch

    from trainer.batch import PackTensors

WARM_UP = 2  # rounds over all pieces that are not counted
Piece = tuple[tuple[Segment, ...], ...]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Effort:
    """How much is measured: pieces, and steps of each."""

    num_packs: int = 32
    repeats: int = 5

    def __post_init__(self) -> None:
        if self.num_packs < 8 or self.repeats < 1:
            raise ConfigError(
                f"packs measured {self.num_packs}, repeats {self.repeats}: use at least 8 and 1"
            )


def main(
    source: str,
    workspace: str,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    effort: Effort | None = None,
    output: str | None = None,
) -> Calibration:
    """Measure, print the coefficients and write them, to ``<workspace>/calibration.json``.

    ``source`` is the name of packs of the workspace, or a folder of packs. Raises ConfigError for
    packs, a recipe or an output that cannot be used, and for packs that tell nothing.
    """
    output = output or Storage(workspace).path("calibration.json")
    folder, name = os.path.split(output)
    if not name.endswith(".json"):
        raise ConfigError(f"output is {output}: give it a name that ends in .json")
    table = Storage(workspace).path(f"packs/{source.removeprefix('packs/')}")
    place = table if Storage(table).exists() else source
    try:
        packs = open_packs(place)
    except PackError as error:
        raise ConfigError(f"{error}: name packs of {workspace}, or a folder of packs") from None
    config = settings(place, recipe, overrides)
    Storage(folder or ".").check(writable=True)
    found = calibrate(packs, config, effort or Effort())
    for line in describe(found, packs):
        print(line)
    write_calibration(output, found)
    print(f"\n{output}: set pack.cost_model to it")
    return found


def settings(packs: str, recipe: str | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """The trainer's settings over these packs: of a recipe's ``train`` section or of the trainer's
    own file; without either, its defaults. Raises ConfigError."""
    given: dict[str, Any] = {"packs": packs, "output": "calibration"}  # nothing is written there
    if recipe is None:
        return build(TrainConfig, {**given, "steps": 1})
    path = recipe_path(recipe)
    if "packs" in read(path):
        return replace(load(TrainConfig, path, overrides), **given)
    section = load(Recipe, path, overrides).train
    if section is None:
        raise ConfigError(f"recipe {recipe} has no `train` section: add one")
    return build(TrainConfig, {**section, **given}, "train")


def calibrate(packs: Packs, config: TrainConfig, effort: Effort) -> Calibration:
    """The trainer's step, measured on this machine. Raises ConfigError where that cannot be."""
    import torch

    from trainer.batch import pack_tensors
    from trainer.engine import build_engine, process_group
    from trainer.model import Decoder

    vocabulary = packs.facts.vocabulary
    try:
        sequences = [layout(piece, vocabulary) for piece in pieces(packs, effort.num_packs)]
    except PackError as error:
        raise ConfigError(f"{packs.storage.root}: {error}") from None
    tensors = [pack_tensors(sequence, config.model, config.scale_alpha) for sequence in sequences]
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    with process_group() as (_, ranks, device):
        model = Decoder(config.model, vocabulary, config.code_dim)
        model.recompute = config.recompute
        engine = build_engine(model, replace(config, micro_batches=1), device)
        for group in engine.optimizer.param_groups:
            group["lr"] = 0.0  # the same weights in every step
        passes_s, update_s = _measure(engine, tensors, effort.repeats, device)
        engine.destroy()
    tokens, loss, pairs = np.array([sequence.counts for sequence in sequences]).T
    try:
        fitted = fit(tokens, loss, pairs, passes_s + update_s / config.micro_batches)
    except ValueError as error:
        raise ConfigError(f"{packs.storage.root}: {error}") from None
    cuda = device.type == "cuda"
    return Calibration(
        fitted=fitted,
        model=config.model.shape(vocabulary),
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        dtype="bfloat16" if cuda else "float32",
        num_threads=torch.get_num_threads(),
        num_ranks=ranks,
        micro_batches=config.micro_batches,
        recompute=config.recompute,
    )


def pieces(packs: Packs, number: int) -> Iterator[Piece]:
    """So many pieces of packs, chosen from few pairs to many; none has more than a whole pack."""
    pairs = packs.index["num_pairs"].to_numpy()
    by_pairs = np.argsort(pairs, kind="stable")
    for k, place in enumerate(np.linspace(len(pairs) - 1, 0, number).round().astype(int)):
        documents = tuple(read_pack(packs, int(by_pairs[place])).segments)
        # In turn: a whole pack, one predicted in part, its first documents, these joined into one.
        if k % 4 == 1:
            documents = _predict_first_alone(documents)
        elif k % 4 > 1:
            documents = documents[: 1 << (k // 4 % len(documents).bit_length())]
        if k % 4 == 3:
            documents = _join(documents, int(pairs.max()))
        yield documents


def _predict_first_alone(documents: Piece) -> Piece:
    first, *others = documents
    return first, *(tuple(replace(part, loss=False) for part in rest) for rest in others)


def _join(documents: Piece, most_pairs: int) -> Piece:
    """One document of all, or of the first few where it would attend to too many pairs."""
    while len(documents) > 1:
        joined = tuple(chain.from_iterable(documents))
        if count(joined).num_pairs <= most_pairs:
            return (joined,)
        documents = documents[: len(documents) // 2]
    return documents


def _measure(
    engine: Any, tensors: Sequence["PackTensors"], repeats: int, device: "torch.device"
) -> tuple[Floats, float]:
    """Median seconds of both passes over each pack, and of the optimiser's step."""
    import torch

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    passes, updates = np.zeros((2, WARM_UP + repeats, len(tensors)))
    # Another order in every round, the same on all ranks; at first the dearest pack.
    shuffle = np.random.default_rng(0)
    order = np.arange(len(tensors))
    for turn in range(WARM_UP + repeats):
        for k in order.tolist():
            torch.distributed.barrier()
            start = now()
            pack = tensors[k].to(device)
            try:
                engine.backward(engine(pack).loss / pack.num_tokens)
                middle = now()
                engine.step()
            except torch.OutOfMemoryError:
                raise ConfigError(
                    f"a pack of {pack.num_tokens:,} tokens does not fit into the memory of the "
                    "device: set train.recompute, or a smaller model"
                ) from None
            passes[turn, k], updates[turn, k] = middle - start, now() - middle
        order = shuffle.permutation(len(tensors))
    return np.median(passes[WARM_UP:], axis=0), float(np.median(updates[WARM_UP:]))


def describe(found: Calibration, packs: Packs) -> Iterator[str]:
    """What was found, and where the time of all these packs goes, as lines of text."""
    fitted: Fitted = found.fitted
    of = fitted.coefficients
    ranks = f"{found.num_ranks} rank{'s' * (found.num_ranks > 1)}"
    yield f"{found.device}, {found.dtype}, {found.num_threads} threads, {ranks}"
    yield (
        f"{fitted.num_packs} pieces of packs; median error {fitted.residual:.1%}, "
        f"condition {fitted.condition:.0f}"
    )
    total = Counts(*(int(packs.index[name].to_numpy().sum()) for name in Counts._fields))
    rows = (
        ("token", of.per_token, total.num_tokens),
        ("pair", of.per_pair, total.num_pairs),
        ("target", of.per_loss, total.num_loss),
        ("pack", of.per_pack, packs.num_packs),
    )
    time_s = sum(each * number for _, each, number in rows)
    yield f"\nper          seconds   of the time of {packs.num_packs:,} packs"
    for what, each, number in rows:
        yield f"{what:<8} {each:>11.3g} {each * number / time_s:>8.1%}"
