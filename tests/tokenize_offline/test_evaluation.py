import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch

from tokenize_offline.evaluation import evaluate, mse, psnr_db, ssim
from tokenize_offline.frechet import Gaussian, PictureFeatures, frechet_distance
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Photograph, to_pixels, to_unit, whole


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


def test_psnr_agrees_with_scikit_image(photographs: list[Photograph]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a = photographs[0].rgb
    b = np.clip(a + np.random.default_rng(0).normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    theirs = metrics.peak_signal_noise_ratio(a, b, data_range=255)
    assert psnr_db(mse(a, b)) == pytest.approx(theirs)


def test_the_carried_tokenizer_beats_a_thumbnail(
    tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    quality = evaluate(tokenizer, iter(photographs), 256, by_scale=True)
    assert quality.num_photographs == len(photographs)
    assert quality.psnr_db > quality.thumbnail16_db + 1.5
    assert quality.psnr_by_scale_db is not None
    assert (np.diff(quality.psnr_by_scale_db) > 0).all()
    assert min(quality.usage) > 0
    assert quality.semantic_cosine is quality.frechet_distance is quality.frechet_features is None
    quick = evaluate(tokenizer, photographs, 256)
    expected = dataclasses.asdict(quality) | {"psnr_by_scale_db": None}
    assert dataclasses.asdict(quick) == expected


def test_usage_and_perplexity_are_those_of_the_codes(
    tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    quality = evaluate(tokenizer, photographs[:2], 256)
    scales: list[list[int]] = [[] for _ in range(12)]
    for photo in photographs[:2]:
        schedule, rgb = whole(photo, 256)
        features = tokenizer.features(to_unit([rgb]))
        codes = tokenizer.quantizer.encode(features, schedule.grids[:12])[0].tolist()
        starts = (0, *schedule.code_ends)
        for scale, chosen in enumerate(scales):
            chosen += codes[starts[scale] : starts[scale + 1]]
    num_codes = tokenizer.settings.num_codes
    for scale, chosen in enumerate(scales):
        assert quality.usage[scale] == pytest.approx(len(set(chosen)) / num_codes)
        assert quality.perplexity_by_scale[scale] == pytest.approx(perplexity(chosen))
    together = [code for chosen in scales for code in chosen]
    assert quality.usage_all == pytest.approx(len(set(together)) / num_codes)
    assert quality.perplexity == pytest.approx(perplexity(together))


def perplexity(codes: list[int]) -> float:
    shares = [count / len(codes) for count in Counter(codes).values()]
    return math.prod(share**-share for share in shares)


def test_the_frechet_distance_needs_more_photographs_than_features(
    tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    colours = PictureFeatures("colours", lambda pixels: pixels.mean((2, 3)))
    few = evaluate(tokenizer, photographs[:3], 256, features=colours)
    assert (few.frechet_distance, few.frechet_features) == (None, "colours")
    real, drawn = [], []
    for photo in photographs:
        schedule, rgb = whole(photo, 256)
        grids = schedule.grids[:12]
        codes = tokenizer.quantizer.encode(tokenizer.features(to_unit([rgb])), grids)
        pictures = to_pixels(tokenizer.draw(tokenizer.quantizer.decode(codes, grids)))
        real.append(rgb.mean((0, 1)) / 127.5 - 1)
        drawn.append(pictures[0].mean((0, 1)) / 127.5 - 1)
    enough = evaluate(tokenizer, photographs, 256, features=colours).frechet_distance
    a, b = Gaussian(), Gaussian()
    a.add(torch.from_numpy(np.stack(real)))
    b.add(torch.from_numpy(np.stack(drawn)))
    assert enough == pytest.approx(frechet_distance(a, b), rel=1e-3)


def test_no_photographs_are_a_mistake(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="there is no photograph"):
        evaluate(tokenizer, [], 256)
