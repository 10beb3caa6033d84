"""From encoded files to pixels and back: the only decode boundary of the project.

Every decoder fault ends here as a `DecodeError` that says what is wrong with the file, so that a
bad file costs its own row and nothing else.

Colour: pictures come out as 8-bit RGB. Grey, palette, CMYK, YCbCr and 16-bit pictures are
converted, transparency is laid over white, and of an animation the first frame is taken. Embedded
ICC profiles are ignored: pixel values are taken for sRGB, as the published image towers were
trained. Pictures without a defined white (32-bit integer or float TIFF) are refused.

Threads: decoding and resizing run in the calling thread. OpenCV's pool and the AVIF decoder's are
switched off for the process, because workers are already one per core. While any thread decodes,
Pillow's process-wide limit and the warning filters are others; the last one puts them back.
"""

import io
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ExifTags, Image, UnidentifiedImageError, features

from infra.schema import IMAGE_TYPE

cv2.setNumThreads(1)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

Pixels = NDArray[np.uint8]

MAX_PIXELS = 200_000_000
MAX_ASPECT = 8  # a reduced picture's long side is at most this many times the short side asked for
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF") + (
    ("AVIF",) if features.check("avif") else ()
)

_SIGNATURES = {
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}


class DecodeError(Exception):
    """A file that is no usable picture, or no usable clip.

    ``type`` is one of ``empty``, ``unknown_format``, ``too_many_pixels``, ``truncated``,
    ``unsupported_mode`` and ``corrupt``, or one of those of `infra.video`; the message says more,
    in one line.
    """

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(message)
        self.type = type_

    def __reduce__(self) -> tuple[type["DecodeError"], tuple[str, str]]:
        return DecodeError, (self.type, str(self))  # comes out of other processes


@dataclass(frozen=True)
class Decoded:
    """A decoded picture and the facts of its file.

    ``rgb`` is [h, w, 3] uint8, possibly reduced; ``width`` and ``height`` are those of the full
    picture, both after EXIF orientation. ``mode`` is Pillow's name of the stored pixels,
    ``orientation`` the EXIF value 1..8 found in the file.
    """

    rgb: Pixels
    width: int
    height: int
    format: str
    mode: str
    orientation: int


