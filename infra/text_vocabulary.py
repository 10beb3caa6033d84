"""Which text tokenizer ids belong to: a hash that packs and tokens carry, without loading it."""

import hashlib
from pathlib import Path

from infra.config import ConfigError
from infra.schema import digest

# `tokenize_offline.text.identity()`: the carried vocabulary, that of all Qwen2.5 and Qwen2.5-VL.
QWEN = "4d19c4f395cec0927b7ee290b6bed7e8"

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def vocabulary_id(source: str) -> str:
    """Of the tokenizer's files in a folder, else of ``source`` as a hub id.

    Raises ConfigError for a folder that holds none of the files.
    """
    folder = Path(source)
    if not folder.is_dir():
        return digest("text", "hub", source)
    contents = [
        hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in _FILES
        if (folder / name).is_file()
    ]
    if not contents:
        raise ConfigError(f"text tokenizer {source} holds none of {', '.join(_FILES)}")
    return digest("text", "folder", *contents)
