"""The carried networks: strict loading, size, and what they see."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infra.pixels import decode, resize_crop
from operators import mobilenets

FILES = {
    "nima_mobilenet_fp16.safetensors": mobilenets.MobileNetNima,
    "efficientnet_lite0_fp16.safetensors": mobilenets.EfficientNetLite0,
}


@pytest.mark.parametrize("name", FILES)
def test_weights_fit_strictly_and_compute_in_fp32(name: str) -> None:
    network = mobilenets.load(FILES[name](), name)
    assert not network.training
    stored = load_file(mobilenets.WEIGHTS / name)
    assert set(stored) == set(network.state_dict())
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad


def test_carried_weights_stay_small_and_have_their_licences() -> None:
    files = list(mobilenets.WEIGHTS.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 18 * 2**20
    told = (mobilenets.WEIGHTS / "README.md").read_text(encoding="utf-8")
    for file in [*files, *mobilenets.WEIGHTS.glob("LICENSE-*")]:
        assert f"`{file.name}`" in told


def test_same_padding_is_that_of_tensorflow() -> None:
    # stride 2 on 4 x 4 pads one row and column after, none before: output 0 sees inputs 0..2
    convolution = mobilenets.SameConv(1, 1, 3, stride=2)
    torch.nn.init.ones_(convolution.weight)
    torch.nn.init.zeros_(convolution.bias)
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = [[image[0, 0, :3, :3].sum(), image[0, 0, :3, 2:].sum()]]
    expected += [[image[0, 0, 2:, :3].sum(), image[0, 0, 2:, 2:].sum()]]
    assert convolution(image)[0, 0].tolist() == [[float(v) for v in row] for row in expected]
    assert mobilenets.SameConv(1, 1, 5, stride=2).uneven == (1, 2, 1, 2)


def test_the_classifier_names_what_is_in_photographs(photos: Path) -> None:
    network = mobilenets.load(mobilenets.EfficientNetLite0(), "efficientnet_lite0_fp16.safetensors")
    labels = {"chelsea.png": {281, 282, 285}, "coffee.png": {967}, "china.jpg": {698, 442, 663}}
    for name, expected in labels.items():  # tabby, tiger cat, Egyptian cat; espresso; palace, ...
        rgb = resize_crop(decode((photos / name).read_bytes(), 512).rgb, 224, 224)[0]
        image = (torch.from_numpy(rgb).permute(2, 0, 1)[None].float() - 127) / 128
        with torch.inference_mode():
            assert int(network(image).argmax()) in expected, name


def test_folding_and_rounding_change_the_ratings_little(assets: Path) -> None:
    """Against the unfolded fp32 weights, batch normalisations applied one by one."""
    original = load_file(assets / "weights/nima_mobilenet_aesthetic.safetensors")
    folded = mobilenets.load(mobilenets.MobileNetNima(), "nima_mobilenet_fp16.safetensors")

    def normalised(x: torch.Tensor, norm: str) -> torch.Tensor:
        mean, variance = original[f"{norm}.running_mean"], original[f"{norm}.running_var"]
        weight, bias = original[f"{norm}.weight"], original[f"{norm}.bias"]
        return torch.nn.functional.batch_norm(x, mean, variance, weight, bias, eps=1e-3).clamp(0, 6)

    def reference(x: torch.Tensor) -> torch.Tensor:
        conv, pad = torch.nn.functional.conv2d, torch.nn.functional.pad
        x = normalised(conv(pad(x, (0, 1, 0, 1)), original["conv1.weight"], stride=2), "bn1")
        for i in range(13):
            kernel = original[f"dw.{i}.weight"]
            stride = 2 if i in (1, 3, 5, 11) else 1
            x = pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
            x = normalised(conv(x, kernel, stride=stride, groups=len(kernel)), f"dwbn.{i}")
            x = normalised(conv(x, original[f"pw.{i}.weight"]), f"pwbn.{i}")
        logits = x.mean((2, 3)) @ original["fc.weight"].T + original["fc.bias"]
        return logits.softmax(-1)

    ratings = torch.arange(1.0, 11.0)
    for name in ("coco_10014.jpg", "lomiri_umang.jpg", "skimage_text.png", "mdn_surfer.jpg"):
        rgb = resize_crop(decode((assets / "images" / name).read_bytes(), 512).rgb, 224, 224)[0]
        image = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            difference = (folded(image) - reference(image)) @ ratings
        assert abs(float(difference)) < 0.01, name


def test_file_hash(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    assert mobilenets.file_hash(tmp_path / "weights") == hashlib.sha256(b"abc").hexdigest()
