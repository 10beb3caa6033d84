"""Packs -> trained steps: ``nextscale train RECIPE``. Joins trainer, packs and tokenizer."""

import os
from collections.abc import Sequence
from pathlib import Path

from infra.config import ConfigError, build, load
from infra.runs import TableRecord
from packing.packs import PackError
from pipelines.progress import Progress, say
from pipelines.recipe import Recipe
from pipelines.status import State
from pipelines.train_page import read_log, write_train_page
from trainer.config import TrainConfig


def train_config(recipe: Recipe, packs: TableRecord | None = None) -> TrainConfig | None:
    """The trainer's settings over these packs; raises ConfigError for what they cannot be.

    Without ``packs`` only the section is checked. Every version of the packs is a run of its own.
    """
    if recipe.train is None:
        return None
    tree = dict(recipe.train)
    if not recipe.storage.is_local and "output" not in tree:
        raise ConfigError(
            f"workspace {recipe.workspace} is no local folder: give train.output, a folder for the "
            "log and the checkpoints"
        )
    for key in ("packs", "codebook"):
        if key in tree:
            raise ConfigError(
                f"train.{key} is set by the recipe's own packs and tokenizer: remove it"
            )
    version = packs.parts[0].file.partition("/")[0] if packs else "v"
    output = tree.pop("output", None) or recipe.storage.path(f"train/{recipe.tokens_name}")
    folder = recipe.storage.path(f"packs/{recipe.tokens_name}/{version}")
    tree |= {"output": f"{output}/{version}", "packs": folder}
    return build(TrainConfig, tree, "train")


def train_packs(recipe: Recipe, packs: TableRecord) -> None:
    """Train on these packs, going on from the last checkpoint if there is one.

    Raises ConfigError where the packs are of other codes or text ids than the recipe's.
    """
    config = train_config(recipe, packs)
    assert config is not None
    assert recipe.tokenize is not None
    operator = recipe.tokenize.operator
    for name, value in operator.facts.items():
        if packs.facts[name] != value:
            raise ConfigError(
                f"{packs.table} has {name} {packs.facts[name]}, the recipe's tokenizer {value}: "
                "take the tokenizer that made the packs, or run `nextscale pack` again"
            )
    _train(config, f"train/{recipe.tokens_name}")


def train_folder(path: Path, overrides: Sequence[str] = ()) -> None:
    """Train as a recipe of the trainer's own says, on any folder of packs (`TrainConfig`)."""
    config = load(TrainConfig, path, overrides)
    _train(config, f"train {config.packs}")


def _train(config: TrainConfig, name: str) -> None:
    from trainer.log import StepLog
    from trainer.train import train

    progress = Progress(name, config.steps, "steps")

    def show(entry: StepLog, steps: int) -> None:
        progress.total = steps
        progress.add(entry.step - progress.done)

    try:
        result = train(config, show, say)
    except (PackError, FloatingPointError) as error:
        raise ConfigError(str(error)) from None
    if os.environ.get("RANK", "0") != "0":  # under a launcher the first rank tells
        return
    if result.last is None:
        progress.close("up to date")
    else:
        progress.close(f"{result.last.tokens_per_s:,.0f} tokens/s at the end")
        write_train_page(str(result.log), str(result.log.with_name("training.html")))


def train_state(recipe: Recipe, packs: TableRecord) -> State:
    """How far the training over these packs has come."""
    config = train_config(recipe, packs)
    assert config is not None
    name = f"train/{recipe.tokens_name}"
    log = Path(config.output) / "log.jsonl"
    if not log.exists():
        return State(name, "missing", "never run")
    steps = read_log(str(log))
    per_step = steps[0]["packs_consumed"] if steps else config.micro_batches
    whole = min(config.steps, config.epochs * (packs.num_rows // per_step))
    done = len(steps)
    return State(name, "done" if done >= whole else "partial", f"{done:,} of {whole:,} steps")


def losses(recipe: Recipe, packs: TableRecord) -> list[str]:
    """Lines that compare the first and the last steps of the run over these packs."""
    config = train_config(recipe, packs)
    if config is None:
        return []
    steps = read_log(str(Path(config.output) / "log.jsonl"))
    if not steps:
        return []
    first, last = steps[0], steps[-1]

    def line(name: str, before: float | None, after: float | None) -> list[str]:
        if before is None or after is None:
            return []
        return [f"{name:<10}{before:.3f} -> {after:.3f}"]

    lines = [f"trained   {last['step']} steps, {last['tokens_per_s']:,.0f} tokens/s"]
    lines += line("loss", first["loss"], last["loss"])
    lines += line(" text", first["text_loss"], last["text_loss"])
    for scale, (before, after) in enumerate(
        zip(first["scale_losses"], last["scale_losses"], strict=True), start=1
    ):
        lines += line(f" scale {scale}", before, after)
    return lines
