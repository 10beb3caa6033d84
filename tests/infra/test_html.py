"""Pages: everything escaped, nothing loaded, texts bounded and cleaned."""

import base64
import hashlib
import json
import os
from html import unescape
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.config import ConfigError
from infra.html import POLICY, check_page, clean, inert_json, jpeg_uri, render, write_page


def page(folder: Path, template: str, **values: object) -> str:
    (folder / "page.html").write_text(template, encoding="utf-8")
    return render(folder, "page.html", **values)


def test_every_value_is_escaped_in_text_and_attributes(tmp_path: Path) -> None:
    evil = "\"'><script>alert(1)</script>&amp;"
    made = page(tmp_path, '<p title="{{ x }}">{{ x }} {{ x | text }}</p>', x=evil)
    assert "<script" not in made
    assert made.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;") == 3
    assert "&#34;&#39;&gt;" in made


def test_a_forgotten_value_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="caption"):
        page(tmp_path, "{{ caption }}")


def test_numbers_and_the_policy(tmp_path: Path) -> None:
    made = page(tmp_path, "{{ 1234567 | count }} {{ 0.1234 | share }} {{ policy | safe }}")
    assert made == f"1,234,567 12.3% {POLICY}"
    assert "script" not in POLICY
    assert "default-src 'none'" in POLICY


@given(st.text(), st.integers(1, 50))
def test_cleaned_text_is_one_bounded_printable_line(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert len(cleaned) <= limit
    assert all(c.isprintable() or c in "\u200c\u200d" for c in cleaned)
    assert clean(cleaned, limit) == cleaned


def test_cleaning_keeps_words_and_emoji() -> None:
    assert clean("  a\n\tcat\u2028 here ") == "a cat here"
    assert clean("\U0001f469\u200d\U0001f680 日本") == "\U0001f469\u200d\U0001f680 日本"
    assert clean("a\u202eb\x00c") == "a\ufffdb\ufffdc"
    assert clean("x" * 1_000_000, 10) == "x" * 9 + "…"
    assert clean("word " * 10, 49) == "word " * 9 + "word"
    assert clean(7) == "7"


def test_a_page_is_written_whole_even_with_lone_surrogates(tmp_path: Path) -> None:
    target = str(tmp_path / "new" / "page.html")
    assert write_page(target, "ä \udc80") == target
    assert Path(target).read_text(encoding="utf-8") == "ä ?"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_places_that_take_no_page_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path, told in (
        ("", "empty name"),
        (str(tmp_path), "is a folder: name a file"),
        ("new/", "is a folder: name a file"),
        (".", "is a folder: name a file"),
        ("file/page.html", "file` is no folder"),
        ("file/new/page.html", "file` is no folder"),
        ("dangling/page.html", "dangling` is no folder"),
    ):
        with pytest.raises(ConfigError, match=told) as error:
            check_page(path)
        assert "\n" not in str(error.value)
    for path in ("page.html", "new/folder/page.html", "file", "s3://bucket/page.html"):
        check_page(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


def test_a_folder_without_permission_takes_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the superuser no folder is safe: it is the system's answer that counts.
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    for path in ("page.html", "new/page.html"):
        with pytest.raises(ConfigError, match="no permission to write into"):
            check_page(str(tmp_path / path))


def test_a_page_beside_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_page("page.html", "<p>")
    assert (tmp_path / "page.html").read_text() == "<p>"


def test_data_uri() -> None:
    assert jpeg_uri(b"\xff\xd8") == "data:image/jpeg;base64,/9g="


def test_json_holds_nothing_that_html_knows() -> None:
    evil = "</script><!-- <b>&'\u2028\ud800"
    text = str(inert_json({evil: [evil, 1.5, None]}))
    assert not set(text) & set("<>&'\u2028")
    assert text.isascii()
    assert json.loads(text) == {evil: [evil, 1.5, None]}
    with pytest.raises(ValueError):
        inert_json(float("nan"))


def test_a_page_may_have_one_script_of_ours(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("{{ policy }}|<script>{{ script }}</script>{{ told }}")
    (tmp_path / "page.js").write_text("a < b && c")
    page = render(tmp_path, "page.html", script="page.js", told="<script>")
    policy, _, rest = page.partition("|")
    assert rest == "<script>a < b && c</script>&lt;script&gt;"
    digest = base64.b64encode(hashlib.sha256(b"a < b && c").digest()).decode()
    assert f"sha256-{digest}" in unescape(policy)
