import numpy as np
import pytest

from infra.pixels import DecodeError, Pixels, encode_jpeg
from infra.schedules import NUM_SCALES, SCHEDULES, Schedule, nearest
from tokenize_offline.codes import decode, extract, per_scale, read_stored, reduce_by_area
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


def test_every_picture_of_a_batch_may_have_its_own_noise(
    tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    images, ids = crops(photographs, (256, 256), 4), ["a", "b", "c", "d"]
    corrections = [Correction(), Correction(rate=0), Correction(), Correction(seed=1)]
    mixed = extract(tokenizer, images, ids, SQUARE, 12, corrections, batch_rows=3)
    for i, correction in enumerate(corrections):
        settings = (SQUARE, 12, correction, 3)
        alone = extract(tokenizer, images[i : i + 1], ids[i : i + 1], *settings)
        for name in ("input_codes", "target_codes", "sampled"):
            assert np.array_equal(getattr(mixed, name)[i], getattr(alone, name)[0])
    assert not mixed.sampled[1].any()


@pytest.mark.parametrize("num_scales", [1, 2, 12, 18])
def test_counts_per_scale(num_scales: int) -> None:
    schedule = SCHEDULES[3]
    rng = np.random.default_rng(num_scales)
    marks = rng.random((2, schedule.num_codes(num_scales))) < 0.3
    counts = per_scale(marks, schedule, num_scales)
    assert counts.shape == (2, num_scales)
    start = 0
    for scale, (height, width) in enumerate(schedule.grids[:num_scales]):
        stop = start + height * width
        assert counts[:, scale].tolist() == [row[start:stop].sum() for row in marks]
        start = stop


@pytest.mark.parametrize(
    ("size", "level", "type_"),
    [
        ((256, 256), 512, "too_small_for_level"),
        ((512, 512), 1024, "too_small_for_level"),
        ((256, 255), 256, "wrong_size"),
        ((300, 300), 256, "wrong_size"),
    ],
)
def test_stored_pictures_of_other_sizes_are_refused(
    size: tuple[int, int], level: int, type_: str
) -> None:
    with pytest.raises(DecodeError) as caught:
        read_stored(encode_jpeg(np.zeros((*size, 3), np.uint8)), level)
    assert caught.value.type == type_


@pytest.mark.parametrize("schedule", SCHEDULES[::10], ids=lambda schedule: str(schedule.index))
def test_stored_pictures_are_read_at_every_level_below(schedule: Schedule) -> None:
    data = encode_jpeg(np.full((*schedule.image_size(1024), 3), 90, np.uint8))
    for level in NUM_SCALES:
        found, rgb = read_stored(data, level)
        assert (found, rgb.shape[:2]) == (schedule, schedule.image_size(level))
        assert np.abs(rgb.astype(int) - 90).max() <= 1


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


@pytest.mark.parametrize("factor", [2, 3, 4, 20])
def test_area_reduction_is_that_of_whole_numbers(factor: int) -> None:
    rng = np.random.default_rng(factor)
    rgb = rng.choice([0, 1, 254, 255], (3 * factor, 5 * factor, 3)).astype(np.uint8)
    reduced = reduce_by_area(rgb, factor)
    assert reduced.shape == (3, 5, 3)
    for row, col, channel in np.ndindex(3, 5, 3):
        place = [slice(at * factor, (at + 1) * factor) for at in (row, col)]
        total = sum(rgb[*place, channel].ravel().tolist())
        assert reduced[row, col, channel] == (2 * total + factor**2) // (2 * factor**2)


def test_area_reduction_is_an_exact_mean() -> None:
    rgb = np.array([[0, 1], [1, 0]], np.uint8)[..., None].repeat(3, axis=2)
    assert reduce_by_area(rgb, 2).tolist() == [[[1, 1, 1]]]  # 0.5 rounds up
    white = np.full((64, 32, 3), 255, np.uint8)
    assert np.array_equal(reduce_by_area(white, 4), white[:16, :8])
    assert reduce_by_area(rgb, 1) is rgb
    with pytest.raises(ValueError, match="not whole blocks"):
        reduce_by_area(rgb, 3)
