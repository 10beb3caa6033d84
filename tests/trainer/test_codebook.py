"""The codebook file: what was written, and only for the tokenizer that owns it."""

import pytest
import torch

from infra.config import ConfigError
from trainer import codebook


def test_round_trip(tmp_path):
    vectors = torch.randn(7, 3)
    codebook.write(tmp_path / "new" / "codebook.safetensors", vectors, "id-a")
    assert torch.equal(codebook.read(tmp_path / "new/codebook.safetensors", 7, "id-a"), vectors)


def test_a_bucket_holds_one_too(s3):
    vectors = torch.randn(7, 3)
    codebook.write(f"{s3}/packs/codebook.safetensors", vectors, "id-a")
    assert torch.equal(codebook.read(f"{s3}/packs/codebook.safetensors", 7, "id-a"), vectors)
    with pytest.raises(ConfigError, match="not readable"):
        codebook.read(f"{s3}/nowhere/codebook.safetensors", 7, "id-a")


def test_foreign_or_damaged_files_are_refused(tmp_path):
    path = tmp_path / "codebook.safetensors"
    codebook.write(path, torch.randn(7, 3), "id-a")
    with pytest.raises(ConfigError, match="of tokenizer id-a, the packs are of tokenizer id-b"):
        codebook.read(path, 7, "id-b")
    with pytest.raises(ConfigError, match=r"is \[7, 3\], the packs have 8 codes"):
        codebook.read(path, 8, "id-a")
    path.write_bytes(b"no safetensors")
    with pytest.raises(ConfigError, match="not readable"):
        codebook.read(path, 7, "id-a")
    with pytest.raises(ConfigError, match="not readable"):
        codebook.read(tmp_path / "nowhere", 7, "id-a")
