import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import vgg16

from infra.config import ConfigError, build
from infra.pixels import Pixels
from tokenize_offline.perceptual import (
    PerceptualDistance,
    PerceptualSettings,
    load_perceptual,
)
from tokenize_offline.photographs import Photograph, to_unit

EFFICIENTNET = Path(__file__).parents[2] / "operators/weights/efficientnet_lite0_fp16.safetensors"
CHANNELS = (64, 128, 256, 512, 512)
AFTER = (3, 8, 15, 22, 29)
POOLS = (4, 9, 16, 23)


@pytest.fixture(scope="module")
def efficientnet() -> PerceptualDistance:
    settings = PerceptualSettings(network="efficientnet_lite0", weights=str(EFFICIENTNET))
    return load_perceptual(settings)


@pytest.fixture(scope="module")
def vgg_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """VGG-16 and heads with random weights, as they are published."""
    folder = tmp_path_factory.mktemp("vgg")
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {f"features.{n}": v.shape for n, v in vgg16().features.state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        spread = (2 / shape[1:].numel()) ** 0.5 if len(shape) == 4 else 0.1
        weights[name] = spread * torch.randn(shape, generator=generator)
    torch.save(weights, folder / "vgg16.pth")
    heads = {
        f"lin{i}.model.1.weight": torch.rand((1, channels, 1, 1), generator=generator)
        for i, channels in enumerate(CHANNELS)
    }
    torch.save(heads, folder / "vgg.pth")
    return folder / "vgg16.pth", folder / "vgg.pth"


@pytest.fixture(scope="module")
def vgg(vgg_files: tuple[Path, Path]) -> PerceptualDistance:
    weights, heads = map(str, vgg_files)
    return load_perceptual(PerceptualSettings(weights=weights, heads=heads, weight=1.0))


@pytest.fixture(params=["efficientnet", "vgg"])
def distance(request: pytest.FixtureRequest) -> PerceptualDistance:
    found: PerceptualDistance = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def crops(photographs: list[Photograph]) -> list[Pixels]:
    return [photo.rgb[80:176, 100:228] for photo in photographs[:3]]


def test_zero_for_equal_pictures_symmetric_and_of_each_picture(
    distance: PerceptualDistance, crops: list[Pixels]
) -> None:
    pixels = to_unit(crops)
    assert distance(pixels, pixels).tolist() == [0, 0, 0]
    other = pixels.flip(0)
    ahead, back = distance(pixels, other), distance(other, pixels)
    assert ahead.shape == (3,)
    assert ahead.dtype == torch.float32
    assert float(ahead[0]) > 0.01
    torch.testing.assert_close(ahead, back)
    torch.testing.assert_close(ahead[0], ahead[2])
    torch.testing.assert_close(ahead[:1], distance(pixels[:1], other[:1]))
    contiguous = distance(pixels.contiguous(), other.contiguous())
    torch.testing.assert_close(contiguous, ahead)


def noisy(rgb: Pixels, amount: int) -> Pixels:
    noise = np.random.default_rng(0).normal(size=rgb.shape) * amount
    return np.clip(rgb + noise, 0, 255).astype(np.uint8)


def blurred(rgb: Pixels, amount: int) -> Pixels:
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), amount / 4), np.uint8)


def squeezed(rgb: Pixels, amount: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=100 - 6 * amount)
    return np.asarray(Image.open(file))


def warped(rgb: Pixels, amount: int) -> Pixels:
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]].astype(np.float32)
    wave = amount / 4 * np.sin(y / 7).astype(np.float32)
    return np.asarray(cv2.remap(rgb, x + wave, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT))


@pytest.mark.parametrize("worsen", [noisy, blurred, squeezed, warped])
def test_the_worse_a_photograph_the_further(
    efficientnet: PerceptualDistance, crops: list[Pixels], worsen: Callable[[Pixels, int], Pixels]
) -> None:
    pixels, last = to_unit(crops), torch.zeros(3)
    for amount in (2, 4, 8, 15):
        found = efficientnet(to_unit([worsen(crop, amount) for crop in crops]), pixels)
        assert (found > last).all(), amount
        last = found


def test_gradients_reach_the_picture_and_not_the_network(
    distance: PerceptualDistance, crops: list[Pixels]
) -> None:
    pixels = to_unit(crops[:1])
    for start in (pixels + 0.1, torch.zeros_like(pixels), torch.full_like(pixels, -1.0)):
        drawn = start.clone().requires_grad_()
        distance(drawn, pixels).sum().backward()
        assert drawn.grad is not None
        assert drawn.grad.isfinite().all()
        assert float(drawn.grad.abs().sum()) > 0
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())
    equal = pixels.clone().requires_grad_()
    distance(equal, pixels).sum().backward()
    assert equal.grad is not None
    assert float(equal.grad.abs().max()) == 0


