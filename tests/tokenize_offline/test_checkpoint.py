import json
import shutil
from pathlib import Path

import pytest
import torch

from infra.config import ConfigError
from tokenize_offline import checkpoint
from tokenize_offline.model import Tokenizer, TokenizerSettings

SMALL = TokenizerSettings(
    num_codes=32, encoder_channels=(8, 8, 8), decoder_channels=(8, 8, 8), semantic_channels=(8, 8)
)


def saved(folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "small.safetensors"
    checkpoint.save(Tokenizer(SMALL), path)
    return path


def test_round_trip_gives_the_same_codes(tmp_path: Path) -> None:
    path = saved(tmp_path)
    first, second = checkpoint.load(path), checkpoint.load(path)
    assert first.settings == SMALL
    assert not first.training
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(first.features(pixels), second.features(pixels))


def test_identity_names_weights_and_settings(tmp_path: Path) -> None:
    path = saved(tmp_path)
    name = checkpoint.identity(path)
    assert name == checkpoint.identity(path)
    settings = path.with_suffix(".json")
    tree = json.loads(settings.read_text())
    settings.write_text(json.dumps(tree | {"pixel_weight": 9.0}))
    assert checkpoint.identity(path) != name


def test_weights_and_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    shutil.copy(checkpoint.carried().with_suffix(".json"), path.with_suffix(".json"))
    with pytest.raises(ConfigError, match=r"does not fit small.json"):
        checkpoint.load(path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.safetensors does not exist"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_the_carried_checkpoint_is_small() -> None:
    assert checkpoint.carried().stat().st_size <= 8 * 10**6
    assert checkpoint.read_settings().num_codes == 4096
