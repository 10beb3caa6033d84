import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file

from infra.config import ConfigError, build
from tokenize_offline import checkpoint
from tokenize_offline.model import Tokenizer, TokenizerSettings
from tokenize_offline.siglip2 import Siglip2Settings

SMALL = TokenizerSettings(
    num_codes=32, encoder_channels=(8, 8, 8), decoder_channels=(8, 8, 8), semantic_channels=(8, 8)
)
LIKE_FULL = dataclasses.replace(
    SMALL,
    semantic_encoder="siglip2",
    siglip2=Siglip2Settings(
        hidden_size=24, intermediate_size=40, num_layers=3, num_heads=2, num_patches=16
    ),
    teacher_dim=24,
    semantic_decoder_layers=1,
    semantic_decoder_heads=2,
)


def saved(folder: Path, settings: TokenizerSettings = SMALL) -> Path:
    torch.manual_seed(0)
    path = folder / "small.safetensors"
    checkpoint.save(Tokenizer(settings), path)
    return path


@pytest.mark.parametrize("settings", [SMALL, LIKE_FULL])
def test_round_trip_gives_the_same_features(tmp_path: Path, settings: TokenizerSettings) -> None:
    path = saved(tmp_path, settings)
    first, second = checkpoint.load(path), checkpoint.load(path)
    assert first.settings == settings
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


def test_identity_is_the_hash_of_both_files(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = path.read_bytes() + path.with_suffix(".json").read_bytes()
    assert checkpoint.identity(path) == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_saved_again_it_is_the_same(tmp_path: Path) -> None:
    path = saved(tmp_path, LIKE_FULL)
    name = checkpoint.identity(path)
    checkpoint.save(checkpoint.load(path), path)
    assert checkpoint.identity(path) == name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.json", "small.safetensors"]
    assert path.stat().st_mode == path.with_suffix(".json").stat().st_mode


def test_a_towers_range_survives(tmp_path: Path) -> None:
    tokenizer = Tokenizer(LIKE_FULL)
    extremes = {"patches.weight": 3e5, "positions": 1e-9}
    tower = dict(tokenizer.semantic_encoder[0].named_parameters())
    for name, value in extremes.items():
        torch.nn.init.normal_(tower[name], std=value)
    checkpoint.save(tokenizer, tmp_path / "full.safetensors")
    stored = load_file(tmp_path / "full.safetensors")
    for name, value in tokenizer.state_dict().items():
        if name.removeprefix("semantic_encoder.0.") in extremes:
            assert stored[name].dtype == torch.bfloat16
            torch.testing.assert_close(stored[name].float(), value, rtol=2**-8, atol=0)
        else:
            assert stored[name].dtype == torch.float16
            torch.testing.assert_close(stored[name].float(), value, rtol=2**-10, atol=6e-8)


@given(arrays(np.float32, 5, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_no_16_bits_keep_more(values: np.ndarray) -> None:
    tensor = torch.from_numpy(values)
    kept = checkpoint.narrow(tensor).double()
    assert kept.isfinite().all()
    for dtype in (torch.float16, torch.bfloat16):
        other = tensor.to(dtype).double()
        worst = (other - tensor.double()).abs().max()
        assert (kept - tensor.double()).abs().max() <= 5**0.5 * worst * (1 + 1e-6)


def refused(path: Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_weights_and_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    shutil.copy(checkpoint.carried().with_suffix(".json"), path.with_suffix(".json"))
    refused(path, r"does not fit small.json: `.*` is \[.*\], by the settings \[.*\]")


def test_weights_too_few_and_too_many_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    weights = load_file(path)
    save_file({**weights, "more": torch.zeros(2)}, path)
    refused(path, r"`more` is \[2\], by the settings missing")
    del weights["quantizer.pixel"]
    save_file(weights, path)
    refused(path, r"`quantizer.pixel` is missing, by the settings \[32, 16\]")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("small.safetensors", b"", "small.safetensors is no safetensors file"),
        ("small.safetensors", b"weights" * 9, "small.safetensors is no safetensors file"),
        ("small.json", b"{", "settings .*small.json: Expecting"),
        ("small.json", b"[]", "small.json: it holds list, not settings"),
        ("small.json", b"\xff", "small.json: .*utf-8"),
        ("small.json", b'{"codes": 5}', "small.json: unknown key `codes`"),
        ("small.json", b'{"num_codes": 0}', "small.json: .*num_codes is 0: use"),
        ("small.json", b'{"semantic_encoder": "siglip2"}', "small.json: .*siglip2 is missing"),
    ],
)
def test_broken_files_are_told_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = saved(tmp_path)
    (tmp_path / name).write_bytes(content)
    refused(path, message)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", r"none.safetensors does not exist")
    path = saved(tmp_path)
    path.with_suffix(".json").unlink()
    refused(path, r"small.json does not exist")


def test_the_carried_checkpoint_is_small() -> None:
    assert checkpoint.carried().stat().st_size <= 8 * 10**6
    assert checkpoint.read_settings().num_codes == 4096


def test_settings_of_older_checkpoints_still_stand() -> None:
    """The carried settings' own fields are enough: those that came later have defaults."""
    older = {
        "semantic_encoder": "convolutions", "num_codes": 4096, "semantic_dim": 8, "pixel_dim": 16,
        "pixel_weight": 2.0, "encoder_channels": [64, 128, 160], "encoder_blocks": [1, 1, 2],
        "decoder_channels": [160, 128, 64], "decoder_blocks": [2, 2, 2],
        "semantic_channels": [64, 80], "teacher_dim": 112,
    }  # fmt: skip
    settings = build(TokenizerSettings, older)
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in Tokenizer(settings).state_dict().items()}
    stored = {n: v.shape for n, v in load_file(checkpoint.carried()).items()}
    assert shapes == stored


def test_a_save_that_fails_leaves_the_pair_as_it_was(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = checkpoint.identity(path)
    (tmp_path / ".small.json.partial").mkdir()  # the settings cannot be written
    other = Tokenizer(dataclasses.replace(SMALL, num_codes=64))
    with pytest.raises(IsADirectoryError):
        checkpoint.save(other, path)
    assert checkpoint.identity(path) == before
    checkpoint.load(path)
