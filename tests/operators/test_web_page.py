"""Web documents are read place by place, and what is none is told apart."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.text_probe import TextError
from operators.web_page import Part, content_hash, parse, wanted_images


def page(*members: str | tuple[str | None, str | None]) -> bytes:
    """A document: names of pictures end in an ending, all else is text; pairs stand for both."""
    pairs = [
        m if isinstance(m, tuple) else (None, m) if m.endswith((".png", ".jpg")) else (m, None)
        for m in members
    ]
    texts, images = [text for text, _ in pairs], [image for _, image in pairs]
    return json.dumps({"texts": texts, "images": images}).encode()


def test_places_keep_their_order() -> None:
    data = page("One.", "a.png", ("Both.", "b.png"), (None, None), " \n", ("", "c.png"))
    assert parse(data) == [
        Part(0, "One.", None),
        Part(1, None, "a.png"),
        Part(2, "Both.", "b.png"),
        Part(5, None, "c.png"),
    ]


@pytest.mark.parametrize(
    ("data", "type_"),
    [
        (None, "missing_bytes"),
        (b"{", "bad_json"),
        (b"\xff\xfe", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'["texts"]', "bad_document"),
        (b'{"texts": ["a"]}', "bad_document"),
        (b'{"texts": ["a"], "images": [null, null]}', "bad_document"),
        (b'{"texts": [7], "images": [null]}', "bad_document"),
        (b'{"texts": [null], "images": [{"url": "a.png"}]}', "bad_document"),
        (b'{"texts": "ab", "images": [null, null]}', "bad_document"),
        (b'{"texts": ["a\\u0000b"], "images": [null]}', "bad_text"),
        (b'{"texts": ["\\ud800"], "images": [null]}', "bad_text"),
        (b'{"texts": [null], "images": ["\\ud800.png"]}', "bad_text"),
        (b'{"texts": [], "images": []}', "empty"),
        (b'{"texts": [null, " "], "images": ["", null]}', "empty"),
    ],
)
def test_what_is_no_document_is_told_in_one_line(data: bytes | None, type_: str) -> None:
    with pytest.raises(TextError) as raised:
        parse(data)
    assert raised.value.type == type_
    assert "\n" not in str(raised.value)


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def parsed(data: bytes) -> list[Part] | str:
    """The parts, or the type of what is wrong."""
    try:
        return parse(data)
    except TextError as error:
        return error.type


some = st.lists(st.none() | st.sampled_from(["", " ", "a", "b", "\0", "\ud800"]), max_size=5)


@given(anything | some, anything | some)
def test_whatever_the_lists_hold_it_is_parts_or_one_error(texts: Any, images: Any) -> None:
    parts = parsed(json.dumps({"texts": texts, "images": images}).encode())
    if isinstance(parts, str):
        assert parts in ("bad_document", "bad_text", "empty")
        return
    assert parts
    assert [part.place for part in parts] == sorted({part.place for part in parts})
    for part in parts:
        assert part.text in (None, texts[part.place])
        assert part.image in (None, images[part.place])
        assert part.text or part.image
    named = [(part.place, part.image) for part in parts if part.image]
    wanted = wanted_images(parts, 100)
    assert set(wanted) <= set(named)
    assert {name for _, name in wanted} == {name for _, name in named}


def test_each_name_is_wanted_once() -> None:
    parts = parse(page("a.png", "b.png", ("text", "a.png"), "c.png", "b.png", "d.png"))
    assert wanted_images(parts, 100) == [(0, "a.png"), (1, "b.png"), (3, "c.png"), (5, "d.png")]
    assert wanted_images(parts, 4) == [(0, "a.png"), (1, "b.png"), (3, "c.png")]
    assert wanted_images(parts, 0) == []


def test_equal_contents_have_equal_hashes() -> None:
    parts = parse(page("One  text.\n", "a.png", "gone.png"))
    told = {1: "f00", 2: None}
    same = parse(page("One text.", " ", "b.png", "gone.png"))
    assert content_hash(parts, told) == content_hash(same, {2: "f00"})
    assert content_hash(parts, told) != content_hash(parts, {1: "f01"})
    assert content_hash(parts, told) != content_hash(parts[::-1], told)
