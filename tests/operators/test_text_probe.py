"""Texts and chats: lengths, hashes, measures, and every way in which a sample is none."""

import hashlib
import json
import unicodedata
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.schema import ERROR_TYPE
from operators.text_probe import TextProbe, Turn, measure, parse

PROSE = """\
The harbour lay quiet that morning, and the boats had not yet come in. A man with a dog walked
along the wall; he stopped to look at the water.

"It will rain," he said. Nobody was there to hear it.
"""
CHAT = [
    {"role": "system", "content": ""},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue."},
]


def batch(samples: list[Any], errors: dict[int, Any] | None = None) -> pa.Table:
    data = [s if s is None or isinstance(s, bytes) else json.dumps(s).encode() for s in samples]
    failed = [(errors or {}).get(row) for row in range(len(samples))]
    return pa.table(
        {"bytes": pa.array(data, pa.large_binary()), "error": pa.array(failed, ERROR_TYPE)}
    )


def probe(*samples: Any) -> list[dict[str, Any]]:
    return TextProbe()(batch(list(samples))).to_pylist()


def test_prose_passes_the_limits_of_gopher_and_c4() -> None:
    [row] = probe({"text": PROSE})
    assert row["error"] is None
    assert (row["kind"], row["num_turns"]) == ("text", 0)
    assert row["num_chars"] == len(PROSE)
    assert row["num_words"] == len(PROSE.split())
    assert row["num_lines"] == 3
    assert 3 <= row["mean_word_chars"] <= 10
    assert row["letter_word_share"] == 1.0
    assert row["stop_words"] == 5  # the, that, and, with, to
    assert row["ended_line_share"] == pytest.approx(2 / 3)
    for name in ("symbol_share", "bullet_line_share", "ellipsis_line_share", "top_4gram_share"):
        assert row[name] == 0.0
    letters = sum(map(str.isalnum, PROSE))
    assert row["alnum_share"] == pytest.approx(letters / len(PROSE))


def test_junk_shows_in_its_measure() -> None:
    keywords, symbols, listing, cut, again = probe(
        {"text": "buy cheap shoes " * 50},
        {"text": "# # #tag ... ... 12 34 56 78 90"},
        {"text": "\n".join(f"- item {i}" for i in range(9)) + "\nend"},
        {"text": "read more...\nand more…\nfull stop."},
        {"text": "Subscribe to our letter.\n" * 4 + "A line of its own."},
    )
    assert keywords["top_3gram_share"] == keywords["repeated_10gram_share"] == 1.0
    assert symbols["symbol_share"] == pytest.approx(3 / 10)
    assert symbols["letter_word_share"] == pytest.approx(0.1)
    assert listing["bullet_line_share"] == pytest.approx(0.9)
    assert cut["ellipsis_line_share"] == pytest.approx(2 / 3)
    assert again["repeated_line_share"] == pytest.approx(3 / 5)
    assert again["repeated_line_char_share"] > again["repeated_line_share"]


def test_a_chat_is_measured_as_its_contents() -> None:
    [row] = probe({"messages": CHAT})
    assert (row["kind"], row["num_turns"], row["num_words"]) == ("chat", 3, 4)
    assert row["num_chars"] == len("Name a colour.Blue.")


def test_equal_hashes_are_equal_texts() -> None:
    same = ["Two  words\n", " Two words", "Two\u3000words\r\n\r\n"]
    accents = ["caf\u00e9", "cafe\u0301"]
    others = ["two words", "Twowords", "Two words."]
    rows = probe(*({"text": text} for text in (*same, *accents, *others)))
    hashes = [row["sha256"] for row in rows]
    assert len(set(hashes[:3])) == len(set(hashes[3:5])) == 1
    assert len(set(hashes)) == 2 + len(others)
    one, two, three = probe(
        {"messages": CHAT},
        {"messages": [CHAT[0], CHAT[1] | {"content": "Name  a colour."}, CHAT[2]]},
        {"messages": [CHAT[0], CHAT[1] | {"role": "assistant"}, CHAT[2]]},
    )
    assert one["sha256"] == two["sha256"] != three["sha256"]
    assert len(bytes.fromhex(one["sha256"])) == hashlib.sha256().digest_size


BAD: list[tuple[Any, str]] = [
    (None, "missing_bytes"),
    (b"\xff{}", "bad_utf8"),
    (b"", "bad_json"),
    (b"[" * 50_000, "bad_json"),
    (["text"], "bad_json"),
    ({"words": "a"}, "bad_json"),
    ({"text": 5}, "bad_text"),
    ({"text": None}, "bad_text"),
    ({"text": ["a"]}, "bad_text"),
    ({"text": "nul \0"}, "bad_text"),
    (b'{"text": "\\ud800"}', "bad_text"),
    ({"text": ""}, "empty"),
    ({"text": " \n\u3000\t"}, "empty"),
    ({"messages": []}, "bad_messages"),
    ({"messages": {}}, "bad_messages"),
    ({"messages": "user: hi"}, "bad_messages"),
    ({"messages": [None]}, "bad_messages"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "bad_messages"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "bad_messages"),
    ({"messages": [{"role": "user"}]}, "bad_messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "bad_messages"),
    ({"messages": [{"role": "user", "content": "\0"}]}, "bad_text"),
    ({"messages": CHAT[:1]}, "empty"),
]


def test_what_is_no_text_fails_alone_and_for_its_reason() -> None:
    before = {"stage": "index", "type": "bad_json", "message": "m"}
    samples = [sample for sample, _ in BAD]
    rows = TextProbe()(batch([*samples, {"text": "fine"}, None], {len(BAD) + 1: before}))
    *failed, fine, known = rows.to_pylist()
    for (sample, type_), row in zip(BAD, failed, strict=True):
        assert (row["error"]["stage"], row["error"]["type"]) == ("probe", type_), sample
        assert "\n" not in row["error"]["message"]
        assert {row[name] for name in TextProbe.writes.names} == {None}
    assert fine["error"] is None
    assert fine["num_words"] == 1
    assert known["error"] == before


def test_an_empty_batch_gives_the_columns() -> None:
    made = TextProbe()(batch([]))
    assert len(made) == 0
    assert all(made.schema.field(f.name).type == f.type for f in TextProbe.writes)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_is_measured_within_its_ranges(text: str) -> None:
    [row] = probe({"text": text})
    if not text.strip() or "\0" in text:
        assert row["error"]["type"] in ("empty", "bad_text")
        return
    assert row["error"] is None
    assert parse(json.dumps({"text": text}).encode()) == [Turn(None, text)]
    for field in TextProbe.writes:
        if field.metadata[b"unit"] == b"0..1":
            assert 0 <= row[field.name] <= 1, field.name
    even = " ".join(unicodedata.normalize("NFC", text).split())
    assert measure([Turn(None, even)])["sha256"] == row["sha256"]


def test_a_text_of_a_megabyte() -> None:
    long, single = probe({"text": "word " * 200_000}, {"text": "x" * 1_000_000})
    assert long["num_words"] == 200_000
    assert single["mean_word_chars"] == 1_000_000
