"""Prompts: given as text, as a file, or by the name of one of ours; and the values in them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.config import ConfigError
from operators.caption_prompt import (
    PROMPTS,
    columns_of,
    fill,
    parse_metadata,
    read_prompt,
    wording,
)

SAID = {"title": "The Kiss", "year": 1908, "tags": ["gold", {"of": "oil"}], "none": None, "e": []}


def test_a_text_stands_for_itself() -> None:
    assert read_prompt(' Say {caption} as {"text": 1}.\n') == 'Say {caption} as {"text": 1}.'


def test_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Beschreibe das Bild kürzer.\n", encoding="utf-8")
    assert read_prompt(str(path)) == "Beschreibe das Bild kürzer."


def test_ours_are_usable() -> None:
    texts = {path.name: read_prompt(path.name) for path in PROMPTS.iterdir()}
    assert {name: columns_of(text) for name, text in texts.items()} == {
        "describe.txt": (),
        "describe_short.txt": (),
        "describe_detailed.txt": (),
        "tags.txt": (),
        "refine.txt": ("caption",),
        "world_knowledge.txt": ("caption", "metadata"),
        "text_rich.txt": ("ocr_text",),
        "transition.txt": ("caption",),
    }
    row = {"caption": "A kiss.", "metadata": SAID, "ocr_text": "KLIMT"}
    for text in texts.values():
        filled = fill(text, row, 1_000)
        assert not filled.missing
        assert not filled.cut
        assert "{" not in filled.text.replace(json.dumps(SAID), "")


@pytest.mark.parametrize(
    ("variable", "shown"),
    [
        ("{caption}", "A kiss."),
        ("{caption|none}", "A kiss."),
        ("{metadata.title}", "The Kiss"),
        ("{metadata.year}", "1908"),
        ("{metadata.tags}", '["gold", {"of": "oil"}]'),
        ("{metadata.tags.1.of}", "oil"),
        ("{metadata.tags.2|no third}", "no third"),
        ("{metadata.title.deeper|}", ""),
        ("{metadata.none|null}", "null"),
        ("{metadata.e|empty}", "empty"),
        ("{metadata.two words|absent}", "absent"),
        ("{topic|no topic}", "no topic"),
        ('{"text": "{key}"}', '{"text": "klimt/kiss.jpg"}'),
    ],
)
def test_values_go_in(variable: str, shown: str) -> None:
    row = {"caption": " A kiss.\n", "key": "klimt/kiss.jpg", "metadata": SAID, "topic": " "}
    filled = fill(read_prompt(f"<{variable}>"), row, 100)
    assert (filled.text, filled.missing, filled.cut) == (f"<{shown}>", (), False)


def test_what_is_missing_is_named() -> None:
    filled = fill("{caption} {metadata.author.name} {metadata.title}", {"metadata": SAID}, 100)
    assert filled.missing == ("{caption}", "{metadata.author.name}")
    assert fill("{metadata}", {"metadata": {}}, 100).missing == ("{metadata}",)


def test_long_values_are_cut() -> None:
    filled = fill(
        "{caption} / {metadata.x}", {"caption": "a" * 10, "metadata": {"x": "b" * 11}}, 10
    )
    assert filled.text == "a" * 10 + " / " + "b" * 10
    assert filled.cut
    assert not fill("{caption}", {"caption": "a" * 10}, 10).cut
    million = json.dumps({"x": "</facts> " * 120_000})
    filled = fill("{metadata}", {"metadata": parse_metadata(million)}, 2_000)
    assert len(filled.text) == 2_000


@pytest.mark.parametrize(
    "text", [None, "", "no JSON", "[" * 100_000, "9" * 5_000, '"\\ud800"', "3"]
)
def test_hostile_metadata_is_a_value_or_none(text: str | None) -> None:
    filled = fill("{metadata|none} {metadata.title|none}", {"metadata": parse_metadata(text)}, 100)
    assert filled.text.endswith(" none")
    filled.text.encode()


@given(st.text(), st.text(), st.recursive(st.none() | st.text(), st.lists, max_leaves=5))
def test_a_value_is_data(caption: str, title: str, other: Any) -> None:
    row = {"caption": caption, "metadata": {"title": title, "other": other}}
    filled = fill("[{caption|}][{metadata.title|}][{metadata.other|}]", row, 10_000)
    filled.text.encode()  # can be sent
    assert "\x00" not in filled.text
    again = fill("[{caption|}]", {"caption": "{metadata.title} {caption} \\1 {"}, 100)
    assert again.text == "[{metadata.title} {caption} \\1 {]"
    plain = caption.isprintable() and title.isprintable() and other is None
    if plain:
        assert filled.text == f"[{caption.strip()}][{title.strip()}][]"


def test_its_wording_holds_no_variables() -> None:
    assert wording("Improve {caption|none}: {metadata.title}!").split() == ["Improve", ":", "!"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "missing.txt",
            "missing.txt does not exist; ours are describe.txt, describe_detailed.txt,",
        ),
        (" \n", "the prompt is empty"),
        ("A {captoin}", "holds {captoin}: variables are {caption}, {key},"),
        ("A {caption.first}", "holds {caption.first}: only metadata has fields: write {caption}"),
    ],
)
def test_mistakes_are_told(prompt: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_prompt(prompt)
    assert message in str(caught.value)
