"""The checks of a caption's text."""

import time

import pytest

from infra.config import ConfigError
from operators.caption_checks import check, check_language

GOOD = "A red motorcycle stands in a garage, in front of shelves full of boxes."


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "Sorry-looking tulips droop in a vase.",
        "I ❤ NY is written on a white mug.",
        "一只橘猫坐在窗台上，望着外面的雨和街上的行人。",
        'A sign says "5 < 6 & 7 > 3".',
        "The cat sat on the mat, the dog sat on the rug, and the bird sat on the branch above.",
        "Dots lead on ..... to the end of the menu.",
    ],
)
def test_captions_pass(text: str) -> None:
    assert check(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["empty"]),
        (" \n\t", ["empty"]),
        ("A cat.", ["too_short"]),
        ("word " * 900, ["too_long", "repeated"]),
        ("I'm sorry, but I can't help with that.", ["refusal"]),
        ("I’m unable to identify people in pictures.", ["refusal"]),
        ("As an AI language model I see no picture.", ["refusal"]),
        ("Es tut mir leid, dabei kann ich nicht helfen.", ["refusal"]),
        ("Lo siento, no puedo describir a esta persona.", ["refusal"]),
        ("抱歉，我无法帮助您描述这张图片中的人物。", ["refusal"]),
        ("申し訳ありませんが、その画像は説明できません。", ["refusal"]),
        ("a cat on a mat and " * 6, ["repeated"]),
        ("A wall of " + "h" * 20, ["repeated"]),
        ("<p>A cat on a mat.</p>", ["markup"]),
        ("```\nA cat on a mat.\n```", ["markup"]),
        ("# A cat\nIt sits on a mat.", ["markup"]),
        ("A cat\x00 on a mat.", ["markup"]),
    ],
)
def test_defects_are_named(text: str, expected: list[str]) -> None:
    assert check(text) == expected


def test_a_cut_answer_is_truncated() -> None:
    assert check(GOOD, "length") == ["truncated"]
    assert check(GOOD, "stop") == []


def test_a_style_has_its_own_lengths() -> None:
    assert check("cat, wall, sun", min_characters=20) == ["too_short"]
    assert check("Cat.", min_characters=0) == []
    assert check(GOOD, max_characters=len(GOOD) - 1) == ["too_long"]
    assert check(GOOD, max_characters=len(GOOD)) == []


PROMPT = "Describe this photograph in one or two plain sentences for someone who cannot see it."


def test_a_prompt_that_comes_back_is_an_echo() -> None:
    assert check(f"Sure! {PROMPT.upper()} {GOOD}", prompt=PROMPT) == ["echo"]
    assert check(
        "The task: describe this photograph in one or two plain words.", prompt=PROMPT
    ) == ["echo"]
    assert check("Two plain sentences for someone are painted on a wall.", prompt=PROMPT) == []
    assert check(GOOD, prompt="Short.") == []


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        (GOOD, "en", []),
        (GOOD, "de", ["language"]),
        ("Ein rotes Motorrad steht in einer Garage vor Regalen.", "en", ["language"]),
        ("Ein rotes Motorrad steht in einer Garage vor Regalen.", "de", []),
        ("一只橘猫坐在窗台上，望着外面的雨和街上的行人。", "en", ["language"]),
        ("The word “Boulangerie” is written above the door of a shop in Lyon.", "en", []),
        ("red car, street, night", "en", []),  # too little to be sure
        ("12:45 / 0815 --- 4711", "en", []),
    ],
)
def test_languages_are_told_apart_where_it_is_sure(
    text: str, language: str, expected: list[str]
) -> None:
    assert check(text, language=language) == expected


def test_an_unknown_language_is_refused() -> None:
    check_language("en")
    with pytest.raises(ConfigError, match="`language` is 'english': choose one of af, "):
        check_language("english")


@pytest.mark.parametrize(
    "text", ["<a " * 300_000, "<" * 1_000_000, "#" * 1_000_000, "a b " * 250_000]
)
def test_a_million_characters_take_no_time(text: str) -> None:
    start = time.monotonic()
    assert "too_long" in check(text, prompt=PROMPT, language="en")
    assert time.monotonic() - start < 5
