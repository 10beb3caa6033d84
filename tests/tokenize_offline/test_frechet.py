from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from infra.config import ConfigError
from tokenize_offline.frechet import (
    Gaussian,
    efficientnet_features,
    frechet_distance,
    load_inception,
)
from tokenize_offline.photographs import Photograph, to_unit
from tokenize_offline.ranks import Ranks
from tokenize_offline.teacher import EfficientNetTeacher


def fitted(features: Tensor, batch: int = 7) -> Gaussian:
    gaussian = Gaussian()
    for part in features.split(batch):
        gaussian.add(part)
    return gaussian


def mixed(seed: int, num: int, dim: int, rank: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank or dim, dim, generator=generator)
    return torch.randn(num, rank or dim, generator=generator) @ mixing + seed


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([0.0, 1e6]))
@settings(max_examples=25, deadline=None)
def test_batches_add_up_to_numpys_moments(sizes: list[int], offset: float) -> None:
    features = mixed(1, sum(sizes) + 2, 4).double() + offset
    gaussian = Gaussian()
    for part in features.split([*sizes, 2]):
        gaussian.add(part)
    assert gaussian.count == len(features)
    np.testing.assert_allclose(gaussian.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(gaussian.covariance, np.cov(features.T), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 3])
def test_agrees_with_a_general_matrix_root(rank: int | None) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = fitted(mixed(1, 90, 8, rank)), fitted(mixed(2, 120, 8))
    root = linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    by_hand = float((a.mean - b.mean).square().sum())
    by_hand += float(a.covariance.trace() + b.covariance.trace()) - 2 * float(np.trace(root))
    assert frechet_distance(a, b) == pytest.approx(by_hand, rel=1e-5)
    assert frechet_distance(b, a) == pytest.approx(by_hand, rel=1e-5)


def test_known_distances() -> None:
    features = mixed(3, 50, 5)
    same = frechet_distance(fitted(features, 50), fitted(features, 3))
    assert same == pytest.approx(0, abs=1e-5)
    moved = frechet_distance(fitted(features), fitted(features + 2))
    assert moved == pytest.approx(5 * 2**2, rel=1e-5)  # the means alone differ
    # Twice as far from their mean: the traces differ by (2 - 1)^2 of the covariance's.
    doubled = features + (features - features.mean(0))
    wider = frechet_distance(fitted(features), fitted(doubled))
    assert wider == pytest.approx(float(fitted(features).covariance.trace()), rel=1e-4)


def test_too_few_pictures_give_no_number() -> None:
    few, many = mixed(1, 8, 8), mixed(1, 9, 8)
    assert frechet_distance(fitted(few), fitted(many)) is None
    assert frechet_distance(fitted(many), fitted(few)) is None
    assert frechet_distance(fitted(many), fitted(many)) is not None


def test_a_blurred_photograph_has_other_features(photographs: list[Photograph]) -> None:
    torch.manual_seed(0)
    teacher = EfficientNetTeacher()
    features = efficientnet_features(teacher)
    pixels = to_unit([photographs[0].rgb[:96, :128]])
    assert features.name == "efficientnet_lite0"
    assert features.describe(pixels).shape == (1, teacher.dim)
    torch.testing.assert_close(features.describe(pixels), teacher(pixels).mean((2, 3)))


class Stored(nn.Module):
    """As in clean-fid's file: what is wanted lies in ``layers``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(299))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_torchscript_file_is_a_network(tmp_path: Path, photographs: list[Photograph]) -> None:
    torch.jit.script(Stored()).save(tmp_path / "stored.pt")
    torch.jit.load(tmp_path / "stored.pt").layers.save(tmp_path / "inception.pt")
    pixels = to_unit([photographs[0].rgb[:100, :200]])
    features = load_inception(tmp_path / "inception.pt")
    assert features.name == "inception"
    described = features.describe(pixels)
    assert described.shape == (1, 3)  # from [1, 3, 1, 1], which a 299 x 299 picture gives
    torch.testing.assert_close(described, pixels.mean((2, 3)), atol=0.01, rtol=0)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.pt does not exist"):
        load_inception(tmp_path / "missing.pt")
    (tmp_path / "no.pt").write_text("no network")
    with pytest.raises(ConfigError, match=r"no\.pt is no TorchScript file"):
        load_inception(tmp_path / "no.pt")


def test_pictures_one_at_a_time_make_no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    features, products = mixed(4, 40, 6).double() + 1e5, []
    original = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: products.append(a) or original(a, b)
    )
    addmm = torch.Tensor.addmm_
    monkeypatch.setattr(
        torch.Tensor, "addmm_", lambda s, a, b: products.append(a) or addmm(s, a, b)
    )
    one = fitted(features, 1)
    assert not products
    whole = fitted(features, 40)
    assert products
    torch.testing.assert_close(one.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_no_features_change_nothing() -> None:
    gaussian = fitted(mixed(1, 9, 3))
    mean, covariance = gaussian.mean.clone(), gaussian.covariance
    gaussian.add(torch.zeros(0, 3))
    assert gaussian.count == 9
    assert torch.equal(gaussian.mean, mean)
    assert torch.equal(gaussian.covariance, covariance)
    one = gaussian.of_all(Ranks(0, 1, torch.device("cpu")))
    torch.testing.assert_close(one.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.covariance, covariance)
