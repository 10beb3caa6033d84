"""Chats as tokens: those of transformers' own ChatML template, loss on what was said, no injection.

The reference is a fast tokenizer of `transformers` made from the same byte pairs and pattern.
"""

import itertools
import lzma
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import layout
from infra.config import ConfigError
from infra.schema import DOCUMENTS
from tokenize_offline import text
from tokenize_offline.extract_codes import ExtractCodes

END, TURN_START, TURN_END = 151_643, 151_644, 151_645
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
)
CHATS = [
    [("user", "What is 2 + 2?"), ("assistant", "It is 4.")],
    [
        ("system", "You are terse."),
        ("user", "Schreib mir ein Gedicht über 写真!"),
        ("assistant", "Rosen\n\n  sind rot,\tVeilchen 👩‍🚀 …\n"),
        ("user", "def f(x):\n    return x  # don't"),
        ("assistant", "ok"),
    ],
    [("system", ""), ("user", ""), ("assistant", "said first")],
    [("assistant", "café "), ("assistant", " ends with blanks  ")],
]


@pytest.fixture(scope="module")
def operator() -> ExtractCodes:
    return ExtractCodes()


@pytest.fixture(scope="module")
def words() -> text.TextTokenizer:
    return text.load()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The carried vocabulary as a tokenizer of transformers."""
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = tmp_path_factory.mktemp("ranks") / "qwen.tiktoken"
    ranks.write_bytes(lzma.decompress(text._carried().read_bytes()))
    converter = TikTokenConverter(
        vocab_file=str(ranks),
        pattern=text._PATTERN,
        extra_special_tokens=list(text._SPECIAL),
    )
    fast = converter.converted()
    fast.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=fast, chat_template=CHATML)


def tokenize(
    operator: ExtractCodes, *chats: list[tuple[str | None, str]], loss_on: str = "responses"
) -> list[dict[str, Any]]:
    rows = [
        {
            "doc_id": f"d{number}",
            "task": "text",
            "source": "test",
            "segments": [
                {
                    "kind": "text",
                    "text": content,
                    "role": role,
                    "loss": loss_on == "all" or role in (None, "assistant"),
                    "sample_id": f"s{number}",
                }
                for role, content in chat
            ],
        }
        for number, chat in enumerate(chats)
    ]
    return operator(pa.Table.from_pylist(rows, schema=DOCUMENTS)).to_pylist()


def ids_of(row: dict[str, Any]) -> list[int]:
    return [id_ for segment in row["segments"] for id_ in segment["text_ids"]]


@pytest.mark.parametrize("chat", CHATS)
def test_tokens_are_those_of_the_chat_template(
    operator: ExtractCodes, reference: Any, chat: list[tuple[str | None, str]]
) -> None:
    messages = [{"role": role, "content": content} for role, content in chat]
    expected = reference.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert expected[0] == TURN_START
    [row] = tokenize(operator, chat)
    assert row["error"] is None
    assert ids_of(row) == [*expected, END]


def test_loss_stands_on_what_the_assistant_says_and_its_end(
    operator: ExtractCodes, words: text.TextTokenizer
) -> None:
    [row] = tokenize(operator, CHATS[1])
    assert [segment["loss"] for segment in row["segments"]] == [False, True] * 2 + [False]
    said = [segment["text_ids"] for segment in row["segments"] if segment["loss"]]
    answers = [content for role, content in CHATS[1] if role == "assistant"]
    assert said == [[*words.encode(answer), TURN_END] for answer in answers]
    # What is predicted, by the one definition of a sequence: these tokens and nothing else.
    segments = [layout.Text(np.array(s["text_ids"]), s["loss"]) for s in row["segments"]]
    laid = layout.layout([segments], layout.Vocabulary(operator.facts["num_codes"]))
    targets = laid.targets[laid.targets != layout.NO_TARGET]
    assert targets.tolist() == [id_ for ids in said for id_ in ids]
    assert laid.counts == (row["num_tokens"], row["num_loss"], row["num_pairs"])


def test_loss_on_all_messages_leaves_out_the_headers(
    operator: ExtractCodes, words: text.TextTokenizer
) -> None:
    [row] = tokenize(operator, CHATS[1], loss_on="all")
    said = [segment["text_ids"] for segment in row["segments"] if segment["loss"]]
    assert said == [[*words.encode(content), TURN_END] for _, content in CHATS[1]]
    headers = [segment["text_ids"] for segment in row["segments"] if not segment["loss"]]
    assert [words.decode(ids) for ids in headers] == [
        "<|im_start|>system\n",
        "\n<|im_start|>user\n",
        "\n<|im_start|>assistant\n",
        "\n<|im_start|>user\n",
        "\n<|im_start|>assistant\n",
        "\n<|endoftext|>",
    ]


MARKS = st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<tool_call>", "\n", " "])
CONTENTS = st.lists(st.text(max_size=20) | MARKS, max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
@given(
    chat=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), CONTENTS), min_size=1)
)
def test_no_content_leaves_its_turn_and_all_of_it_comes_back(
    operator: ExtractCodes, words: text.TextTokenizer, chat: list[tuple[str | None, str]]
) -> None:
    [row] = tokenize(operator, chat)
    ids = ids_of(row)
    assert ids.count(TURN_START) == ids.count(TURN_END) == len(chat)
    assert ids.count(END) == 1
    assert sum(id_ > END for id_ in ids) == 2 * len(chat)
    expected = "".join(f"<|im_start|>{r}\n{_nfc(c)}<|im_end|>\n" for r, c in chat)
    assert words.decode(ids) == expected + "<|endoftext|>"
    neighbours = [segment["loss"] for segment in row["segments"]]
    assert all(a != b for a, b in itertools.pairwise(neighbours))


@settings(max_examples=150, deadline=None)
@given(content=st.text(min_size=1))
def test_plain_text_comes_back(
    operator: ExtractCodes, words: text.TextTokenizer, content: str
) -> None:
    [row] = tokenize(operator, [(None, content)])
    [segment] = row["segments"]
    assert segment["loss"]
    assert words.decode(segment["text_ids"]) == _nfc(content) + "<|endoftext|>"


def _nfc(content: str) -> str:
    return unicodedata.normalize("NFC", content)


def test_other_roles_are_bad_segments(operator: ExtractCodes) -> None:
    rows = tokenize(operator, [("tool", "a")], [("user", "a"), ("assistant", "b")])
    assert [row["error"] and row["error"]["type"] for row in rows] == ["bad_segment", None]


def test_a_vocabulary_without_turns_is_refused(tmp_path: Path) -> None:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    def folder(name: str, special: list[str]) -> str:
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        bpe.train_from_iterator(
            ["a b"],
            tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=special),
        )
        fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=text.END_OF_TEXT)
        fast.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    plain = folder("plain", [text.END_OF_TEXT])
    assert text.load(plain).marks is None
    assert tokenize(ExtractCodes(vocabulary=plain), [(None, "a")])[0]["error"] is None
    with pytest.raises(ConfigError, match=r"the text tokenizer has no <\|im_start\|> and"):
        text.load(plain).encode_turn("user", "a")
    [row] = tokenize(ExtractCodes(vocabulary=plain), [("user", "a"), ("assistant", "b")])
    assert row["error"]["type"] == "no_turn_marks"
    chatty = folder("chatty", [text.END_OF_TEXT, text.TURN_START, text.TURN_END])
    marks = text.load(chatty).marks
    assert marks is not None
    [row] = tokenize(ExtractCodes(vocabulary=chatty), [("user", "<|im_end|>")])
    assert ids_of(row).count(marks.end) == 1


@pytest.mark.parametrize("long", [" ", "\n", " \n", "a", "中", "\u3000 ", "x" * 250_000 + " "])
def test_a_megabyte_of_anything_is_tokenised(words: text.TextTokenizer, long: str) -> None:
    content = "start" + long * (1_100_000 // len(long)) + "end"
    assert words.decode(words.encode(content)) == content
