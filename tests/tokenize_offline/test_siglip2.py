"""Our tower beside that of `transformers`, with tiny random weights that `transformers` wrote."""

import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infra.config import ConfigError
from infra.schedules import SCHEDULES
from tokenize_offline import checkpoint, siglip2
from tokenize_offline.model import Tokenizer, TokenizerSettings
from tokenize_offline.siglip2 import Siglip2Settings

transformers = pytest.importorskip("transformers")

TINY = Siglip2Settings(
    hidden_size=24, intermediate_size=40, num_layers=3, num_heads=2, num_patches=9
)
TOKENIZER = TokenizerSettings(
    semantic_encoder="siglip2",
    siglip2=TINY,
    num_codes=16,
    semantic_dim=4,
    pixel_dim=4,
    encoder_channels=(8, 8, 8),
    decoder_channels=(8, 8, 8),
    teacher_dim=24,
    semantic_decoder_layers=1,
    semantic_decoder_heads=2,
)


def write(folder: Path, **changes: Any) -> Path:
    """Both towers, as the hub has them."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_patches": 9,
    }
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    config = transformers.Siglip2Config(
        vision_config=vision | changes, text_config=text | {"num_attention_heads": 1}
    )
    model = transformers.Siglip2Model(config)
    for parameter in model.parameters():  # biases too, which start at 0
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("siglip2") / "naflex")


def theirs(source: Path, pictures: list[np.ndarray[Any, Any]], patches: int) -> list[Tensor]:
    """[C, h, w] of each picture, as their processor and their model have it, padded and masked."""
    processor = transformers.Siglip2ImageProcessor()
    inputs = processor(
        pictures, max_num_patches=patches, do_resize=False, return_tensors="pt",
        input_data_format="channels_last",
    )  # fmt: skip
    model = transformers.Siglip2VisionModel.from_pretrained(source).eval()
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == model.config.num_hidden_layers + 1
    shapes = [tuple(shape) for shape in inputs["spatial_shapes"].tolist()]
    return [
        state[: h * w].T.reshape(-1, h, w) for state, (h, w) in zip(states[-2], shapes, strict=True)
    ]


def unit(picture: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_features_are_those_of_transformers_on_any_rectangle(source: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(48, 48), (32, 96), (96, 32), (16, 80), (112, 48)]
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    settings, tower = siglip2.read(source)
    assert settings == TINY
    expected = theirs(source, pictures, patches=24)
    with torch.no_grad():
        for picture, (height, width), features in zip(pictures, sizes, expected, strict=True):
            alone = tower(unit(picture))
            assert alone.shape == (1, 24, height // 16, width // 16)
            torch.testing.assert_close(alone[0], features, atol=2e-5, rtol=1e-5)
            (unpadded,) = theirs(source, [picture], patches=height * width // 256)
            torch.testing.assert_close(alone[0], unpadded, atol=2e-5, rtol=1e-5)
            batch = tower(torch.cat([unit(picture), -unit(picture)]))
            torch.testing.assert_close(batch[0], alone[0], atol=2e-5, rtol=1e-5)
        # What has been compared tells height from width: turned pictures have other features.
        turned = tower(unit(pictures[1]).mT).mT
        assert (turned - tower(unit(pictures[1]))).abs().max() > 0.1


def test_the_largest_picture_of_level_1024(source: Path) -> None:
    _, tower = siglip2.read(source)
    schedule = max(SCHEDULES, key=lambda s: s.grids[-1][0] * s.grids[-1][1])
    height, width = schedule.grids[-1]
    assert height * width >= 4096
    with torch.no_grad():
        features = tower(torch.randn(1, 3, *schedule.image_size(1024)))
    assert features.shape == (1, 24, height, width)
    assert features.isfinite().all()


def test_the_encoder_starts_from_the_published_weights(source: Path) -> None:
    tokenizer = Tokenizer(TOKENIZER)
    head = tokenizer.state_dict()["semantic_encoder.1.weight"].clone()
    siglip2.initialise(tokenizer, source)
    _, tower = siglip2.read(source)
    pixels = torch.randn(1, 3, 32, 48)
    assert torch.equal(tokenizer.semantic_encoder[0](pixels), tower(pixels))
    assert torch.equal(tokenizer.state_dict()["semantic_encoder.1.weight"], head)
    pretrained = {id(parameter) for parameter in tokenizer.pretrained()}
    assert pretrained == {id(p) for p in tokenizer.semantic_encoder[0].parameters()}
    assert len(pretrained) == len(list(tower.parameters()))


def test_a_trained_tokenizer_needs_no_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "full.safetensors"
    checkpoint.save(Tokenizer(TOKENIZER), path)
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it is an error now
    assert checkpoint.load(path).features(torch.zeros(1, 3, 32, 48)).shape == (1, 8, 2, 3)


def test_other_sizes_than_the_settings_are_told(source: Path) -> None:
    other = replace(TOKENIZER, siglip2=replace(TINY, num_layers=4))
    with pytest.raises(ConfigError, match=r"siglip2.num_layers is 4, .* has 3: set it to that"):
        siglip2.initialise(Tokenizer(other), source)
    with pytest.raises(ConfigError, match="nothing to copy"):
        siglip2.initialise(Tokenizer(TokenizerSettings(num_codes=4)), source)


def test_the_unused_text_tower_is_not_warned_of(source: Path) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    level = logger.level
    try:
        siglip2.read(source)
    finally:
        logger.removeHandler(handler)
    assert records == []
    assert logger.level == level


def test_a_folder_of_the_vision_tower_alone(source: Path, tmp_path: Path) -> None:
    transformers.Siglip2VisionModel.from_pretrained(source).save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 32, 48)
    assert torch.equal(siglip2.read(tmp_path)[1](pixels), siglip2.read(source)[1](pixels))


def broken(case: str, source: Path, folder: Path) -> str:
    """A copy of the source with one mistake."""
    shutil.copytree(source, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    tree = json.loads(config.read_text())
    if case == "torn":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif case == "no weights":
        weights.unlink()
    elif case == "no JSON":
        config.write_text("{")
    else:
        vision = tree["vision_config"]
        changes = {
            "wider": {"hidden_size": 48},
            "more layers": {"num_hidden_layers": 5},
            "patch 14": {"patch_size": 14},
            "other activation": {"hidden_act": "relu"},
        }
        vision.update(changes.get(case, {}))
        if case == "other model":
            tree["model_type"] = "bert"
        config.write_text(json.dumps(tree))
    return str(folder)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("torn", "cannot be loaded"),
        ("no weights", "cannot be loaded: .*model.safetensors"),
        ("no JSON", "cannot be loaded"),
        ("other model", "has the model type 'bert': use a NaFlex one"),
        ("wider", r"does not fit its config.json: `.*` is \[.*24.* and not \[.*48"),
        ("more layers", r"is not whole: it has no `encoder.layers.3"),
        ("patch 14", r"patch_embedding.weight` is \[24, 768\] and not \[24, 588\]"),
        ("other activation", "has hidden_act relu: only gelu_pytorch_tanh will"),
    ],
)
def test_a_broken_source_is_one_line(source: Path, tmp_path: Path, case: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        siglip2.read(broken(case, source, tmp_path / "broken"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name", ["/nowhere/at/all", "./nowhere", "nowhere", "a/b/c", "nowhere/x y"]
)
def test_what_is_no_source_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=r"neither a folder|cannot be loaded") as told:
        siglip2.read(name)
    assert "\n" not in str(told.value)


def test_a_hub_id_without_a_connection_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"SigLIP2 nobody/nothing cannot be loaded: ") as caught:
        siglip2.read("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 25}, "hidden_size 25 is no multiple of num_heads 2"),
        ({"num_layers": 1}, "num_layers is 1"),
        ({"num_layers": 0}, "num_layers is 0: use 1 or more"),
        ({"num_patches": 10}, "num_patches is 10: use a square"),
        ({"patch_size": 14}, "patch_size is 14: codes have cells of 16 pixels"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, int], message: str) -> None:
    sizes = {"hidden_size": 24, "num_heads": 2, "num_layers": 3}
    with pytest.raises(ValueError, match=message):
        Siglip2Settings(**sizes | changes)
