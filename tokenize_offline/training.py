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
from itertools import islice
from pathlib import Path

import torch

from infra import config
from infra.config import ConfigError
from tokenize_offline import checkpoint, frechet, siglip2, training_log, training_state
from tokenize_offline.evaluation import Quality, evaluate
from tokenize_offline.loop import Loop
from tokenize_offline.model import Tokenizer
from tokenize_offline.perceptual import PerceptualDistance, load_perceptual
from tokenize_offline.photographs import Pictures, open_pictures, split
from tokenize_offline.ranks import Ranks, join
from tokenize_offline.sample_grid import write_sample_grid
from tokenize_offline.stages import Log, Stages
from tokenize_offline.teacher import EfficientNetTeacher, Teacher, load_teacher
from tokenize_offline.training_recipe import TrainTokenizer
from tokenize_offline.weight_files import content

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
        with ranks.together():  # what is quick to find out before what takes long
            teacher = load_teacher(recipe.teacher, ranks.device)
            tokenizer = _new_tokenizer(recipe, teacher)
            features = _features(recipe, teacher, ranks)
            perceptual = _perceptual(recipe, ranks)
            training, held_out = _pictures(recipe, ranks, log)
            if ranks.first:
                stack.enter_context(training_state.held(recipe.folder))
        contents = {"teacher": content(teacher), "perceptual": content(perceptual)}
        stages = Stages(tokenizer, recipe.learning, teacher, ranks, perceptual)
        say = log if ranks.first else _silent
        say(f"{len(training)} photographs to train on, {len(held_out)} held out to measure on")
        measure = partial(_measure, recipe, held_out, stages, features, say)
        look = partial(_look, recipe, held_out, ranks, measure)
        loop = Loop(recipe, stages, training, look, say)
        tokenizer = loop.train(recipe.identity(training, contents))
        if ranks.first:
            checkpoint.save(tokenizer, recipe.output)
            tokenizer = checkpoint.load(recipe.output, ranks.device)
        # What was written is measured, with its 16-bit weights. That ends what ranks do together.
        ranks.copy_from_first(tokenizer)
        qualities = measure(tokenizer, recipe.levels, by_scale=True)
    if not ranks.first:
        return []
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


def _pictures(recipe: TrainTokenizer, ranks: Ranks, log: Log) -> tuple[Pictures, Pictures]:
    """Those to train on, and those of the others that the quality is measured on."""
    pictures = open_pictures(
        recipe.images,
        recipe.documents,
        short_side=recipe.short_side,
        exclude=recipe.exclude,
        oversample=recipe.oversample,
        log=log if ranks.first else lambda line: log(f"rank {ranks.rank}: {line}"),
        cache_bytes=recipe.cache_mib * 2**20,
    )
    training, held_out = split(
        pictures, recipe.held_out, recipe.held_out_share, recipe.learning.seed
    )
    if not len(training):
        raise ConfigError("held_out_share leaves no photograph to train on: lower it")
    needed = pictures.group_bytes * recipe.learning.pictures_at(256) // 2**20
    needed *= recipe.learning.gradient_accumulation
    if needed > recipe.cache_mib and ranks.first:
        log(
            f"cache_mib is {recipe.cache_mib}, less than the row groups of a step, {needed:,} MiB: "
            "every picture will cost the reading of one; set it to that or more"
        )
    measured = held_out.some(recipe.measured_at_most, recipe.learning.seed)
    if not recipe.held_out_share:
        if ranks.first:
            log("held_out_share is 0: no quality is measured and no sample pictures are drawn")
    elif next(measured.decodable(), None) is None:
        raise ConfigError(
            f"held_out {recipe.held_out!r} and held_out_share {recipe.held_out_share} hold out "
            f"{len(held_out)} of {len(pictures)} photographs, none of which can be measured on: "
            "raise held_out_share, or set it to 0 to train without measuring"
        )
    return training, measured


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


def _perceptual(recipe: TrainTokenizer, ranks: Ranks) -> PerceptualDistance | None:
    settings = recipe.learning.perceptual
    return load_perceptual(settings, ranks.device) if settings.weight else None


def _look(
    recipe: TrainTokenizer,
    photographs: Pictures,
    ranks: Ranks,
    measure: Callable[[Tokenizer, Sequence[int]], list[Quality]],
    tokenizer: Tokenizer,
    stage: str,
    step: int,
) -> None:
    """Sample pictures and quality, when it is time and as far as they are not there yet."""
    if recipe.samples(stage, step) and photographs and ranks.first:
        path = recipe.folder / "samples" / f"{stage}-{step:07d}.png"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            beside = path.with_name(f".{path.name}.writing")
            shown = list(islice(photographs.decodable(), _SAMPLES))
            write_sample_grid(tokenizer, shown, 256, beside)
            beside.replace(path)
    if recipe.measures(stage, step) and photographs:
        known = training_log.measured_levels(recipe.log_path, stage, step) if ranks.first else set()
        missing = [level for level in recipe.levels if level not in known]
        # All ranks do what the first one's log misses; levels are powers of 2, their sum says all.
        asked = ranks.from_first(sum(missing))
        for level in recipe.levels:
            for quality in measure(tokenizer, [level]) if asked & level else ():
                entry = {"stage": stage, "step": step, "quality": dataclasses.asdict(quality)}
                if ranks.first:
                    training_log.append(recipe.log_path, entry)


def _measure(
    recipe: TrainTokenizer,
    photographs: Pictures,
    stages: Stages,
    features: frechet.PictureFeatures | None,
    say: Log,
    tokenizer: Tokenizer,
    levels: Sequence[int],
    by_scale: bool = False,
) -> list[Quality]:
    """The quality at each level; every rank measures its share of the photographs."""
    qualities, ranks = [], stages.ranks
    for level in levels if photographs else ():
        share = photographs[ranks.rank :: ranks.size].decodable()
        q = evaluate(
            tokenizer, share, level, stages.teacher, features, by_scale=by_scale, ranks=ranks
        )
        qualities.append(q)
        distance = f", Fréchet {q.frechet_distance:.2f}" if q.frechet_distance is not None else ""
        if features is not None and q.frechet_distance is None:
            distance = f", no Fréchet distance of as few as {q.num_photographs} photographs"
        say(
            f"level {q.level}: {q.psnr_db:.2f} dB, SSIM {q.ssim:.3f}{distance} (thumbnails "
            f"{q.thumbnail16_db:.2f}, {q.thumbnail32_db:.2f} dB), {q.usage_all:.0%} of codes used"
        )
    return qualities


def _silent(line: str) -> None:
    """The other ranks say nothing, but for pictures that only they have seen."""
