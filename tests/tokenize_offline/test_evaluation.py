import numpy as np
import pytest

from tokenize_offline.evaluation import evaluate, mse, psnr_db, ssim
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Photograph


def test_psnr_of_known_errors() -> None:
    black, grey = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 51, np.uint8)
    assert mse(black, grey) == 51**2
    assert psnr_db(51**2) == pytest.approx(20 * np.log10(5))


def test_ssim_agrees_with_scikit_image(photographs: list[Photograph]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a = photographs[0].rgb
    b = np.clip(a + np.random.default_rng(0).normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    luma = [p.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) for p in (a, b)]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, full = metrics.structural_similarity(*luma, data_range=255, full=True, **settings)
    assert ssim(a, b) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)
    assert ssim(a, a) == pytest.approx(1)


def test_the_carried_tokenizer_beats_a_thumbnail(
    tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    quality = evaluate(tokenizer, photographs, 256)
    assert quality.psnr_db > quality.thumbnail16_db + 1.5
    assert (np.diff(quality.psnr_by_scale_db) > 0).all()
    assert min(quality.usage) > 0
    assert quality.semantic_cosine is None
