"""Clips for tests: each frame carries its number as ten black and white fields in its top."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, FIELD = 320, 192, 32


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """RGB: the number in its top, below it a ramp from left to right that moves with it."""
    rgb = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    rgb[:] = ((np.arange(WIDTH) + 3 * number) % 200)[None, :, None]
    rgb[HEIGHT // 2 :, :, 0] = 220  # red below: tells what is up
    for bit in range(WIDTH // FIELD):
        rgb[:FIELD, bit * FIELD : (bit + 1) * FIELD] = 235 if number >> bit & 1 else 16
    rows = np.arange(height) * HEIGHT // height
    return np.ascontiguousarray(rgb[rows][:, np.arange(width) * WIDTH // width])


def number_of(rgb: np.ndarray) -> int:
    """The number painted into an upright frame of any size."""
    height, width = rgb.shape[:2]
    field = width * FIELD // WIDTH
    row = rgb[height * FIELD // HEIGHT // 2]
    return sum(1 << bit for bit in range(10) if row[bit * field + field // 2].mean() > 126)


def write_clip(
    path: Path,
    times_ms: Sequence[int],
    codec: str = "libx264",
    rotation: int = 0,
    mirrored: bool = False,
    first_number: int = 0,
    aspect: tuple[int, int] = (1, 1),
    gop: int = 12,
    b_frames: int = 2,
    streams: int = 1,
    faststart: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Path:
    """A clip whose frame i is shown from ``times_ms[i]``; stream s paints 100 s more.

    ``rotation`` degrees against the clock, and then a mirror, make stored frames upright.
    """
    import av

    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        made = []
        for _ in range(streams):
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = size if rotation % 180 == 0 else size[::-1]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            stream.codec_context.gop_size = gop
            stream.codec_context.thread_count = 1
            if codec == "libx264":
                stream.codec_context.options = {"bf": str(b_frames), "preset": "veryfast"}
            if codec == "libvpx":
                stream.codec_context.options = {"deadline": "realtime", "cpu-used": "8"}
            if aspect != (1, 1):
                stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
            if rotation or mirrored:
                stream.set_display_rotation(rotation, hflip=mirrored)
            made.append(stream)
        for i, time_ms in enumerate(times_ms):
            for number, stream in enumerate(made):
                rgb = picture(first_number + i + 100 * number, *size)
                rgb = np.rot90(rgb[:, ::-1] if mirrored else rgb, -rotation // 90)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
                frame.pts = time_ms
                frame.time_base = Fraction(1, 1000)
                container.mux(stream.encode(frame))
        for stream in made:
            container.mux(stream.encode(None))
    return path
