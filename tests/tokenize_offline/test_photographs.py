import io
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infra.config import ConfigError
from infra.pixels import DecodeError, encode_jpeg, resize_crop
from infra.schedules import SCHEDULES
from tokenize_offline.photographs import (
    Photograph,
    Pictures,
    draw_crop,
    open_pictures,
    random_crop,
    split,
    to_pixels,
    to_unit,
    whole,
)

HELD_OUT = "10014 10125 10229 10239 10309 10405 12062 12667 13004 14473 15517 15746 17182".split()
TRAINED_ON = "10069 10073 10114 10324 10432 10442 12120 13291 14439 19924".split()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def open_noise(
    folder: Path, shapes: Sequence[tuple[int, int]], broken: Sequence[int] = ()
) -> Pictures:
    """Pictures 000.png, 001.png, … of these heights and widths; the broken ones are cut off."""
    folder.mkdir(exist_ok=True)
    for number, shape in enumerate(shapes):
        file = io.BytesIO()
        Image.fromarray(noise(*shape, number)).save(file, "PNG")
        whole_file = file.getvalue()
        data = whole_file[: len(whole_file) // 2] if number in broken else whole_file
        (folder / f"{number:03d}.png").write_bytes(data)
    return open_pictures([folder], short_side=10_000, log=lambda line: None)


def weighted(pictures: Pictures, weights: Sequence[float]) -> Pictures:
    return Pictures(pictures._decoded, pictures._numbers, np.array(weights, float))


def test_gives_each_picture_once_reduced_and_unwritable(tmp_path: Path) -> None:
    data = encode_jpeg(noise(40, 60))
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "copy.jpg").write_bytes(data)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "page.jpg").write_bytes(encode_jpeg(noise(40, 60, 1)))
    pictures = open_pictures([tmp_path], short_side=20, exclude=["page*"])
    assert list(pictures.names) == ["a.jpg"]
    assert pictures[0].name == "a.jpg"
    assert pictures.rgb(0).shape == (20, 30, 3)
    with pytest.raises(ValueError, match="read-only"):
        pictures.rgb(0)[0, 0, 0] = 1


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        open_pictures([tmp_path / "nowhere"], short_side=100)
    with pytest.raises(ConfigError, match="no picture in"):
        open_pictures([tmp_path], short_side=100)


def test_is_a_sequence_of_photographs_that_are_decoded_when_asked_for(tmp_path: Path) -> None:
    pictures = open_noise(tmp_path, [(8 + n, 9) for n in range(5)])
    (tmp_path / "003.png").unlink()  # after it was opened
    assert [p.rgb.shape[0] for p in pictures[:3]] == [8, 9, 10]
    assert pictures[-1].rgb.shape == (12, 9, 3)
    some = pictures[1::3]
    assert isinstance(some, Pictures)
    assert list(some.names) == list(pictures.names[1::3]) == ["001.png", "004.png"]
    assert [np.array_equal(p.rgb, noise(8 + n, 9, n)) for p, n in zip(some, (1, 4), strict=True)]
    with pytest.raises(IndexError):
        pictures[5]


def test_pictures_that_cannot_be_decoded_are_passed_over_and_logged_once(tmp_path: Path) -> None:
    open_noise(tmp_path, [(9, 9)] * 5, broken=[0, 3])
    lines: list[str] = []
    pictures = open_pictures([tmp_path], short_side=99, log=lines.append)
    (tmp_path / "002.png").unlink()
    for _ in range(2):
        with pytest.raises(DecodeError):
            pictures[0]
        rng = np.random.default_rng(0)
        assert {pictures.draw(rng).name for _ in range(100)} == {"001.png", "004.png"}
        assert [photo.name for photo in pictures.decodable()] == ["001.png", "004.png"]
    assert len(lines) == 3
    assert f"{tmp_path}/000.png is left out, truncated: " in lines[0]
    assert any("/002.png is left out, unreadable: No such file" in line for line in lines)


def test_when_none_can_be_decoded_the_draw_says_so(tmp_path: Path) -> None:
    pictures = open_noise(tmp_path, [(9, 9)] * 3, broken=[0, 1, 2])
    with pytest.raises(ConfigError, match="1,000 pictures drawn in a row cannot be decoded"):
        pictures.draw(np.random.default_rng(0))
    assert list(pictures.decodable()) == []


