"""Every kind of file, good and bad, through the one decode boundary."""

import contextlib
import io
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from infra import pixels
from infra.pixels import DecodeError, decode, encode_jpeg
from infra.schema import ERROR, IMAGE_TYPE


def encode(picture: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def astronaut(photos: Path) -> Image.Image:
    return Image.open(photos / "astronaut.png").convert("RGB").resize((320, 200))


def test_every_allowed_format_gives_the_same_picture(astronaut: Image.Image) -> None:
    formats = [*pixels.FORMATS]
    for format_ in formats:
        picture = decode(encode(astronaut, format_))
        assert (picture.format, picture.width, picture.height) == (format_, 320, 200)
        error = np.abs(picture.rgb.astype(int) - np.asarray(astronaut).astype(int)).mean()
        assert error < 12, format_  # GIF has 256 colours, the others are near or exact


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied(astronaut: Image.Image, format_: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encode(astronaut, format_, exif=exif, **options)
    picture = decode(data)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright is not None
    assert picture.orientation == orientation
    assert (picture.width, picture.height) == upright.size
    np.testing.assert_array_equal(picture.rgb, np.asarray(upright))


def test_orientation_of_real_photographs(assets: Path) -> None:
    plain = decode((assets / "images/exif_portrait_1.jpg").read_bytes(), 256)
    turned = decode((assets / "images/exif_portrait_8.jpg").read_bytes(), 256)
    assert (turned.orientation, turned.width, turned.height) == (8, plain.width, plain.height)
    difference = np.abs(plain.rgb.astype(int) - turned.rgb.astype(int))
    assert difference.mean() < 3  # all but the number printed into each


def test_a_broken_orientation_is_none(astronaut: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    assert decode(encode(astronaut, "JPEG", exif=exif)).orientation == 1


def test_reduction_keeps_the_facts_of_the_full_picture(photos: Path) -> None:
    data = (photos / "retina.jpg").read_bytes()
    full, small = decode(data), decode(data, 512)
    assert full.rgb.shape == (1411, 1411, 3)
    assert small.rgb.shape == (512, 512, 3)
    assert (small.width, small.height) == (1411, 1411)
    exact = pixels.resize_crop(full.rgb, 512, 512)[0]
    assert np.abs(exact.astype(int) - small.rgb.astype(int)).mean() < 1.5


def test_nothing_is_enlarged(astronaut: Image.Image) -> None:
    assert decode(encode(astronaut, "JPEG"), 512).rgb.shape == (200, 320, 3)


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(1367, 1024), (1024, 1365), (513, 2000), (5000, 30), (30, 5000)])
def test_reduced_size(size: tuple[int, int], format_: str) -> None:
    picture = decode(encode(Image.new("RGB", size, (9, 9, 9)), format_), 512)
    height, width = picture.rgb.shape[:2]
    scale = min(1.0, 512 / min(size), 8 * 512 / max(size))
    assert abs(width - size[0] * scale) <= 1
    assert abs(height - size[1] * scale) <= 1
    assert max(height, width) <= pixels.MAX_ASPECT * 512


def test_extreme_shapes() -> None:
    for width, height in [(1, 1), (65500, 1), (1, 65500), (65500, 512)]:
        for format_ in ("JPEG", "PNG"):
            data = encode(Image.new("RGB", (width, height)), format_)
            assert decode(data).rgb.shape == (height, width, 3)
            assert max(decode(data, 512).rgb.shape[:2]) <= 4096


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes_become_rgb(astronaut: Image.Image, mode: str) -> None:
    format_ = {"CMYK": "JPEG", "YCbCr": "TIFF"}.get(mode, "PNG")
    picture = decode(encode(astronaut.convert(mode), format_))
    assert picture.mode == mode
    expected = np.asarray(astronaut.convert(mode).convert("RGB")).astype(int)
    assert np.abs(picture.rgb.astype(int) - expected).mean() < 6


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256 * 64).reshape(64, 256).astype(np.uint16)
    for format_ in ("PNG", "TIFF"):
        picture = decode(encode(Image.fromarray(ramp), format_))
        assert picture.mode.startswith("I;16")
        np.testing.assert_array_equal(picture.rgb[..., 0], ramp >> 8)


def test_transparency_lies_over_white() -> None:
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 4, 8))
    for data in (encode(half, "PNG"), encode(half, "WEBP", lossless=True)):
        rgb = decode(data).rgb
        assert rgb[0, 0].tolist() == [255, 0, 0]
        assert rgb[0, 7].tolist() == [255, 255, 255]
    palette = Image.new("P", (4, 4), 3)
    palette.putpalette([0, 0, 0] * 4)
    assert decode(encode(palette, "PNG", transparency=3)).rgb.min() == 255


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for format_ in ("GIF", "WEBP", "PNG"):
        data = encode(frames[0], format_, save_all=True, append_images=frames[1:], lossless=True)
        red, _, blue = decode(data).rgb[8, 8].tolist()
        assert (red, blue) == (255, 0), format_


def test_float_pixels_are_refused() -> None:
    data = encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert caught.value.type == "unsupported_mode"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_fail(astronaut: Image.Image, format_: str, share: float) -> None:
    data = encode(astronaut, format_)
    with pytest.raises(DecodeError) as caught:
        decode(data[: int(len(data) * share)], 128)
    assert caught.value.type == "truncated"


