"""The checks of a caption's text."""

import pytest

from operators.caption_checks import check

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
