"""Pictures cut to a level, whatever their shape."""

import io

import numpy as np
import pytest
from PIL import Image

from infra.pixels import DecodeError
from infra.schedules import SCHEDULES, nearest
from operators.level_picture import LevelPicture

AT_256 = LevelPicture(256, 95, 0.5)


def test_every_schedule_is_its_own_target() -> None:
    for schedule in SCHEDULES:
        size = schedule.image_size(256)
        assert AT_256.target(*size) == size
        rgb = np.full((*size, 3), 99, np.uint8)
        done = AT_256.cut(rgb, size, size)
        assert Image.open(io.BytesIO(done["image"])).size == (done["width"], done["height"])
        assert (done["height"], done["width"], done["cropped"]) == (*size, 0.0)


@pytest.mark.parametrize("size", [(256, 256), (300, 1000), (1000, 300), (720, 1280)])
def test_one_pixel_less_is_too_small(size: tuple[int, int]) -> None:
    target = AT_256.target(*size)
    assert target == nearest(*size).image_size(256)
    for smaller in ((target[0] - 1, target[1]), (target[0], target[1] - 1)):
        with pytest.raises(DecodeError) as raised:
            AT_256.target(*smaller)
        assert raised.value.type == "too_small_for_level"
        assert str(raised.value).startswith(f"{smaller[1]}x{smaller[0]} is below")


def test_too_elongated_tells_the_full_size() -> None:
    target = AT_256.target(128, 1200)
    rgb = np.zeros((128, 1200, 3), np.uint8)
    with pytest.raises(DecodeError, match="2400x256: 57% would be cut away, at most 50%") as raised:
        AT_256.cut(rgb, target, (256, 2400))
    assert raised.value.type == "too_elongated"
    assert LevelPicture(256, 95, 1.0).cut(rgb, target, (256, 2400))["cropped"] > 0.5


def test_settings_that_cannot_be() -> None:
    for settings, told in (
        ((300, 95, 0.5), "level is 300: choose 256, 512, 1024"),
        ((256, 101, 0.5), "jpeg_quality is 101, expected 1 to 100"),
        ((256, 95, -0.1), r"max_cropped is -0\.1, expected a share"),
    ):
        with pytest.raises(ValueError, match=told):
            LevelPicture(*settings)  # type: ignore[arg-type]
