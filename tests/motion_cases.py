"""Cases of known motion for the motion classes: real photographs, moved and filmed by us.

A case is three frames of a scene: the candidate before (2 s earlier), the candidate, and its
partner 1/8 s later, with the class that a person would name. A camera looks at a photograph
(mirrored beyond its edges) and moves along a known path; objects are soft ellipses cut out of other
photographs. Each frame is drawn at twice its size, at three moments of a 1/48 s exposure, averaged,
then given a gamma, shot noise, and JPEG's losses. Everything follows from (kind, seed).

Thresholds were chosen on the half ``tune``; ``report`` is what is reported. No case and no
photograph is in both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.demo_photographs import read_photographs

SHORT_S, ACROSS_S = 0.125, 2.0
EXPOSURE_S = 1 / 48
SIDE = 256

TRUTH = {
    "still": "static",
    "still_noise_flicker": "static",
    "pan": "camera",
    "fast_pan": "camera",
    "tilt": "camera",
    "zoom_in": "camera",
    "zoom_out": "camera",
    "rotation": "camera",
    "handheld": "camera",
    "small_object": "object",
    "large_object": "object",
    "object_under_pan": "object",
    "moved_between": "object",
    "fade": "cut",
    "cut": "cut",
}
"""Every kind of case, and its class. ``fast_pan``: no part of the view of 2 s ago is still seen;
``moved_between``: an object that rests now, but was elsewhere 2 s ago; ``fade``: to black, from
black, or into another scene; ``cut``: another scene, which is still, panned, or has an object."""

KINDS = tuple(TRUTH)
HALVES = {
    "tune": (
        ("astronaut.png", "coffee.png", "flower.jpg", "gravel.png", "ihc.png", "moon.png"),
        range(10),
    ),
    "report": (
        (
            "china.jpg",
            "rocket.jpg",
            "chelsea.png",
            "camera.png",
            "motorcycle_left.png",
            "retina.jpg",
            "grass.png",
            "hubble_deep_field.jpg",
        ),
        range(200, 216),
    ),
}
"""The photographs and the seeds of each half."""

Image3 = NDArray[np.uint8]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """Frames [h, w, 3] uint8 RGB; ``truth`` is the class."""

    kind: str
    seed: int
    truth: str
    before: Image3
    now: Image3
    after: Image3


@dataclass(frozen=True)
class _Object:
    """An ellipse of a photograph; ``place(time_s)`` is its centre in pixels of the scene's view."""

    texture: Image3
    axes: tuple[float, float]
    place: Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class _Scene:
    """A photograph, a camera, objects. ``camera(time_s)`` maps the scene's view to the frame's."""

    photo: Image3
    to_photo: Matrix
    camera: Callable[[float], Matrix]
    objects: tuple[_Object, ...] = ()


def cases(half: str, kinds: tuple[str, ...] = KINDS, seeds: range | None = None) -> list[Case]:
    """All cases of a half, or of some kinds and seeds of it."""
    return [make(half, kind, seed) for kind in kinds for seed in seeds or HALVES[half][1]]


