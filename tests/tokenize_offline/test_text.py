from pathlib import Path

import pytest

from infra.config import ConfigError
from tokenize_offline import text

SAMPLES = [
    "A photo of a cat, 3 dogs and 12 birds.",
    "café ☕ 你好 \n\n  two  spaces",
    "don't <|endoftext|> stop",
]


@pytest.fixture(scope="module")
def qwen() -> text.TextTokenizer:
    return text.load()


@pytest.mark.parametrize("sample", SAMPLES)
def test_round_trip(qwen: text.TextTokenizer, sample: str) -> None:
    ids = qwen.encode(sample)
    assert qwen.decode(ids) == sample
    assert max(ids) < qwen.end_of_text


def test_ids_are_those_of_qwen(qwen: text.TextTokenizer) -> None:
    assert qwen.encode("Hello world") == [9707, 1879]  # as published for Qwen2.5
    assert qwen.end_of_text == 151_643
    assert qwen.size == 151_665
    assert qwen.decode([151_645]) == "<|im_end|>"


def test_equal_text_in_other_unicode_forms_gives_equal_ids(qwen: text.TextTokenizer) -> None:
    assert qwen.encode("cafe\u0301") == qwen.encode("caf\u00e9")


def test_digits_stand_alone(qwen: text.TextTokenizer) -> None:
    assert len(qwen.encode("2025")) == 4


def build_folder(folder: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=[text.END_OF_TEXT]
    )
    bpe.train_from_iterator(SAMPLES, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=text.END_OF_TEXT)
    fast.save_pretrained(folder)
    return folder


def test_a_transformers_folder(tmp_path: Path) -> None:
    source = str(build_folder(tmp_path))
    tokenizer = text.load(source)
    ids = tokenizer.encode(SAMPLES[2])
    assert tokenizer.decode(ids) == SAMPLES[2]
    assert tokenizer.end_of_text not in ids  # a special token's name is only text
    assert tokenizer.end_of_text < tokenizer.size
    before = text.identity(source)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert text.identity(source) != before


def test_identities_differ_by_source(tmp_path: Path) -> None:
    assert text.identity() == text.identity("")
    assert len({text.identity(), text.identity("Qwen/Qwen2.5-7B"), text.identity("other/hub")}) == 3
    with pytest.raises(ConfigError, match="holds none of"):
        text.identity(str(tmp_path))


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        text.load(str(tmp_path))
