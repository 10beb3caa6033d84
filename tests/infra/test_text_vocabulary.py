"""A vocabulary's id is that of its files, wherever they lie, and the carried one's is known."""

from pathlib import Path

import pytest

from infra.config import ConfigError
from infra.text_vocabulary import QWEN, vocabulary_id
from tokenize_offline import text


def test_the_known_id_is_that_of_the_carried_vocabulary() -> None:
    assert text.identity() == QWEN


def test_an_id_is_of_the_files_and_not_of_the_folder(tmp_path: Path) -> None:
    for name, content in (("a", "{}"), ("b", "{}"), ("c", "{ }")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(content)
    a, b, c = (vocabulary_id(str(tmp_path / name)) for name in "abc")
    assert a == b != c
    (tmp_path / "b/config.json").write_text("{}")  # of the model
    assert vocabulary_id(str(tmp_path / "b")) == a
    assert vocabulary_id("Qwen/Qwen2.5-7B") != vocabulary_id("Qwen/Qwen2.5-VL-7B")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds none of tokenizer\.json"):
        vocabulary_id(str(tmp_path))