def decode(data: bytes, short_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode the picture in ``data``, upright, reduced to ``short_side`` pixels if larger.

    JPEGs are reduced by 2, 4 or 8 while decoding (scaled DCT) and the rest of the way by area;
    nothing is enlarged. A long side above ``MAX_ASPECT * short_side`` is reduced to that, so that a
    row's pixels are bounded. Raises DecodeError; more than ``max_pixels`` is refused from the
    header alone. MemoryError is let through: it is the worker's fault, not the file's.
    """
    if not data:
        raise DecodeError("empty", "the file has no bytes")
    try:
        with _pillow_limits(max_pixels), Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            loaded = _load(picture, short_side, max_pixels)
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise _explain(error, data) from error
    return loaded.upright()


def resize_crop(rgb: Pixels, height: int, width: int) -> tuple[Pixels, float]:
    """Scale ``rgb`` to cover ``height`` x ``width`` and cut the centre out of it.

    Returns the crop [height, width, 3] and the share of the source's pixels cut away, 0..1.
    Reduction is by area (each output pixel the mean of the source pixels under it), enlargement
    bicubic. The crop is cut first, to the nearest source pixel, so that cost is bounded for any
    shape.
    """
    h, w = rgb.shape[:2]
    crop_h, crop_w = h, w
    if w * height >= h * width:
        crop_w = min(w, max(1, round(h * width / height)))
    else:
        crop_h = min(h, max(1, round(w * height / width)))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    crop = rgb[top : top + crop_h, left : left + crop_w]
    return _resize(crop, height, width), 1.0 - crop_h * crop_w / (h * w)


def encode_jpeg(rgb: Pixels, quality: int = 95) -> bytes:
    """Encode [h, w, 3] uint8 as a JPEG with full-resolution chroma (4:4:4), without metadata.

    Chroma is kept whole because the tokenizer sees these pixels: halved chroma would be learnt.
    """
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def to_struct(pictures: Sequence[Pixels | None]) -> pa.StructArray:
    """Pictures as an Arrow array of `schema.IMAGE_TYPE`; None becomes null. Copies pixels once."""
    sizes = [0 if picture is None else picture.size for picture in pictures]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    # Arrow's pool keeps its pages between batches; a fresh array of this size would fault in each.
    buffer = pa.allocate_buffer(int(offsets[-1]))
    data = np.frombuffer(buffer, np.uint8) if len(buffer) else np.empty(0, np.uint8)
    for picture, start, size in zip(pictures, offsets, sizes, strict=False):
        if picture is not None:
            data[start : start + size] = picture.reshape(-1)
    rgb = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(pictures), [None, pa.py_buffer(offsets), buffer]
    )
    missing = pa.array([picture is None for picture in pictures], pa.bool_())
    heights = pa.array([0 if p is None else p.shape[0] for p in pictures], pa.int32())
    widths = pa.array([0 if p is None else p.shape[1] for p in pictures], pa.int32())
    return pa.StructArray.from_arrays([heights, widths, rgb], fields=list(IMAGE_TYPE), mask=missing)


def from_struct(column: pa.ChunkedArray | pa.StructArray) -> list[Pixels | None]:
    """Read-only [h, w, 3] views into a column of `schema.IMAGE_TYPE`, without copying; null: None.

    The views keep the column's buffers alive.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    pictures: list[Pixels | None] = []
    for chunk in chunks:
        if len(chunk) == 0:
            continue
        rgb = chunk.field("rgb")
        _, offset_buffer, data_buffer = rgb.buffers()
        offsets = np.frombuffer(offset_buffer, np.int64)[rgb.offset : rgb.offset + len(rgb) + 1]
        data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.empty(0, np.uint8)
        data.setflags(write=False)  # the same bytes may stand in other tables
        heights = chunk.field("height").to_pylist()
        widths = chunk.field("width").to_pylist()
        for i, valid in enumerate(chunk.is_valid().to_pylist()):
            pixels = data[offsets[i] : offsets[i + 1]]
            pictures.append(pixels.reshape(heights[i], widths[i], 3) if valid else None)
    return pictures


def pictures_of(batch: pa.Table) -> list[Pixels | None]:
    """The pictures of a batch's ``image`` column; None for rows that have failed or have none."""
    failed = batch.column("error").is_valid().to_pylist()
    pictures = from_struct(batch.column("image"))
    return [None if bad else picture for bad, picture in zip(failed, pictures, strict=True)]


_changing = threading.Lock()
_limits: list[int] = []  # of all decoders that run now
_changes = ExitStack()  # of the first of them, which the last undoes


@contextmanager
def _pillow_limits(max_pixels: int) -> Iterator[None]:
    with _changing:
        if not _limits:
            _changes.enter_context(warnings.catch_warnings())
            _changes.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            warnings.simplefilter("ignore")
            # Above the limit Pillow only warns, and raises above twice it: make both an error.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
        _limits.append(max_pixels)
        Image.MAX_IMAGE_PIXELS = max(_limits)
    try:
        yield
    finally:
        with _changing:
            _limits.remove(max_pixels)
            if _limits:
                Image.MAX_IMAGE_PIXELS = max(_limits)
            else:
                _changes.close()


@dataclass(frozen=True)
class _Loaded:
    """What the decoder gave: pixels not yet at their final size, nor turned."""

    pixels: Pixels
    target: tuple[int, int]  # height, width as stored
    turn: int  # the EXIF orientation still to be undone
    size: tuple[int, int]  # of the full picture, height, width as stored
    format: str
    mode: str
    orientation: int

    def upright(self) -> Decoded:
        rgb = _turn(_resize(self.pixels, *self.target), self.turn)
        height, width = self.size if self.turn < 5 else self.size[::-1]
        return Decoded(rgb, width, height, self.format, self.mode, self.orientation)


def _load(picture: Image.Image, short_side: int | None, max_pixels: int) -> _Loaded:
    width, height = picture.size
    if width * height > max_pixels:  # another thread's limit may be higher
        raise DecodeError(
            "too_many_pixels", f"{width} x {height} pixels are more than {max_pixels:,}"
        )
    mode = picture.mode
    format_ = "JPEG" if picture.format == "MPO" else str(picture.format)  # MPO: JPEG plus previews
    target_w, target_h = _reduced(width, height, short_side)
    target_short = min(target_w, target_h)
    picture.draft(None, (target_short, target_short))  # does nothing but for JPEG
    orientation = _orientation(picture)
    picture.load()
    # The TIFF plugin turns the picture itself while loading; the others leave it to us.
    turn = _orientation(picture) if format_ == "TIFF" else orientation
    rgb = _to_rgb(picture)
    factor = min(rgb.size) // target_short
    if factor > 1:  # in Pillow's memory: a large picture is not copied before it is small
        rgb = rgb.reduce(factor)
    size = (height, width)
    return _Loaded(_as_array(rgb), (target_h, target_w), turn, size, format_, mode, orientation)


def _reduced(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height after reduction, rounded up as scaled JPEG decoding rounds."""
    short, long = min(width, height), max(width, height)
    if short_side is None or (short <= short_side and long <= MAX_ASPECT * short_side):
        return width, height
    to, of = short_side, short
    if long > MAX_ASPECT * short:
        to, of = MAX_ASPECT * short_side, long
    return -(-width * to // of), -(-height * to // of)


def _resize(rgb: Pixels, height: int, width: int) -> Pixels:
    h, w = rgb.shape[:2]
    if (h, w) == (height, width):
        return np.ascontiguousarray(rgb)
    reduces = height <= h and width <= w
    method = cv2.INTER_AREA if reduces else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=method), np.uint8)


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, struct.error):
        return 1  # a broken EXIF block beside whole pixels: Pillow raises for all but JPEG
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn(rgb: Pixels, orientation: int) -> Pixels:
    """Undo the camera's EXIF orientation (CIPA DC-008, tag 274) on [h, w, 3]."""
    if orientation >= 5:  # rows and columns are swapped
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow clips 16-bit grey at 255 when it converts; the high byte is the picture.
        high = (np.asarray(picture) >> 8).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if picture.mode in ("I", "F", "LAB"):
        raise DecodeError("unsupported_mode", f"pixels of mode {picture.mode} have no defined RGB")
    if picture.has_transparency_data:
        opaque = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, (255, 255, 255))
        white.paste(opaque, mask=opaque.getchannel("A"))
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _as_array(rgb: Image.Image) -> Pixels:
    """Pillow keeps RGB in four bytes per pixel: drop the fourth in one pass instead of its two."""
    try:
        stored = pa.array(rgb)
    except ValueError:  # a large picture lies in several blocks of memory
        return np.asarray(rgb)
    padded = np.frombuffer(stored.values.buffers()[1], np.uint8)
    padded = padded.reshape(rgb.height, rgb.width, 4)
    return np.asarray(cv2.cvtColor(padded, cv2.COLOR_RGBA2RGB), np.uint8)


def _explain(error: Exception, data: bytes) -> DecodeError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return DecodeError("too_many_pixels", " ".join(str(error).split()))
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    if is_webp and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return DecodeError("truncated", "the file is shorter than its RIFF header says")
    if isinstance(error, UnidentifiedImageError):
        known = [name for magic, name in _SIGNATURES.items() if data.startswith(magic)]
        known += ["WEBP"] * is_webp
        known += ["AVIF"] * (data[4:12] in (b"ftypavif", b"ftypavis"))
        if known:
            return DecodeError("corrupt", f"{known[0]} signature, but no readable header")
        start = f"it starts with {data[:16]!r}"
        return DecodeError("unknown_format", f"not one of {', '.join(FORMATS)}: {start}")
    message = " ".join(str(error).split()) or type(error).__name__
    return DecodeError("truncated" if "truncated" in message.lower() else "corrupt", message)
