"""Styles of captions: several prompts with weights, and which of them a sample gets.

Models trained on captions of one form answer to that form alone, so that recaptioned sets mix short
and long ones, lists of tags, and a share of the captions that came with the pictures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.config import ConfigError
from infra.schema import uniform
from operators.caption_checks import MAX_CHARACTERS, MIN_CHARACTERS, check
from operators.caption_prompt import columns_of, fill, parse_metadata, read_prompt, wording

GIVEN = "given"


@dataclass(frozen=True, kw_only=True)
class Style:
    """A way to caption: a prompt (text, or file as in `read_prompt`), how often, and how long.

    The style ``given`` has no prompt: it stands for the caption that came with the sample.
    Answers outside ``min_characters`` .. ``max_characters`` fail the checks too_short or too_long.
    Raises ConfigError for impossible values.
    """

    name: str
    prompt: str = ""
    weight: float = 1.0
    max_tokens: int = 200
    min_characters: int = MIN_CHARACTERS
    max_characters: int = MAX_CHARACTERS

    def __post_init__(self) -> None:
        if (self.name == GIVEN) == bool(self.prompt):
            raise ConfigError(
                f"caption: style `{self.name}` has {'a' if self.prompt else 'no'} prompt: `{GIVEN}`"
                " is the caption that came with the sample, all others need one"
            )
        if self.prompt:
            object.__setattr__(self, "prompt", read_prompt(self.prompt))
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"caption: `weight` is {self.weight}: must be above 0")
        if self.max_tokens < 1:
            raise ConfigError(f"caption: `max_tokens` is {self.max_tokens}: at least 1")
        if not 0 <= self.min_characters <= self.max_characters:
            raise ConfigError(
                f"caption: `min_characters` is {self.min_characters}, `max_characters` "
                f"{self.max_characters}: expected 0 <= min <= max"
            )

    @property
    def is_given(self) -> bool:
        return self.name == GIVEN

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns whose values this style needs."""
        return ("caption",) if self.is_given else columns_of(self.prompt)


def check_styles(styles: Sequence[Style], per_image: int) -> None:
    """Raises ConfigError unless the names are unique and ``per_image`` of them can be drawn."""
    names = [style.name for style in styles]
    for name in names:
        if not name or names.count(name) > 1:
            raise ConfigError(f"caption: style name `{name}`: give every style its own")
    if per_image > max(len(names), 1):
        raise ConfigError(f"caption: `per_image` is {per_image}, there are {len(names)} styles")


@dataclass(frozen=True)
class Draft:
    """A style for a sample: ``text`` is the question, or the given caption where it is that."""

    style: Style
    text: str
    is_cut: bool = False

    def checks(self, text: str, finish_reason: str | None, language: str | None) -> list[str]:
        """The checks that an answer does not pass, and what is to be noted of its question."""
        found = check(
            text,
            finish_reason,
            min_characters=self.style.min_characters,
            max_characters=self.style.max_characters,
            prompt=wording(self.style.prompt),
            language=language,
        )
        return [*found, "value_cut"] if self.is_cut else found


class NoStyleError(Exception):
    """No style can be asked for: ``type`` is no_caption or missing_variable."""

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(message)
        self.type = type_


def draft(styles: Sequence[Style], row: Mapping[str, Any], max_characters: int) -> list[Draft]:
    """The styles that a row has all values for; raises NoStyleError where it has for none.

    ``row`` holds the columns that the styles read; values are cut after ``max_characters``.
    """
    values = dict(row)
    if "metadata" in values:
        values["metadata"] = parse_metadata(values["metadata"])
    able: list[Draft] = []
    missing: set[str] = set()
    for style in styles:
        filled = fill(style.prompt or "{caption}", values, max_characters)
        if filled.missing:
            missing.add(filled.missing[0])
        elif style.is_given:
            able.append(Draft(style, values["caption"].strip()))
        else:
            able.append(Draft(style, filled.text, filled.cut))
    if not able and missing == {"{caption}"}:
        raise NoStyleError("no_caption", "the sample came without a caption")
    if not able:
        raise NoStyleError("missing_variable", f"the sample has no {', '.join(sorted(missing))}")
    return able


def draw(drafts: Sequence[Draft], sample_id: str, seed: int, count: int) -> list[Draft]:
    """``count`` of the drafts (or all, if fewer) without replacement, by weight, in drawn order.

    The first is of a style with probability weight / sum of weights, the second likewise among the
    rest, and so on: those with the smallest -log(u) / weight, where u is `schema.uniform` of sample
    and style (Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006, in
    logarithms). A function of the sample alone: neither other rows nor the order of the styles
    matter, and where one is left out the others keep their order.
    """

    def wait(one: Draft) -> float:
        u = uniform(f"{sample_id}/{one.style.name}", seed)
        return -math.log(u) / one.style.weight if u > 0 else math.inf

    return sorted(drafts, key=lambda one: (wait(one), one.style.name))[:count]