def make(half: str, kind: str, seed: int) -> Case:
    """One case, at a size that its seed chooses: square, upright or wide."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    names = list(rng.permutation(HALVES[half][0]))
    size = (SIDE, SIDE), (SIDE, 344), (344, SIDE), (SIDE, 456)
    height, width = size[int(rng.integers(4))]
    scene = _scene(kind, names, (height, width), rng)
    other = _scene("still", names[::-1], (height, width), rng)
    opaque = _opacity(kind, rng)
    noise = rng.uniform(3, 8) if kind == "still_noise_flicker" else rng.uniform(0.5, 2.5)
    flicker = rng.uniform(0.03, 0.10) if kind == "still_noise_flicker" else 0.005
    gamma, quality = rng.uniform(0.85, 1.2), int(rng.integers(75, 96))
    black = kind == "fade" and seed % 3 < 2
    frames = []
    for time_s in (-ACROSS_S, 0.0, SHORT_S):
        linear = _film(scene, time_s, (height, width))
        share = opaque(time_s)
        if share < 1:
            over = np.zeros_like(linear) if black else _film(other, time_s, (height, width))
            linear = _mixed(linear, over, share)
        linear *= 1 + flicker * rng.uniform(-1, 1)
        frames.append(_developed(linear, gamma, noise, quality, rng))
    return Case(kind, seed, TRUTH[kind], frames[0], frames[1], frames[2])


def _opacity(kind: str, rng: np.random.Generator) -> Callable[[float], float]:
    """How much of the scene is seen, by time: all, but for cuts (hard) and fades (ramps)."""
    if kind == "cut":
        when = rng.uniform(-1.9, -0.05)
        return lambda time_s: float(time_s >= when)
    if kind == "fade":
        lasts = rng.uniform(0.8, 1.8)
        done = rng.uniform(0.35, 0.75)  # at the candidate
        backwards = rng.random() < 0.5

        def ramp(time_s: float) -> float:
            share = float(np.clip(done + time_s / lasts, 0, 1))
            return 1 - share if backwards else share

        return ramp
    return lambda time_s: 1.0


def _scene(kind: str, names: list[str], size: tuple[int, int], rng: np.random.Generator) -> _Scene:
    height, width = size
    photo = _photograph(names[0])
    covers = rng.uniform(0.6, 0.85) * min(photo.shape[1] / width, photo.shape[0] / height)
    mirrored = -1.0 if rng.random() < 0.5 else 1.0
    middle = np.array([photo.shape[1] / 2, photo.shape[0] / 2]) + rng.uniform(-20, 20, 2)
    to_photo = _shift(*middle) @ np.diag([mirrored * covers, covers, 1.0])
    to_photo = to_photo @ _shift(-width / 2, -height / 2)
    if kind == "cut":
        kind = str(rng.choice(["still", "pan", "small_object", "zoom_in"]))
    camera = _camera(kind, size, rng)
    return _Scene(photo, to_photo, camera, _objects(kind, names, size, rng))


def _camera(
    kind: str, size: tuple[int, int], rng: np.random.Generator
) -> Callable[[float], Matrix]:
    height, width = size
    sign = 1.0 if rng.random() < 0.5 else -1.0

    def about_centre(scale: float, degrees: float, dx: float = 0.0, dy: float = 0.0) -> Matrix:
        angle = np.deg2rad(degrees)
        turn = np.array(
            [
                [np.cos(angle), -np.sin(angle), 0],
                [np.sin(angle), np.cos(angle), 0],
                [0, 0, 1 / scale],
            ]
        )
        back = _shift(-width / 2, -height / 2)
        return np.asarray(_shift(width / 2 + dx, height / 2 + dy) @ turn @ back)

    if kind in ("pan", "object_under_pan"):
        speed = sign * rng.uniform(12, 90)
        return lambda time_s: _shift(speed * time_s, 0.05 * speed * time_s)
    if kind == "fast_pan":
        speed = sign * rng.uniform(0.55, 0.8) * width
        return lambda time_s: _shift(speed * time_s, 0.0)
    if kind == "tilt":
        speed = sign * rng.uniform(12, 90)
        return lambda time_s: _shift(0.0, speed * time_s)
    if kind in ("zoom_in", "zoom_out"):
        rate = rng.uniform(0.06, 0.3) * (1 if kind == "zoom_in" else -1)
        return lambda time_s: about_centre(float(np.exp(rate * time_s)), 0.0)
    if kind == "rotation":
        rate = sign * rng.uniform(4, 20)
        return lambda time_s: about_centre(1.0, rate * time_s)
    if kind == "handheld":
        sway = rng.uniform(2, 7, 2)
        hertz, phase = rng.uniform(0.8, 3, 3), rng.uniform(0, 2 * np.pi, 3)

        def hand(time_s: float) -> Matrix:
            swing = np.sin(2 * np.pi * hertz * time_s + phase)
            return about_centre(1.0, 0.5 * swing[2], sway[0] * swing[0], sway[1] * swing[1])

        return hand
    return lambda time_s: np.eye(3)


def _objects(
    kind: str, names: list[str], size: tuple[int, int], rng: np.random.Generator
) -> tuple[_Object, ...]:
    height, width = size
    axes = {
        "small_object": rng.uniform(11, 20, 2),
        "large_object": rng.uniform(48, 80, 2),
        "object_under_pan": rng.uniform(20, 48, 2),
        "moved_between": rng.uniform(14, 40, 2),
    }.get(kind)
    if axes is None:
        return ()
    texture = _photograph(names[1])
    margin = np.minimum(axes * 0.8, (width * 0.45, height * 0.45))
    start = rng.uniform(margin, np.array([width, height]) - margin)
    toward = np.array([width / 2, height / 2]) - start  # across the middle, so that it stays
    angle = np.arctan2(toward[1], toward[0]) + rng.uniform(-0.6, 0.6)
    speed = rng.uniform(14, 80)
    velocity = speed * np.array([np.cos(angle), np.sin(angle)])
    if kind == "moved_between":
        jump = velocity / speed * rng.uniform(25, 110)
        return (_Object(texture, tuple(axes), lambda t: tuple(start + jump * (t < -0.5))),)
    return (_Object(texture, tuple(axes), lambda time_s: tuple(start + velocity * time_s)),)


def _film(scene: _Scene, time_s: float, size: tuple[int, int]) -> NDArray[np.float32]:
    """Linear light [h, w, 3], 0..1, over the exposure."""
    height, width = size
    total = np.zeros((height, width, 3), np.float32)
    moments = time_s + EXPOSURE_S * np.array([-0.5, 0.0, 0.5])
    for moment in moments:
        to_view = np.linalg.inv(scene.camera(moment)) @ _halved()
        drawn = _drawn(scene.photo, scene.to_photo @ to_view, size)
        for thing in scene.objects:
            x, y = thing.place(moment)
            in_view = _shift(thing.texture.shape[1] / 2, thing.texture.shape[0] / 2)
            cut_out = _drawn(thing.texture, in_view @ _shift(-x, -y) @ to_view, size)
            rows, columns = np.mgrid[0 : 2 * height, 0 : 2 * width].astype(np.float32)
            seen = to_view.astype(np.float32)
            u = seen[0, 0] * columns + seen[0, 1] * rows + seen[0, 2]
            v = seen[1, 0] * columns + seen[1, 1] * rows + seen[1, 2]
            radius = np.hypot((u - x) / thing.axes[0], (v - y) / thing.axes[1])
            soft = np.clip((1 - radius) * min(thing.axes) / 1.5 + 0.5, 0, 1)[..., None]
            drawn = soft * cut_out + (1 - soft) * drawn
        total += cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(total / len(moments), np.float32)


def _mixed(
    first: NDArray[np.float32], second: NDArray[np.float32], share: float
) -> NDArray[np.float32]:
    """As editing programs fade: on the grey levels, not on the light."""
    levels = share * first ** (1 / 2.2) + (1 - share) * second ** (1 / 2.2)
    return np.asarray(levels**2.2, np.float32)


def _drawn(photo: Image3, to_photo: Matrix, size: tuple[int, int]) -> NDArray[np.float32]:
    """The photograph in linear light at twice the size, mirrored beyond its edges."""
    drawn = cv2.warpPerspective(
        photo,
        to_photo,
        (2 * size[1], 2 * size[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(_LINEAR[drawn], np.float32)


def _developed(
    linear: NDArray[np.float32],
    gamma: float,
    noise: float,
    quality: int,
    rng: np.random.Generator,
) -> Image3:
    """8 bits as a camera and its codec leave them; ``noise`` in grey levels at mid grey."""
    light = np.clip(linear, 0, 1)
    grain = rng.standard_normal(light.shape, np.float32) * np.sqrt(0.3 + light / 0.3)
    values = 255 * light ** (gamma / 2.2) + noise * 0.7 * np.minimum(grain, 6.0)
    pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    stored = BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG", quality=quality)
    return np.asarray(Image.open(stored))


def _shift(dx: float, dy: float) -> Matrix:
    return np.array([[1.0, 0.0, dx], [0.0, 1.0, dy], [0.0, 0.0, 1.0]])


def _halved() -> Matrix:
    """From pixels of the frame drawn at twice its size to the frame's, by pixel centres."""
    return np.array([[0.5, 0.0, -0.25], [0.0, 0.5, -0.25], [0.0, 0.0, 1.0]])


_LINEAR = ((np.arange(256) / 255) ** 2.2).astype(np.float32)


@cache
def _photograph(file: str) -> Image3:
    """RGB, the long side at most 900 pixels: the view is drawn from more pixels than it has."""
    (found,) = [photo for photo in read_photographs() if photo.file == file]
    with Image.open(BytesIO(found.read())) as opened:
        rgb = opened.convert("RGB")
    rgb.thumbnail((900, 900), Image.Resampling.LANCZOS)
    return np.asarray(rgb)