def test_many_failures_are_counted_in_the_log_and_not_all_named(tmp_path: Path) -> None:
    for number in range(301):
        (tmp_path / f"{number:03d}.png").write_bytes(
            b"\x89PNG" + bytes([number % 256, number // 256])
        )
    lines: list[str] = []
    pictures = open_pictures([tmp_path], short_side=99, log=lines.append)
    assert list(pictures.decodable()) == []
    assert len(lines) == 102
    assert lines[-1].startswith("300 pictures are left out by now, the last ")


def test_with_equal_weights_the_draw_is_that_of_whole_numbers(tmp_path: Path) -> None:
    """Trainings before there were weights drew so: the same seed must go on giving the same."""
    pictures = open_noise(tmp_path, [(300, 400), (280, 290), (400, 260), (270, 270), (50, 60)])
    for schedule in SCHEDULES[::8]:
        crop = draw_crop(pictures, np.random.default_rng(5), schedule, 256)
        rng = np.random.default_rng(5)
        photo = pictures[int(rng.integers(len(pictures)))]
        assert np.array_equal(crop, random_crop(photo, schedule.image_size(256), rng))
    same = weighted(pictures, [3.0] * 5)
    a, b = np.random.default_rng(1), np.random.default_rng(1)
    assert [same.draw_index(a) for _ in range(99)] == b.integers(5, size=99).tolist()


@pytest.mark.parametrize("weights", [[1, 2, 3, 4, 0.5], [1e-9, 1, 1, 1, 1], [1, 1, 1, 1, 1e3]])
def test_pictures_are_drawn_by_their_weights(tmp_path: Path, weights: list[float]) -> None:
    pictures = weighted(open_noise(tmp_path, [(4, 4)] * 5), weights)
    rng, count = np.random.default_rng(0), 40_000
    drawn = np.bincount([pictures.draw_index(rng) for _ in range(count)], minlength=5)
    expected = np.array(weights) / sum(weights) * count
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: 1 in 1,000
    assert pictures.draw_index(np.random.default_rng(7)) == pictures.draw_index(
        np.random.default_rng(7)
    )


def test_those_that_decode_keep_their_shares(tmp_path: Path) -> None:
    pictures = weighted(open_noise(tmp_path, [(4, 4)] * 4, broken=[1]), [1, 5, 2, 3])
    rng, count = np.random.default_rng(0), 6_000
    names = [pictures.draw(rng).name for _ in range(count)]
    drawn = np.array([names.count(f"{n:03d}.png") for n in (0, 2, 3)])
    expected = np.array([1, 2, 3]) / 6 * count
    assert ((drawn - expected) ** 2 / expected).sum() < 13.8  # 2 degrees of freedom


def test_what_is_drawn_does_not_depend_on_what_was_drawn_before(tmp_path: Path) -> None:
    shapes = [(600, 600), (40, 40), (90, 700), (520, 1_000), (30, 800)]
    fresh = open_noise(tmp_path, shapes, broken=[2])
    used = open_noise(tmp_path, shapes, broken=[2])
    assert len(list(used.decodable())) == 4
    for seed in range(20):
        names = [
            pictures.draw(np.random.default_rng(seed), (512, 512)).name
            for pictures in (fresh, used)
        ]
        assert names[0] == names[1]


def test_above_level_256_large_enough_pictures_are_preferred(tmp_path: Path) -> None:
    pictures = open_noise(tmp_path, [(40, 40)] * 3 + [(600, 600)])
    rng = np.random.default_rng(0)
    names = [pictures.draw(rng, (512, 512)).name for _ in range(60)]
    assert names.count("003.png") > 55  # (3/4) ** 16 = 1%
    small = pictures[:3]
    names = [small.draw(np.random.default_rng(n), (512, 512)).name for n in range(20)]
    first = [small.draw(np.random.default_rng(n)).name for n in range(20)]
    assert names == first  # nothing but small ones: as they come, in their shares
    schedule = SCHEDULES[20]
    assert draw_crop(small, rng, schedule, 512).shape[:2] == schedule.image_size(512)


def test_threads_share_a_cache_and_see_the_same_pictures(tmp_path: Path) -> None:
    pictures = open_noise(tmp_path, [(20, 20)] * 12, broken=[5])
    start = threading.Barrier(8)

    def look(seed: int) -> list[str]:
        start.wait()
        rng = np.random.default_rng(seed)
        drawn = [pictures.draw(rng) for _ in range(60)]
        assert all(np.array_equal(p.rgb, noise(20, 20, int(p.name[:3]))) for p in drawn)
        return [photo.name for photo in drawn]

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(look, [0, 1, 2, 3] * 2))
    assert names[:4] == names[4:]


def test_memory_is_bounded_by_the_cache(tmp_path: Path) -> None:
    open_noise(tmp_path, [(10, 10)] * 5)
    pictures = open_pictures([tmp_path], short_side=99, cache_bytes=2 * 300)
    first = pictures.rgb(0)
    assert pictures.rgb(0) is first
    for index in (1, 0, 2):
        pictures.rgb(index)
    assert pictures.rgb(0) is first  # used after 1
    assert pictures._decoded._cache.num_bytes == 600
    none_kept = open_pictures([tmp_path], short_side=99, cache_bytes=0)
    assert none_kept.rgb(0) is not none_kept.rgb(0)


def test_identity_tells_names_order_and_weights(tmp_path: Path) -> None:
    pictures = open_noise(tmp_path, [(4, 4)] * 3)
    again = open_noise(tmp_path, [(4, 4)] * 3)
    assert pictures.identity == again.identity
    others = [pictures[:2], pictures[::-1], weighted(pictures, [1, 1, 2])]
    assert len({pictures.identity, *(other.identity for other in others)}) == 4


def test_a_photograph_stays_on_its_side_of_the_split(tmp_path: Path) -> None:
    pictures = open_noise(tmp_path, [(4, 4)] * 200)
    training, held_out = split(pictures, "*.png", 0.5, seed=0)
    assert 70 < len(held_out) < 130
    assert sorted([*training.names, *held_out.names]) == list(pictures.names)
    of_fewer = split(pictures[:50], "*.png", 0.5, 0)[1]
    assert list(of_fewer.names) == [name for name in held_out.names if name < "050"]
    assert len(split(pictures, "q*", 0.5, 0)[1]) == 0


def test_the_split_of_the_carried_tokenizer_is_as_its_readme_tells(tmp_path: Path) -> None:
    for number, name in enumerate([*HELD_OUT, *TRAINED_ON]):
        (tmp_path / f"coco_{name}.jpg").write_bytes(encode_jpeg(noise(4, 4, number)))
    (tmp_path / "lomiri_wine.jpg").write_bytes(encode_jpeg(noise(4, 4, 99)))
    training, held_out = split(open_pictures([tmp_path], short_side=4), "coco_*", 0.5, seed=0)
    assert list(held_out.names) == [f"coco_{name}.jpg" for name in HELD_OUT]
    assert list(training.names) == [*(f"coco_{name}.jpg" for name in TRAINED_ON), "lomiri_wine.jpg"]


@pytest.mark.parametrize("shape", [(300, 500), (64, 2_000), (40, 40)])
def test_crops_have_the_size_asked_for(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    crop = random_crop(Photograph("a", noise(*shape)), (128, 64), rng)
    assert crop.shape == (128, 64, 3)


def test_whole_is_cut_to_its_schedule() -> None:
    schedule, rgb = whole(Photograph("a", noise(300, 400)), 256)
    assert rgb.shape[:2] == schedule.image_size(256)
    assert float(schedule.ratio) == pytest.approx(0.75, abs=0.04)
    assert np.array_equal(rgb, resize_crop(noise(300, 400), *schedule.image_size(256))[0])


def test_unit_range_round_trips_every_byte() -> None:
    rgb = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    unit = to_unit([rgb])
    assert unit.shape == (1, 3, 16, 16)
    assert (unit.min(), unit.max()) == (-1, 1)
    assert np.array_equal(to_pixels(unit)[0], rgb)
    assert to_pixels(torch.full((1, 3, 1, 1), 3.0)).max() == 255
