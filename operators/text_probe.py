"""Open a text once: whether it is usable, its hash, its lengths, and what well-known filters ask.

A sample of text is one JSON object, whatever its source: ``{"text": "..."}`` or ``{"messages":
[{"role": "system" | "user" | "assistant", "content": "..."}, ...]}``. A chat is measured as its
contents, one below the other.

The measures are those of Gopher (J. Rae et al., arXiv:2112.11446, section A.1.1; for repetition see
`operators.repetition`) and C4 (C. Raffel et al., arXiv:1910.10683, section 2.2). Words are what
white space separates, so measures of words say little of languages that are written without.
"""

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from infra.schema import ERROR, column
from operators.repetition import line_shares, ngram_shares

ROLES = ("system", "user", "assistant")
STOP_WORDS = frozenset("the be to of and that have with".split())

_LETTER = re.compile(r"[^\W\d_]")
_NEITHER_LETTER_NOR_DIGIT = re.compile(r"[\W_]+")
_BULLETS = tuple("•‣◦▪●-*")
_ELLIPSES = ("...", "…")
_ENDS = tuple('.!?"”。！？')


class TextError(ValueError):
    """A sample that is no usable text.

    ``type`` is one of ``missing_bytes``, ``bad_utf8``, ``bad_json``, ``bad_text``,
    ``bad_messages`` and ``empty``; the message says more, in one line.
    """

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(message)
        self.type = type_


class Turn(NamedTuple):
    """A message of a chat, or all of a plain text, which has no role."""

    role: str | None
    text: str


@dataclass(frozen=True)
class TextProbe:
    """Read ``bytes`` (see the module) into hash, lengths and quality measures.

    ``sha256`` is that of the text after NFC with runs of white space as one blank, and of roles and
    texts for a chat: equal hashes are exact duplicates. A row that is no usable text gets ``error``
    = {stage: probe, type: see `TextError`, message}. Lone surrogates and U+0000 are not text.
    """

    reads: ClassVar[tuple[str, ...]] = ("bytes", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            column("kind", pa.string(), "", "text or chat"),
            column("sha256", pa.string(), "", "SHA-256 of the text, white space and NFC evened"),
            column("num_chars", pa.int64(), "characters", "code points, of all turns of a chat"),
            column("num_words", pa.int64(), "words", "what white space separates"),
            column("num_lines", pa.int64(), "lines", "lines that are not blank"),
            column("num_turns", pa.int32(), "messages", "messages of a chat; 0 for a plain text"),
            column(
                "mean_word_chars", pa.float32(), "characters", "mean word; Gopher keeps 3 to 10"
            ),
            column("alnum_share", pa.float32(), "0..1", "letters and digits among characters"),
            column(
                "letter_word_share", pa.float32(), "0..1", "words with a letter; Gopher: >= 0.8"
            ),
            column("symbol_share", pa.float32(), ">= 0", "`#` or `...` per word; Gopher: <= 0.1"),
            column("stop_words", pa.int8(), "0..8", "kinds of English stop words; Gopher: >= 2"),
            column("ended_line_share", pa.float32(), "0..1", "lines that end a sentence, as in C4"),
            column("bullet_line_share", pa.float32(), "0..1", "lines with bullets; Gopher: <= 0.9"),
            column("ellipsis_line_share", pa.float32(), "0..1", "cut-off lines; Gopher: <= 0.3"),
            column("repeated_line_share", pa.float32(), "0..1", "lines again; Gopher: <= 0.3"),
            column(
                "repeated_line_char_share", pa.float32(), "0..1", "their characters; Gopher: <= 0.2"
            ),
            column("top_2gram_share", pa.float32(), "0..1", "in the top 2-gram; Gopher: <= 0.20"),
            column("top_3gram_share", pa.float32(), "0..1", "in the top 3-gram; Gopher: <= 0.18"),
            column("top_4gram_share", pa.float32(), "0..1", "in the top 4-gram; Gopher: <= 0.16"),
            column(
                "repeated_5gram_share", pa.float32(), "0..1", "in 5-grams again; Gopher: <= 0.15"
            ),
            column(
                "repeated_10gram_share", pa.float32(), "0..1", "in 10-grams again; Gopher: <= 0.10"
            ),
        ],
    )
    version: ClassVar[int] = 1

    def __call__(self, batch: pa.Table) -> pa.Table:
        turns, batch = read_texts(batch, "probe")
        facts = [{} if found is None else measure(found) for found in turns]
        table = pa.Table.from_pylist(facts, schema=self.writes)
        for field in self.writes:
            batch = batch.append_column(field, table.column(field.name))
        return batch