@pytest.mark.parametrize(
    ("data", "type_"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "unknown_format"),
        (b"\x00" * 1000, "unknown_format"),
        (b"RIFF\x10\x00\x00\x00WAVEfmt sound, no picture", "unknown_format"),
        (b"%PDF-1.7\n", "unknown_format"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, "corrupt"),
        (b"\xff\xd8", "corrupt"),
        (b"\xff\xd8\xff\xe0\x00\x10JF", "truncated"),
    ],
)
def test_files_that_are_no_pictures(data: bytes, type_: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert caught.value.type == type_
    assert "\n" not in str(caught.value)


def test_other_formats_are_not_opened(astronaut: Image.Image) -> None:
    for format_ in ("PPM", "ICO", "TGA", "PCX", "JPEG2000"):
        with pytest.raises(DecodeError):
            decode(encode(astronaut, format_))


def test_too_many_pixels_is_said_from_the_header() -> None:
    data = bytearray(encode(Image.new("L", (8, 8)), "PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # IHDR: 3.6 gigapixels in 70 bytes
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(DecodeError) as caught:
        decode(bytes(data), 512)
    assert caught.value.type == "too_many_pixels"
    picture = encode(Image.new("RGB", (100, 100)), "JPEG")
    assert decode(picture, max_pixels=10_000).width == 100
    for limit in (9_999, 5_001, 100):  # Pillow treats less and more than twice the limit apart
        with pytest.raises(DecodeError) as caught:
            decode(picture, 8, max_pixels=limit)
        assert caught.value.type == "too_many_pixels"


def test_limits_and_warning_filters_are_put_back(astronaut: Image.Image) -> None:
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    decode(encode(astronaut, "JPEG"))
    with pytest.raises(DecodeError):
        decode(b"nothing")
    assert before == (Image.MAX_IMAGE_PIXELS, list(warnings.filters))


def test_damage_costs_the_row_and_nothing_else(astronaut: Image.Image) -> None:
    rng = np.random.default_rng(0)
    for format_ in pixels.FORMATS:
        good = np.frombuffer(encode(astronaut.resize((64, 40)), format_), np.uint8)
        for _ in range(60):
            bad = good.copy()
            places = rng.integers(0, len(bad), 8)
            bad[places] = rng.integers(0, 256, 8)
            with contextlib.suppress(DecodeError):
                assert decode(bad.tobytes(), 32, max_pixels=1_000_000).rgb.dtype == np.uint8


def test_resize_crop_covers_and_centres() -> None:
    rgb = np.zeros((100, 300, 3), np.uint8)
    rgb[:, 100:200] = 200
    crop, share = pixels.resize_crop(rgb, 50, 50)
    assert crop.shape == (50, 50, 3)
    assert crop.min() == 200
    assert share == pytest.approx(2 / 3)
    assert pixels.resize_crop(rgb, 50, 150)[1] == 0.0
    assert pixels.resize_crop(rgb, 400, 400)[0].shape == (400, 400, 3)
    assert pixels.resize_crop(np.zeros((1, 9000, 3), np.uint8), 64, 64)[0].shape == (64, 64, 3)


def test_reduction_is_by_area() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    mean = rgb.reshape(16, 4, 24, 4, 3).mean((1, 3))
    crop, _ = pixels.resize_crop(rgb, 16, 24)
    assert np.abs(crop - mean).max() <= 0.5


def test_encode_jpeg_is_close_small_and_repeatable(astronaut: Image.Image) -> None:
    rgb = np.asarray(astronaut)
    data = pixels.encode_jpeg(rgb)
    assert data == pixels.encode_jpeg(rgb.copy())
    assert len(data) < rgb.size / 4
    assert np.abs(decode(data).rgb.astype(int) - rgb).mean() < 2


def test_struct_round_trip_is_zero_copy() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in [(3, 5, 3), (7, 2, 3)]]
    array = pixels.to_struct([pictures[0], None, pictures[1]])
    assert array.type == IMAGE_TYPE
    assert array.is_valid().to_pylist() == [True, False, True]
    first, none, second = pixels.from_struct(array)
    assert none is None
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first, pictures[0])
    np.testing.assert_array_equal(second, pictures[1])
    buffer = array.field("rgb").buffers()[2]
    inside = range(buffer.address, buffer.address + buffer.size)
    assert first.__array_interface__["data"][0] in inside
    assert second.__array_interface__["data"] == (buffer.address + 45, True)  # read-only
    chunked = pa.chunked_array([array, array.slice(2), array.slice(0, 0)])
    again = pixels.from_struct(chunked)
    assert [p is None for p in again] == [False, True, False, False]
    assert again[3] is not None
    np.testing.assert_array_equal(again[3], pictures[1])
    assert pixels.from_struct(pixels.to_struct([])) == []
    assert pixels.from_struct(pixels.to_struct([None])) == [None]


def test_pictures_of_skips_failed_rows() -> None:
    image = pixels.to_struct([np.zeros((2, 2, 3), np.uint8)] * 2)
    errors = pa.array([None, {"stage": "x", "type": "y", "message": "z"}], ERROR.type)
    good, bad = pixels.pictures_of(pa.table({"image": image, "error": errors}))
    assert good is not None
    assert bad is None


def test_importing_pixels_does_not_import_torch() -> None:
    code = "import infra.pixels, sys; assert not {'torch', 'ray', 'duckdb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_decode_at_the_same_time_and_leave_pillow_as_it_was() -> None:
    pictures = [encode_jpeg(np.full((20 + n, 30, 3), n, np.uint8)) for n in range(8)]
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    start = threading.Barrier(8)

    def look(number: int) -> None:
        start.wait()
        for turn in range(200):
            picture = pictures[(number + turn) % 8]
            height = 20 + (number + turn) % 8
            if turn % 3:
                assert decode(picture).rgb.shape == (height, 30, 3)
            else:
                with pytest.raises(DecodeError, match="pixels") as caught:
                    decode(picture, max_pixels=height * 30 - 1)
                assert caught.value.type == "too_many_pixels"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look, range(8)))
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before
    assert pixels._limits == []
