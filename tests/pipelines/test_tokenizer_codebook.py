"""The codebook beside packs: whose codes the packs hold, and nobody else's."""

from pathlib import Path

import pytest
import torch

from infra.config import ConfigError
from packing.packs import CODEBOOK
from pipelines.tokenizer_codebook import is_of, write_codebook
from tokenize_offline import checkpoint
from trainer import codebook


def test_the_carried_tokenizers_codes_as_unit_halves(tmp_path: Path) -> None:
    settings, identity = checkpoint.read_settings(), checkpoint.identity()
    write_codebook(str(tmp_path / "new" / CODEBOOK), "")
    vectors = codebook.read(tmp_path / "new" / CODEBOOK, settings.num_codes, identity)
    quantizer = checkpoint.load().quantizer
    semantic, pixel = vectors.split([quantizer.semantic.shape[1], quantizer.pixel.shape[1]], dim=1)
    for found, codes in ((semantic, quantizer.semantic), (pixel, quantizer.pixel)):
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
        torch.testing.assert_close(found * codes.norm(dim=1, keepdim=True), codes)


def test_a_tokenizer_is_known_by_its_identity(tmp_path: Path) -> None:
    assert is_of("", checkpoint.identity())
    assert not is_of("", "t" * 32)
    with pytest.raises(ConfigError, match=r"nowhere\.safetensors does not exist"):
        is_of(str(tmp_path / "nowhere.safetensors"), "t" * 32)