def measure(turns: list[Turn]) -> dict[str, Any]:
    """The columns of `TextProbe` for one text that is not empty."""
    text = "\n".join(turn.text for turn in turns)
    words = text.split()
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    is_chat = turns[0].role is not None
    ellipses = sum(map(text.count, _ELLIPSES))
    repeated_lines, repeated_line_chars = line_shares(lines)
    return {
        "kind": "chat" if is_chat else "text",
        "sha256": _hash(turns),
        "num_chars": sum(len(turn.text) for turn in turns),
        "num_words": len(words),
        "num_lines": len(lines),
        "num_turns": len(turns) if is_chat else 0,
        "mean_word_chars": sum(map(len, words)) / len(words),
        "alnum_share": len(_NEITHER_LETTER_NOR_DIGIT.sub("", text)) / len(text),
        "letter_word_share": sum(map(bool, map(_LETTER.search, words))) / len(words),
        "symbol_share": max(text.count("#"), ellipses) / len(words),
        "stop_words": len(STOP_WORDS & {word.lower() for word in words}),
        "ended_line_share": _share(lines, [line.endswith(_ENDS) for line in lines]),
        "bullet_line_share": _share(lines, [line.startswith(_BULLETS) for line in lines]),
        "ellipsis_line_share": _share(lines, [line.endswith(_ELLIPSES) for line in lines]),
        "repeated_line_share": repeated_lines,
        "repeated_line_char_share": repeated_line_chars,
        **ngram_shares(words),
    }


def _share(lines: list[str], hits: list[bool]) -> float:
    return sum(hits) / len(lines)


def _hash(turns: list[Turn]) -> str:
    evened = [(t.role, " ".join(unicodedata.normalize("NFC", t.text).split())) for t in turns]
    return hashlib.sha256(json.dumps(evened).encode()).hexdigest()


def read_texts(batch: pa.Table, stage: str) -> tuple[list[list[Turn] | None], pa.Table]:
    """The turns of every row, None where it fails or has failed, and the batch with its errors."""
    errors = batch["error"].to_pylist()
    found: list[list[Turn] | None] = []
    for row, data in enumerate(batch["bytes"]):
        turns = None
        if errors[row] is None:
            try:
                turns = parse(data.as_py())
            except TextError as error:
                errors[row] = {"stage": stage, "type": error.type, "message": str(error)}
        found.append(turns)
    place = batch.schema.get_field_index("error")
    return found, batch.set_column(place, ERROR, pa.array(errors, ERROR.type))


def parse(data: bytes | None) -> list[Turn]:
    """The turns of a sample; raises TextError."""
    if data is None:
        raise TextError("missing_bytes", "the row has no bytes to read")
    try:
        tree = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TextError("bad_utf8", f"byte {error.start:,} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise TextError("bad_json", f"the sample is not JSON: {error}") from None
    if not isinstance(tree, dict) or not tree.keys() & {"messages", "text"}:
        raise TextError("bad_json", "the sample is no object with `messages` or `text`")
    if "messages" in tree:
        turns = _messages(tree["messages"])
    else:
        turns = [Turn(None, _text(tree["text"], "bad_text", "the text"))]
    if not any(turn.text.strip() for turn in turns):
        raise TextError("empty", "nothing but white space")
    return turns


def _messages(messages: object) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        raise TextError("bad_messages", "the messages are no list of {role, content}, or none")
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise TextError("bad_messages", f"message {number} is {type(message).__name__}")
        role = message.get("role")
        if role not in ROLES:
            known = ", ".join(ROLES)
            shown = repr(role)[:40]
            raise TextError("bad_messages", f"message {number} has the role {shown}, not {known}")
        text = _text(message.get("content"), "bad_messages", f"the content of message {number}")
        turns.append(Turn(role, text))
    return turns


def _text(value: object, type_: str, what: str) -> str:
    if not isinstance(value, str):
        raise TextError(type_, f"{what} is {type(value).__name__}, expected text")
    if "\0" in value:
        raise TextError("bad_text", f"{what} holds U+0000")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError("bad_text", f"{what}: character {error.start:,} is half a pair") from None
    return value
