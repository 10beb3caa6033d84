"""Text to token ids with Qwen2.5's vocabulary, or with any tokenizer `transformers` can read.

The default is carried in weights/qwen.tiktoken.xz: Qwen's 151,643 byte-pair ranks (PyPI package
dashscope, Apache-2.0), with Qwen2.5's pre-tokenisation and special tokens around them. No network.
Text is data: the name of a special token inside it is spelt out in ordinary tokens, so that no
caption can end a document and no message of a chat another's turn.
"""

import base64
import hashlib
import itertools
import lzma
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from infra.config import ConfigError
from infra.schema import digest
from infra.text_vocabulary import vocabulary_id

END_OF_TEXT = "<|endoftext|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

# The pattern's engine gives up, by a panic, on a million blanks in a row; cut there, a run becomes
# a few tokens more and the same text.
_MANY_BLANKS = 250_000
_BLANKS = re.compile(rf"\s{{{_MANY_BLANKS}}}")

# Qwen2.5's tokenizer.json: contractions, words, single digits, punctuation, line ends, blanks.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NUM_RANKS = 151_643
_SPECIAL = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)


class TurnMarks(NamedTuple):
    """Ids around a message of a chat, as in ChatML: start, role, line end, content, end."""

    start: int
    end: int


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """Text to ids and back; every id is below ``size``. ``marks``: None if it knows no chats."""

    size: int
    end_of_text: int
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    marks: TurnMarks | None

    def encode_turn(self, role: str, text: str) -> tuple[list[int], list[int], list[int]]:
        """Ids of a message: its header, its content with the end mark, the line end after it.

        ``<|im_start|>role\\n``, ``text<|im_end|>`` and ``\\n``, as Qwen2.5's template writes them;
        the two marks alone are special ids. Header and content are encoded apart, as they are
        when a model answers. Raises ConfigError where the vocabulary has no marks.
        """
        if self.marks is None:
            raise ConfigError(
                f"the documents hold chats, and the text tokenizer has no {TURN_START} and "
                f"{TURN_END}: choose another `vocabulary`, or leave it out for Qwen2.5's"
            )
        header = [self.marks.start, *self.encode(f"{role}\n")]
        return header, [*self.encode(text), self.marks.end], self.encode("\n")


def load(source: str = "") -> TextTokenizer:
    """The carried Qwen vocabulary for "", else a tokenizer directory or hub id for transformers.

    Raises ConfigError for a source that holds no tokenizer or one without an end-of-text token.
    """
    return _load_transformers(source) if source else _load_carried()


def identity(source: str = "") -> str:
    """A hash of the vocabulary, or of the hub id; does not load it.

    Ids of two vocabularies must never be mixed: the identity is stored with the tokens.
    """
    if not source:
        content = hashlib.sha256(_carried().read_bytes()).hexdigest()
        return digest("text", _PATTERN, *_SPECIAL, content)
    return vocabulary_id(source)


def _carried() -> Path:
    return Path(str(files("tokenize_offline").joinpath("weights/qwen.tiktoken.xz")))


def _load_carried() -> TextTokenizer:
    import tiktoken

    lines = lzma.decompress(_carried().read_bytes()).splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    special = {name: _NUM_RANKS + i for i, name in enumerate(_SPECIAL)}
    encoding = tiktoken.Encoding(
        "qwen2.5", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )

    def encode(text: str) -> list[int]:
        text = unicodedata.normalize("NFC", text)
        if len(text) < _MANY_BLANKS:
            return encoding.encode_ordinary(text)
        cuts = [0, *(found.end() for found in _BLANKS.finditer(text)), len(text)]
        pieces = (text[start:stop] for start, stop in itertools.pairwise(cuts))
        return [id_ for piece in pieces for id_ in encoding.encode_ordinary(piece)]

    marks = TurnMarks(special[TURN_START], special[TURN_END])
    return TextTokenizer(encoding.n_vocab, special[END_OF_TEXT], encode, encoding.decode, marks)


def _load_transformers(source: str) -> TextTokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"text tokenizer {source} cannot be loaded: {reason}") from None
    vocabulary = tokenizer.get_vocab()
    end = vocabulary.get(END_OF_TEXT, tokenizer.eos_token_id)
    if end is None:
        raise ConfigError(f"text tokenizer {source} has neither {END_OF_TEXT} nor an end token")

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids)))

    marks = None
    if TURN_START in vocabulary and TURN_END in vocabulary:
        marks = TurnMarks(vocabulary[TURN_START], vocabulary[TURN_END])
    return TextTokenizer(len(tokenizer), int(end), encode, decode, marks)
