"""The text that a model is asked with: a recipe's own or a file of ``prompts/``, and its variables.

    {caption}              the caption that came with the sample; so {key}, {source}, {topic}, …
    {metadata}             all that the source says of the sample, as JSON
    {metadata.exif.lens}   one field of it, by path; a number is the place in a list
    {metadata.title|none}  what stands after the bar where there is no such value

Values are data: they go in once, are never looked at for variables again, lose their control
characters and are cut at a length. Other braces, as in ``{"text": "…"}``, stand for themselves.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.config import ConfigError

PROMPTS = Path(__file__).parent / "prompts"
COLUMNS = ("caption", "key", "source", "metadata", "topic", "ocr_text")
"""What a variable may name: columns of the samples, and scores if the phase's input joins them."""

_VARIABLE = re.compile(r"\{(\w+)((?:\.[^{}|.\n]+)*)(?:\|([^{}\n]*))?\}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Filled:
    """A prompt with a row's values. ``missing``: variables without one (the text is of no use
    then); ``cut``: whether a value was too long."""

    text: str
    missing: tuple[str, ...]
    cut: bool


def read_prompt(prompt: str) -> str:
    """``prompt`` itself, or the contents of the ``.txt`` file that it names.

    The name is a path, or that of one of ours. Raises ConfigError for a missing file, an empty text
    or an unknown variable.
    """
    if prompt.endswith(".txt") and "\n" not in prompt:
        path = next((p for p in (Path(prompt), PROMPTS / prompt) if p.is_file()), None)
        if path is None:
            ours = ", ".join(sorted(p.name for p in PROMPTS.glob("*.txt")))
            raise ConfigError(f"caption: prompt file {prompt} does not exist; ours are {ours}")
        prompt = path.read_text(encoding="utf-8")
    prompt = prompt.strip()
    if not prompt:
        raise ConfigError("caption: the prompt is empty: give a text or the name of a .txt file")
    for found in _VARIABLE.finditer(prompt):
        if found[1] not in COLUMNS:
            known = ", ".join(f"{{{name}}}" for name in COLUMNS)
            raise ConfigError(
                f"caption: the prompt holds {found[0]}: variables are {known} and fields such as "
                "{metadata.title}"
            )
        if found[2] and found[1] != "metadata":
            raise ConfigError(
                f"caption: the prompt holds {found[0]}: only metadata has fields: "
                f"write {{{found[1]}}}"
            )
    return prompt


def columns_of(prompt: str) -> tuple[str, ...]:
    """The columns that the prompt's variables take their values from."""
    named = {found[1] for found in _VARIABLE.finditer(prompt)}
    return tuple(name for name in COLUMNS if name in named)


def wording(prompt: str) -> str:
    """The prompt without its variables."""
    return _VARIABLE.sub(" ", prompt)


def fill(prompt: str, values: Mapping[str, Any], max_characters: int) -> Filled:
    """Put a row's values into a prompt, each cut after ``max_characters``.

    ``values`` are by column; ``metadata`` as `parse_metadata` gives it. None, white space and a
    path that leads nowhere are no value: the variable's default stands in, if it has one.
    """
    missing: list[str] = []
    cut = False

    def value_of(found: re.Match[str]) -> str:
        nonlocal cut
        text = _shown(_follow(values.get(found[1]), found[2].split(".")[1:]))
        if not text:
            if found[3] is None:
                missing.append(found[0])
            return found[3] or ""
        cut |= len(text) > max_characters
        return text[:max_characters]

    # One pass: what a value holds is never expanded.
    text = _VARIABLE.sub(value_of, prompt)
    return Filled(text, tuple(missing), cut)


def parse_metadata(text: str | None) -> Any:
    """The sample's metadata as values; None where the column is empty or holds no JSON."""
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None


def _follow(value: Any, path: list[str]) -> Any:
    for name in path:
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def _shown(value: Any) -> str:
    if value is None or value in ({}, []):
        return ""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except RecursionError:
            return ""
    # JSON can carry halves of surrogate pairs, which no request can.
    value = value.encode("utf-8", "replace").decode("utf-8")
    return _CONTROL.sub(" ", value).strip()
