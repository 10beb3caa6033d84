"""A prompt to pictures: ``nextscale sample MODEL PROMPT``. Joins trainer, tokenizer and files.

The model's folder (`trainer.export`) says which visual tokenizer and which text vocabulary it was
trained with; others are refused, since codes and ids would mean something else.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Png
from PIL.PngImagePlugin import PngInfo

from infra.config import ConfigError
from infra.layout import Text
from infra.schedules import NUM_SCALES, Schedule, nearest
from infra.schema import digest
from tokenize_offline import checkpoint, text
from tokenize_offline.codes import decode
from trainer.export import ModelFacts, load_model, read_facts
from trainer.sampling import Sampling, sample_image


def sample(
    folder: str,
    prompt: str,
    sampling: Sampling,
    *,
    num_pictures: int = 1,
    level: int = 256,
    aspect: str = "1:1",
    tokenizer: str = "",
    vocabulary: str = "",
    output: str = "samples",
    device: str = "",
) -> list[Path]:
    """Write ``num_pictures`` PNGs of the prompt, of seeds ``sampling.seed`` and following.

    ``aspect`` is width:height; the nearest of Table 14's grids is taken. The files keep prompt,
    seed and settings as text. Raises ConfigError for what does not belong together.
    """
    facts = read_facts(folder)
    _check_identities(facts, folder, tokenizer, vocabulary)
    schedule = schedule_of(aspect)
    if level not in NUM_SCALES:
        raise ConfigError(f"level is {level}: choose {', '.join(map(str, NUM_SCALES))}")
    if num_pictures < 1:
        raise ConfigError(f"pictures is {num_pictures}: at least 1")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        Path(output).mkdir(parents=True, exist_ok=True)
    except RuntimeError:
        raise ConfigError(f"device {device} is not there: use cpu, or cuda with a GPU") from None
    except OSError as error:
        raise ConfigError(f"output {output} cannot be a folder: {error}") from None
    model = load_model(folder, device)
    if device == "cpu":
        model = model.float()  # bfloat16 is slower there
    draws = checkpoint.load(tokenizer, device)
    ids = np.array(text.load(vocabulary).encode(prompt), np.int32)
    segments = [Text(ids)] if len(ids) else []
    written = []
    for seed in range(sampling.seed, sampling.seed + num_pictures):
        of = replace(sampling, seed=seed)
        codes = sample_image(model, segments, schedule.index, NUM_SCALES[level], of)
        [pixels] = decode(draws, codes[None], schedule, NUM_SCALES[level])
        path = Path(output) / f"{_slug(prompt)}-{level}-{seed}.png"
        note = PngInfo()
        for key, value in {"prompt": prompt, "level": level, **vars(of)}.items():
            note.add_itxt(key, str(value))
        Png.fromarray(pixels).save(path, pnginfo=note)
        written.append(path)
    return written


def schedule_of(aspect: str) -> Schedule:
    """The schedule nearest to ``width:height``. Raises ConfigError for what is no ratio."""
    sides = re.fullmatch(r"0*([1-9]\d{0,5})[:x]0*([1-9]\d{0,5})", aspect)
    if sides is None:
        raise ConfigError(f"aspect is {aspect!r}: write width:height, for example 4:3")
    width, height = map(int, sides.groups())
    return nearest(height, width)


def _check_identities(facts: ModelFacts, folder: str, tokenizer: str, vocabulary: str) -> None:
    for what, option, ours, theirs in (
        ("visual tokenizer", "--tokenizer", checkpoint.identity(tokenizer), facts.tokenizer_id),
        ("text vocabulary", "--vocabulary", text.identity(vocabulary), facts.vocabulary_id),
    ):
        if ours != theirs:
            raise ConfigError(
                f"{folder} was trained with the {what} {theirs}, this is {ours}: name its own "
                f"with {option}"
            )


def _slug(prompt: str) -> str:
    """A name that can be read, and that no other prompt has."""
    words: Sequence[str] = re.findall(r"[a-z0-9]+", prompt.lower())
    return f"{'-'.join(words)[:40].strip('-') or 'picture'}-{digest(prompt)[:6]}"
