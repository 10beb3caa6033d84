from pathlib import Path

import numpy as np
import pytest
import torch

from infra.config import ConfigError
from infra.pixels import encode_jpeg
from tokenize_offline.photographs import (
    Photograph,
    random_crop,
    read_photographs,
    split,
    to_pixels,
    to_unit,
    whole,
)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_reads_each_picture_once_and_skips_what_is_none(tmp_path: Path) -> None:
    data = encode_jpeg(noise(40, 60))
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "copy.jpg").write_bytes(data)
    (tmp_path / "broken.jpg").write_bytes(data[:50])
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "page.jpg").write_bytes(encode_jpeg(noise(40, 60, 1)))
    photographs = read_photographs([tmp_path], short_side=20, exclude=["page*"])
    assert [photo.name for photo in photographs] == ["a.jpg"]
    assert photographs[0].rgb.shape == (20, 30, 3)


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        read_photographs([tmp_path / "nowhere"], 100)
    with pytest.raises(ConfigError, match="no picture in"):
        read_photographs([tmp_path], 100)


def test_a_photograph_stays_on_its_side_of_the_split() -> None:
    photographs = [Photograph(f"p{i}.jpg", noise(4, 4)) for i in range(200)]
    training, held_out = split(photographs, "p*", 0.5, seed=0)
    assert 70 < len(held_out) < 130
    assert len(training) + len(held_out) == 200
    assert split(photographs[:50], "p*", 0.5, 0)[1] == [
        p for p in held_out if p in photographs[:50]
    ]
    assert split(photographs, "q*", 0.5, 0)[1] == []


@pytest.mark.parametrize("shape", [(300, 500), (64, 2_000), (40, 40)])
def test_crops_have_the_size_asked_for(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    crop = random_crop(Photograph("a", noise(*shape)), (128, 64), rng)
    assert crop.shape == (128, 64, 3)


def test_whole_is_cut_to_its_schedule() -> None:
    schedule, rgb = whole(Photograph("a", noise(300, 400)), 256)
    assert rgb.shape[:2] == schedule.image_size(256)
    assert float(schedule.ratio) == pytest.approx(0.75, abs=0.04)


def test_unit_range_round_trips_every_byte() -> None:
    rgb = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    unit = to_unit([rgb])
    assert unit.shape == (1, 3, 16, 16)
    assert (unit.min(), unit.max()) == (-1, 1)
    assert np.array_equal(to_pixels(unit)[0], rgb)
    assert to_pixels(torch.full((1, 3, 1, 1), 3.0)).max() == 255
