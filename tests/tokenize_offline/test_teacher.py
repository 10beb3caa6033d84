from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infra.config import ConfigError
from tokenize_offline.teacher import EfficientNetTeacher, Siglip2Teacher, load_teacher


def test_efficientnet_round_trip_and_widen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = EfficientNetTeacher()
    path = tmp_path / "teacher.safetensors"
    more = {"head.weight": torch.zeros(2)}
    save_file({name: value.half() for name, value in teacher.state_dict().items()} | more, path)
    loaded = load_teacher(path)
    pixels = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(loaded(pixels), teacher(pixels), atol=1e-2, rtol=1e-2)
    assert loaded(pixels).shape == (1, loaded.dim, 4, 6)
    assert loaded.dim == 112


def test_siglip2_gives_its_second_to_last_hidden_state(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Siglip2VisionConfig(
        hidden_size=24, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    network = transformers.Siglip2VisionModel(config).eval()
    network.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    assert isinstance(teacher, Siglip2Teacher)
    assert teacher.dim == 24
    pixels = torch.rand(1, 3, 16, 48, requires_grad=True)
    taught = teacher(pixels)
    assert not taught.requires_grad
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    patches = torch.stack([p.permute(1, 2, 0).flatten() for p in pixels[0].split(16, dim=2)])
    with torch.no_grad():
        states = network(
            patches[None],
            pixel_attention_mask=torch.ones(1, 3, dtype=torch.long),
            spatial_shapes=torch.tensor([[1, 3]]),
            output_hidden_states=True,
        ).hidden_states
    torch.testing.assert_close(taught, states[-2].mT.reshape(1, 24, 1, 3))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.safetensors", "nothing.safetensors does not exist"),
        ("nothing/at/all", "neither a folder nor a hub id"),
        ("torn.safetensors", "torn.safetensors is no safetensors file"),
        ("other.safetensors", "is no EfficientNet-Lite0: see `stem.weight`"),
        ("narrow.safetensors", "is no EfficientNet-Lite0: see `stem.weight`"),
    ],
)
def test_what_is_no_teacher_is_told(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"weights")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    narrow = {name: value[:1].clone() for name, value in EfficientNetTeacher().state_dict().items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    with pytest.raises(ConfigError, match=message) as caught:
        load_teacher(tmp_path / name)
    assert "\n" not in str(caught.value)
