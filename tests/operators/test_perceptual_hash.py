"""Near-duplicates of real photographs are close, different photographs are far."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from infra.pixels import Pixels, decode, encode_jpeg, resize_crop, to_struct
from infra.schema import ERROR
from operators.perceptual_hash import PerceptualHash, perceptual_hash


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Pixels]:
    files = [p for p in sorted(photos.iterdir()) if p.suffix in (".png", ".jpg")]
    return [decode(p.read_bytes(), 512).rgb for p in files]


def distance(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def variants(rgb: Pixels) -> dict[str, Pixels]:
    h, w = rgb.shape[:2]
    brighter = np.clip(rgb.astype(np.float32) * 1.15 + 8, 0, 255).astype(np.uint8)
    return {
        "jpeg 30": decode(encode_jpeg(rgb, 30)).rgb,
        "half": resize_crop(rgb, h // 2, w // 2)[0],
        "third, odd": resize_crop(rgb, h // 3, w // 3)[0],
        "double": resize_crop(rgb, 2 * h, 2 * w)[0],
        "brighter": brighter,
        "thumbnail": np.asarray(Image.fromarray(rgb).resize((128, 96))),
    }


def test_near_duplicates_are_close(pictures: list[Pixels]) -> None:
    for rgb in pictures:
        own = perceptual_hash(rgb)
        for name, variant in variants(rgb).items():
            assert distance(own, perceptual_hash(variant)) <= 8, name


def test_different_photographs_are_far(pictures: list[Pixels]) -> None:
    hashes = [perceptual_hash(rgb) for rgb in pictures]
    apart = [distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) >= 16
    assert 28 <= np.mean(apart) <= 36


def test_all_photographs_of_the_assets(assets: Path) -> None:
    hashes = {}
    for path in sorted((assets / "images").iterdir()):
        rgb = decode(path.read_bytes(), 512).rgb
        hashes[path.stem] = perceptual_hash(rgb)
        again = decode(encode_jpeg(resize_crop(rgb, 200, 300)[0], 60)).rgb
        squeezed = perceptual_hash(resize_crop(rgb, 200, 300)[0])
        assert distance(squeezed, perceptual_hash(again)) <= 8, path.name
    same = {"exif_portrait_1", "exif_portrait_8"}
    for a, first in hashes.items():
        for b, second in hashes.items():
            if a < b:
                near = distance(first, second) <= 10
                assert near == ({a, b} == same), (a, b, distance(first, second))


def test_flat_pictures_hash_to_zero() -> None:
    for level in (0, 7, 255):
        assert perceptual_hash(np.full((50, 70, 3), level, np.uint8)) == 0
    assert perceptual_hash(np.zeros((1, 1, 3), np.uint8)) == 0


def test_column(pictures: list[Pixels]) -> None:
    failed = {"stage": "probe", "type": "empty", "message": ""}
    errors = pa.array([None, failed, None], ERROR.type)
    image = to_struct([pictures[0], pictures[1], None])
    batch = PerceptualHash()(pa.table({"image": image, "error": errors}))
    assert batch["phash"].to_pylist() == [perceptual_hash(pictures[0]), None, None]
    assert batch.schema.field("phash").equals(PerceptualHash.writes[0], check_metadata=True)
    assert PerceptualHash()(batch.slice(0, 0).drop_columns("phash"))["phash"].to_pylist() == []
    assert pickle.loads(pickle.dumps(PerceptualHash())) == PerceptualHash()
