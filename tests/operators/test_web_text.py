"""The texts of a web document are measured as one text."""

import json

import pyarrow as pa
import pytest

from infra.schema import ERROR_TYPE
from operators.language import Language
from operators.text_probe import TextProbe
from operators.web_text import WebText
from tests.operators.test_web_page import page


def batch(pages: list[bytes | None]) -> pa.Table:
    none = pa.nulls(len(pages), ERROR_TYPE)
    return pa.table({"bytes": pa.array(pages, pa.large_binary()), "error": none})


def test_all_texts_are_one_text() -> None:
    pytest.importorskip("py3langid")
    texts = ["The boats came home with the tide.", "And the whole harbour smelled of salt and tar."]
    joined = json.dumps({"text": "\n\n".join(texts)}).encode()
    [row] = WebText()(batch([page(texts[0], "a.png", " ", texts[1])])).to_pylist()
    [expected] = Language()(TextProbe()(batch([joined]))).to_pylist()
    assert row["num_texts"] == 2
    assert (row["language"], row["num_words"]) == ("en", 16)
    for name in WebText().writes.names:
        if name != "num_texts":
            assert row[name] == expected[name]


def test_pictures_alone_are_no_failure() -> None:
    operator = WebText(language=None)
    alone, bad, wrong, failed = operator(
        batch([page("a.png"), b"{", page("a\0b"), None])
    ).to_pylist()
    assert alone["error"] is None
    assert [alone[name] for name in ("num_texts", "num_words", "num_chars", "num_lines")] == [0] * 4
    assert alone["mean_word_chars"] is None
    types = [row["error"]["type"] for row in (bad, wrong, failed)]
    assert types == ["bad_json", "bad_text", "missing_bytes"]
    assert {row["error"]["stage"] for row in (bad, wrong, failed)} == {"web"}
    assert bad["num_words"] is None
    assert operator(batch([])).num_rows == 0


def test_failed_rows_stay_as_they_are() -> None:
    before = {"stage": "load", "type": "missing", "message": "m"}
    rows = batch([page("Words.")]).set_column(1, "error", pa.array([before], ERROR_TYPE))
    [row] = WebText(language=None)(rows).to_pylist()
    assert (row["error"], row["num_texts"], row["num_words"]) == (before, None, None)


def test_what_is_measured_is_part_of_what_it_writes() -> None:
    without, with_ = WebText(language=None).writes.names, WebText().writes.names
    assert with_ == [*without, "language", "language_score"]
    assert not {"kind", "sha256", "num_turns"} & set(with_)