def test_autocast_changes_little(distance: PerceptualDistance, crops: list[Pixels]) -> None:
    pixels, drawn = to_unit(crops[:1]), to_unit([noisy(crops[0], 15)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = distance(drawn, pixels)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, distance(drawn, pixels), rtol=0.05, atol=0)


def lpips(
    weights: dict[str, Tensor], heads: dict[str, Tensor], a: Tensor, b: Tensor
) -> list[float]:
    """As the paper says, picture by picture and place by place in float64; bytes are [0, 255]."""
    mean = torch.tensor([0.485, 0.456, 0.406]).double()[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225]).double()[:, None, None]
    found = []
    for pair in zip(a, b, strict=True):
        x, total = (torch.stack(pair).double() / 255 - mean) / deviation, 0.0
        for index in range(30):
            if index in POOLS:
                x = F.max_pool2d(x, 2)
            elif f"features.{index}.weight" in weights:
                kernel, bias = (weights[f"features.{index}.{n}"] for n in ("weight", "bias"))
                x = F.conv2d(x, kernel.double(), bias.double(), padding=1)
            else:
                x = x.clamp_min(0)
            if index in AFTER:
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                head = heads[f"lin{AFTER.index(index)}.model.1.weight"].double().flatten()
                squares = (unit[0] - unit[1]) ** 2
                total += float(torch.einsum("chw,c->hw", squares, head).mean())
        found.append(total)
    return found


def test_vgg16_is_lpips(
    vgg: PerceptualDistance, vgg_files: tuple[Path, Path], crops: list[Pixels]
) -> None:
    weights, heads = (torch.load(path, weights_only=True) for path in vgg_files)
    a = [crop[:48, :64] for crop in crops[:2]]
    b = [noisy(crop, 20) for crop in a]
    bytes_a, bytes_b = (torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2) for x in (a, b))
    expected = lpips(weights, heads, bytes_a, bytes_b)
    assert vgg(to_unit(a), to_unit(b)).tolist() == pytest.approx(expected, rel=1e-4)


def test_vgg16_normalises_as_lpips_does(vgg: PerceptualDistance) -> None:
    # lpips/lpips.py of richzhang/PerceptualSimilarity, `ScalingLayer`
    shift, scale = vgg.network.get_buffer("shift"), vgg.network.get_buffer("scale")
    assert shift.flatten().tolist() == pytest.approx([-0.030, -0.088, -0.188], abs=1e-6)
    assert scale.flatten().tolist() == pytest.approx([0.458, 0.448, 0.450], abs=1e-6)


def test_network_and_heads_may_lie_in_one_file(
    vgg: PerceptualDistance, vgg_files: tuple[Path, Path], tmp_path: Path, crops: list[Pixels]
) -> None:
    weights, heads = (torch.load(path, weights_only=True) for path in vgg_files)
    save_file(weights | heads, tmp_path / "both.safetensors")
    settings = PerceptualSettings(weights=str(tmp_path / "both.safetensors"), weight=1.0)
    pixels = to_unit([crop[:48, :48] for crop in crops[:2]])
    again = load_perceptual(settings)(pixels, pixels.flip(0))
    assert torch.equal(again, vgg(pixels, pixels.flip(0)))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"weight": -1.0}, "learning.perceptual.*weight is -1.0: use 0"),
        ({"weight": float("inf")}, "weight is inf"),
        ({"network": "alexnet"}, "learning.perceptual.network.*alexnet.*vgg16"),
        ({"weight": 1.0}, "heads is empty: give the path"),
        ({"weight": 1.0, "network": "efficientnet_lite0"}, "weights is empty"),
        ({"network": "efficientnet_lite0", "heads": "vgg.pth"}, "has none"),
    ],
)
def test_mistakes_are_told_in_a_line(section: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(PerceptualSettings, section, "learning.perceptual")


def test_wrong_files_are_told_in_a_line(vgg_files: tuple[Path, Path], tmp_path: Path) -> None:
    weights, heads = map(str, vgg_files)
    (tmp_path / "text.pth").write_text("no weights")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    torch.save({"a": torch.zeros(99)}, tmp_path / "torn.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "torn.pth").write_bytes((tmp_path / "torn.pth").read_bytes()[:60])
    (tmp_path / "junk.pth").write_bytes(b"\x80\x02.")  # a pickle of nothing: no traceback, either
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for files, message in (
        ((str(tmp_path / "none.pth"), heads), r"perceptual\.weights .*none\.pth does not exist"),
        ((weights, str(tmp_path / "none.pth")), r"perceptual\.heads .*none\.pth does not exist"),
        ((heads, heads), r"no VGG-16 of torchvision: see `features\.0\.weight`"),
        ((weights, weights), r"no v0\.1 vgg\.pth of LPIPS: see `lin0\.model\.1\.weight`"),
        (
            (weights, str(tmp_path / "text.pth")),
            r"text\.pth cannot be read, it is no file of PyTorch's",
        ),
        ((weights, str(tmp_path / "torn.pth")), r"torn\.pth cannot be read, it is damaged"),
        ((str(tmp_path / "junk.pth"), heads), r"junk\.pth cannot be read, it is no file of"),
        (
            (weights, str(tmp_path / "tensor.pth")),
            r"tensor\.pth cannot be read, it holds no weights by",
        ),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            load_perceptual(PerceptualSettings(weights=files[0], heads=files[1]))
        assert "\n" not in str(caught.value)
    other = str(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="no EfficientNet-Lite0"):
        load_perceptual(PerceptualSettings(network="efficientnet_lite0", weights=other))
