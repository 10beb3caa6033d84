"""Prompts: given as text, as a file, or by the name of one of ours."""

from pathlib import Path

import pytest

from infra.config import ConfigError
from operators.caption_prompt import PROMPTS, read_prompt


def test_a_text_stands_for_itself() -> None:
    assert read_prompt(' Say {caption} as {"text": 1}.\n') == 'Say {caption} as {"text": 1}.'


def test_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Beschreibe das Bild kürzer.\n", encoding="utf-8")
    assert read_prompt(str(path)) == "Beschreibe das Bild kürzer."


def test_ours_are_usable() -> None:
    texts = {path.name: read_prompt(path.name) for path in PROMPTS.iterdir()}
    assert set(texts) == {"describe.txt", "refine.txt"}
    assert "{caption}" in texts["refine.txt"]
    assert "{" not in texts["describe.txt"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("missing.txt", "missing.txt does not exist; ours are describe.txt, refine.txt"),
        (" \n", "the prompt is empty"),
        ("A {captoin}", "holds {captoin}: the only variable is {caption}"),
    ],
)
def test_mistakes_are_told(prompt: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_prompt(prompt)
    assert message in str(caught.value)
