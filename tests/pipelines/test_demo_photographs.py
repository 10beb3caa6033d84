"""The demo's photographs: every entry has its file, every crop is big enough and described."""

import io

import pytest
from PIL import Image

from infra.config import ConfigError
from infra.schedules import nearest
from pipelines.demo_photographs import Photograph, crop_boxes, describe, read_photographs

PLAIN = {"caption": "A hill.", "attribution": "someone", "licence": "CC0-1.0"}


def test_every_entry_is_complete_and_its_file_is_installed() -> None:
    photographs = read_photographs()
    assert len({photograph.stem for photograph in photographs}) == len(photographs) == 28
    for photograph in photographs:
        picture = Image.open(io.BytesIO(photograph.read()))
        assert photograph.caption.endswith(".")
        assert 4 <= len(photograph.caption.split()) <= 30
        assert photograph.attribution
        assert photograph.licence
        assert bool(photograph.crops) == bool(photograph.subject)
        if photograph.crops:
            assert photograph.things or photograph.grounds
        for boxes in (*photograph.things.values(), *photograph.grounds.values()):
            for left, top, right, bottom in boxes:
                assert 0 <= left < right <= picture.width
                assert 0 <= top < bottom <= picture.height


def test_crops_lie_inside_and_need_no_enlargement() -> None:
    count = 0
    for photograph in read_photographs():
        size = Image.open(io.BytesIO(photograph.read())).size
        for crop in photograph.crops:
            boxes = crop_boxes(size, crop)
            assert len(set(boxes)) == len(boxes)
            for left, top, right, bottom in boxes:
                assert 0 <= left < right <= size[0]
                assert 0 <= top < bottom <= size[1]
                assert (right - left, bottom - top) == crop
                needed = nearest(bottom - top, right - left).image_size(256)
                assert min((bottom - top) / needed[0], (right - left) / needed[1]) >= 1
                caption = describe(photograph, (left, top, right, bottom))
                assert caption.startswith(f"Detail of {photograph.subject}: ")
                count += 1
    assert count == 205


def test_crops_are_spread_evenly() -> None:
    assert crop_boxes((400, 100), (100, 100)) == [
        (left, 0, left + 100, 100) for left in (0, 50, 100, 150, 200, 250, 300)
    ]
    assert crop_boxes((110, 100), (100, 100)) == [(5, 0, 105, 100)]


def test_a_crops_caption_names_what_lies_in_it() -> None:
    photograph = Photograph(
        file="hill.png",
        package="scikit-image",
        subject="a hill",
        things={
            "a tree": ((0, 0, 40, 40),),
            "a pair of birds": ((60, 0, 70, 10), (90, 90, 100, 100)),
            "a barn": ((35, 60, 65, 100),),
        },
        grounds={"sky": ((0, 0, 100, 30),), "grass": ((0, 60, 50, 100), (70, 60, 100, 100))},
        **PLAIN,
    )
    assert describe(photograph, (0, 0, 50, 50)) == "Detail of a hill: a tree and sky."
    assert describe(photograph, (50, 50, 100, 100)) == (
        "Detail of a hill: a pair of birds, part of a barn and grass."
    )
    assert describe(photograph, (0, 10, 100, 90)) == (
        "Detail of a hill: a tree, a barn, sky and grass."
    )
    with pytest.raises(AssertionError, match="nothing is known"):
        describe(photograph, (42, 31, 58, 58))


def test_a_missing_file_is_told() -> None:
    photograph = Photograph(file="hill.png", package="scikit-image", **PLAIN)
    with pytest.raises(ConfigError, match=r"hill\.png is not in the installed scikit-image: pip"):
        photograph.read()
