"""Train a tokenizer on photographs: ``nextscale train-tokenizer RECIPE``.

    nextscale train-tokenizer RECIPE                                          one process
    torchrun --nproc-per-node 8 -m pipelines.cli train-tokenizer RECIPE       one per GPU

`training_recipe` says what can be set, `stages` what is learnt, `loop` how it goes on, `draws` what
chance decides. Some photographs are held out by a hash of their names and never trained on: the
quality that is reported is measured on them. Stopped, the same command goes on where it was.

Beside the checkpoint NAME.safetensors and its settings NAME.json a training leaves
NAME.training.json (recipe, files, time, quality) and NAME.training/ with its state, log.jsonl and
samples/.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from infra import config
from infra.config import ConfigError
from tokenize_offline import checkpoint, frechet, siglip2, training_log, training_state
from tokenize_offline.evaluation import Quality, evaluate
from tokenize_offline.loop import Loop
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Pictures, open_pictures, split
from tokenize_offline.ranks import Ranks, join
from tokenize_offline.sample_grid import write_sample_grid
from tokenize_offline.stages import Log, Stages
from tokenize_offline.teacher import EfficientNetTeacher, Teacher, load_teacher
from tokenize_offline.training_recipe import TrainTokenizer

_SAMPLES = 6  # pictures on a sample grid
_NAMED = 10_000  # training pictures in the record, at most


def main(path: str | Path, overrides: Sequence[str] = ()) -> None:
    """``nextscale train-tokenizer PATH [key=value …]``. Raises ConfigError."""
    train_tokenizer(config.load(TrainTokenizer, path, overrides))


def train_tokenizer(recipe: TrainTokenizer, log: Callable[[str], None] = print) -> list[Quality]:
    """Train, or go on; write the checkpoint; the quality on held-out photographs per level.

    Every process of torchrun calls this; all but the first return no quality. Raises ConfigError
    for what is wrong with the recipe, its paths or the state that it would go on from.
    """
    recipe.check()
    torch.set_num_threads(recipe.learning.num_threads)
    with ExitStack() as stack:
        ranks = stack.enter_context(join(recipe.device))
        if ranks.first:
            stack.enter_context(training_state.held(recipe.folder))
        say = log if ranks.first else _silent
        training, held_out = _pictures(recipe, ranks, say)
        teacher = load_teacher(recipe.teacher, ranks.device)
        features = _features(recipe, teacher, ranks)
        stages = Stages(_new_tokenizer(recipe, teacher), recipe.learning, teacher, ranks)
        measure = partial(_measure, recipe, held_out, teacher, features, say)
        look = partial(_look, recipe, held_out, measure)
        loop = Loop(recipe, stages, training, look, say)
        tokenizer = loop.train(recipe.identity(training))
        if not ranks.first:
            return []
        checkpoint.save(tokenizer, recipe.output)
        # What was written is measured, with its float16 weights.
        stored = checkpoint.load(recipe.output, ranks.device)
        qualities = measure(stored, by_scale=True)
    record = {
        "recipe": config.as_dict(recipe),
        "num_trained_on": len(training),
        "trained_on": list(training.names)[:_NAMED],
        "held_out": list(held_out.names),
        "seconds": round(loop.seconds),
        "quality": [dataclasses.asdict(quality) for quality in qualities],
    }
    text = json.dumps(record, indent=2)
    Path(recipe.output).with_suffix(".training.json").write_text(text + "\n", encoding="utf-8")
    return qualities


def _pictures(recipe: TrainTokenizer, ranks: Ranks, say: Log) -> tuple[Pictures, Pictures]:
    """Those to train on, and those of the others that the first rank measures the quality on."""
    pictures = open_pictures(
        recipe.images,
        recipe.documents,
        short_side=recipe.short_side,
        exclude=recipe.exclude,
        oversample=recipe.oversample,
        log=say,
    )
    training, held_out = split(
        pictures, recipe.held_out, recipe.held_out_share, recipe.learning.seed
    )
    if not len(training):
        raise ConfigError("held_out_share leaves no photograph to train on: lower it")
    say(f"{len(training)} photographs to train on, {len(held_out)} held out")
    stride = -(-len(held_out) // recipe.measured_at_most)
    measured = held_out[:: max(1, stride)]
    return training, measured.usable() if ranks.first else measured


def _new_tokenizer(recipe: TrainTokenizer, teacher: Teacher) -> Tokenizer:
    settings = recipe.tokenizer
    if settings.teacher_dim != teacher.dim:
        raise ConfigError(
            f"tokenizer.teacher_dim is {settings.teacher_dim}: set it to {teacher.dim}"
        )
    torch.manual_seed(recipe.learning.seed)
    tokenizer = Tokenizer(settings)
    if settings.siglip2 is not None:
        siglip2.initialise(tokenizer, recipe.teacher)
    return tokenizer


def _features(
    recipe: TrainTokenizer, teacher: Teacher, ranks: Ranks
) -> frechet.PictureFeatures | None:
    """What the Fréchet distance is measured with."""
    if recipe.frechet != "teacher":
        return frechet.load_inception(recipe.frechet, ranks.device) if recipe.frechet else None
    if not isinstance(teacher, EfficientNetTeacher):
        raise ConfigError("frechet is teacher, which is no EfficientNet: give a TorchScript file")
    return frechet.efficientnet_features(teacher)


def _look(
    recipe: TrainTokenizer,
    photographs: Pictures,
    measure: Callable[[Tokenizer], list[Quality]],
    tokenizer: Tokenizer,
    stage: str,
    step: int,
) -> None:
    """Sample pictures and quality, when it is time."""
    if stage == "branches" or not photographs:  # before the joint stage there are no codes
        return
    if recipe.sample_every and step % recipe.sample_every == 0:
        path = recipe.folder / "samples" / f"{stage}-{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        write_sample_grid(tokenizer, photographs[:_SAMPLES], 256, path)
    if recipe.evaluate_every and step % recipe.evaluate_every == 0:
        for quality in measure(tokenizer):
            entry = {"stage": stage, "step": step, "quality": dataclasses.asdict(quality)}
            training_log.append(recipe.log_path, entry)


def _measure(
    recipe: TrainTokenizer,
    photographs: Pictures,
    teacher: Teacher,
    features: frechet.PictureFeatures | None,
    say: Log,
    tokenizer: Tokenizer,
    by_scale: bool = False,
) -> list[Quality]:
    qualities = []
    for level in recipe.levels if photographs else ():
        q = evaluate(tokenizer, photographs, level, teacher, features, by_scale=by_scale)
        qualities.append(q)
        distance = f", Fréchet {q.frechet_distance:.2f}" if q.frechet_distance is not None else ""
        say(
            f"level {q.level}: {q.psnr_db:.2f} dB, SSIM {q.ssim:.3f}{distance} (thumbnails "
            f"{q.thumbnail16_db:.2f}, {q.thumbnail32_db:.2f} dB), {q.usage_all:.0%} of codes used"
        )
    return qualities


def _silent(line: str) -> None:
    """The other ranks say nothing."""
