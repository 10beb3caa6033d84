import numpy as np
import pytest

from infra.pixels import Pixels
from infra.schedules import SCHEDULES, nearest
from tokenize_offline.codes import decode, extract, reduce_by_area
from tokenize_offline.correction import Correction
from tokenize_offline.evaluation import mse
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Photograph, random_crop

SQUARE = nearest(1, 1)


def crops(photographs: list[Photograph], size: tuple[int, int], count: int) -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [random_crop(photographs[i % len(photographs)], size, rng) for i in range(count)]


@pytest.mark.parametrize("batch_rows", [1, 4])
def test_a_batch_gives_the_same_codes_as_one_by_one(
    tokenizer: Tokenizer, photographs: list[Photograph], batch_rows: int
) -> None:
    images = crops(photographs, (256, 256), 6)
    ids = [str(i) for i in range(6)]
    settings = (SQUARE, 12, Correction(), batch_rows)
    batch = extract(tokenizer, images, ids, *settings)
    for i, image in enumerate(images):
        alone = extract(tokenizer, [image], [ids[i]], *settings)
        assert np.array_equal(alone.input_codes[0], batch.input_codes[i])
        assert np.array_equal(alone.target_codes[0], batch.target_codes[i])


@pytest.mark.parametrize("schedule", [SCHEDULES[0], SCHEDULES[-1]])
def test_extreme_ratios(
    tokenizer: Tokenizer, photographs: list[Photograph], schedule: object
) -> None:
    size = schedule.image_size(256)  # type: ignore[attr-defined]
    assert max(size) == 4 * min(size)
    image = crops(photographs, size, 1)[0]
    encoded = extract(tokenizer, [image], ["a"], schedule, 12, Correction(rate=0))  # type: ignore[arg-type]
    assert encoded.input_codes.shape == (1, 905)
    drawn = decode(tokenizer, encoded.input_codes, schedule, 12)  # type: ignore[arg-type]
    flat = np.broadcast_to(image.mean(axis=(0, 1)), image.shape)
    assert mse(drawn[0], image) < 0.5 * np.mean((image - flat) ** 2)


def test_decoding_is_deterministic_and_refines_with_scales(
    tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    image = crops(photographs, (256, 256), 1)[0]
    codes = extract(tokenizer, [image], ["a"], SQUARE, 12, Correction(rate=0)).target_codes
    full = decode(tokenizer, codes, SQUARE, 12)
    assert np.array_equal(full, decode(tokenizer, codes, SQUARE, 12))
    assert full.shape == (1, 256, 256, 3)
    coarse = decode(tokenizer, codes, SQUARE, 12, first_scales=4)
    assert mse(full[0], image) < mse(coarse[0], image)


def test_what_does_not_fit_the_schedule_is_refused(tokenizer: Tokenizer) -> None:
    image = np.zeros((240, 256, 3), np.uint8)
    with pytest.raises(ValueError, match="resize it to 256 x 256"):
        extract(tokenizer, [image], ["a"], SQUARE, 12, Correction())
    with pytest.raises(ValueError, match=r"expected \[B, 900\]"):
        decode(tokenizer, np.zeros((1, 899), np.int32), SQUARE, 12)


def test_area_reduction_is_an_exact_mean() -> None:
    rgb = np.array([[0, 1], [1, 0]], np.uint8)[..., None].repeat(3, axis=2)
    assert reduce_by_area(rgb, 2).tolist() == [[[1, 1, 1]]]  # 0.5 rounds up
    white = np.full((64, 32, 3), 255, np.uint8)
    assert np.array_equal(reduce_by_area(white, 4), white[:16, :8])
    assert reduce_by_area(rgb, 1) is rgb
    with pytest.raises(ValueError, match="not whole blocks"):
        reduce_by_area(rgb, 3)
