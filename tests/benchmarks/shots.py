"""Which transitions the shot detectors see, and how fast.

    python tests/benchmarks/shots.py FOLDER_OF_PHOTOGRAPHS [TRANSNET_WEIGHTS] [CLIP ...]

Films of known transitions, made of photographs with seeds: slow pans of 3 seconds that follow each
other by a hard cut, a dissolve, or a fade through black; shake, a flash and a fast pan, which are
none. A transition is found if a cut lies within 0.2 s of it. Then the cuts of real clips, with the
time of decoding and of the detector per frame.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from infra.pixels import DecodeError, decode
from infra.video import VideoFile, small_frames
from operators.shot_cuts import Detected, scene_cuts, transnet_cuts

FPS = 24
SHOT = 3 * FPS
NUM_FILMS = 6  # per kind
SIZES = {"content": (128, 72), "adaptive": (128, 72), "transnetv2": (48, 27)}
THRESHOLDS = {"content": 27.0, "adaptive": 3.0, "transnetv2": 0.5}
TRANSITIONS = {"cut": 0, "dissolve 8": 8, "dissolve 24": 24, "fade 12": 12, "fade 36": 36}
CONTINUOUS = ("slow pan", "fast pan", "shake", "flash")
Frames = NDArray[np.uint8]


def load(folder: Path) -> list[Frames]:
    """Photographs, their short side 288 pixels."""
    found = []
    for path in sorted(folder.iterdir()):
        try:
            rgb = decode(path.read_bytes(), 288, 10**8).rgb
        except DecodeError:
            continue
        found.append(cv2.resize(rgb, (512, 288), interpolation=cv2.INTER_AREA))
    return [np.asarray(rgb, np.uint8) for rgb in found]


def shot(rgb: Frames, motion: str, draw: np.random.Generator) -> Frames:
    """A camera of 256 x 144 pixels over a photograph: [72, 72, 128, 3]."""
    angle = draw.uniform(0, 2 * np.pi)
    speed = {"fast pan": 3.5, "slow pan": 0.5}.get(motion, 0.0)  # pixels per frame of 256
    path = np.outer(np.arange(SHOT) - SHOT / 2, speed * np.array([np.cos(angle), np.sin(angle)]))
    if motion == "shake":
        path = np.cumsum(draw.normal(0, 2, (SHOT, 2)), axis=0)
    frames = []
    for x, y in np.clip(path + np.array([128, 72]), 0, (256, 144)):
        crop = cv2.getRectSubPix(rgb, (256, 144), (x + 128, y + 72))
        frames.append(cv2.resize(crop, (128, 72), interpolation=cv2.INTER_AREA))
    film = np.stack(frames) + draw.normal(0, 2, (SHOT, 72, 128, 3))  # grain
    if motion == "flash":
        film[SHOT // 2 : SHOT // 2 + 2] = film[SHOT // 2] * 0.2 + 200
    return np.asarray(np.clip(film, 0, 255), np.uint8)


def joined(a: Frames, b: Frames, kind: str) -> tuple[Frames, float, float]:
    """Two shots one after the other; where the transition starts and ends, in seconds."""
    num = TRANSITIONS[kind]
    if kind.startswith("fade"):
        half = num // 2
        out = np.linspace(1, 0, half)[:, None, None, None]
        a, b = a.copy(), b.copy()
        a[-half:] = a[-half:] * out
        b[:half] = b[:half] * out[::-1]
        return np.concatenate([a, b]), (SHOT - half) / FPS, (SHOT + half) / FPS
    share = np.linspace(0, 1, num + 2)[1:-1, None, None, None]
    mixed = (a[SHOT - num :] * (1 - share) + b[:num] * share).astype(np.uint8)
    return np.concatenate([a[: SHOT - num], mixed, b[num:]]), (SHOT - num) / FPS, SHOT / FPS


def portions(
    times: NDArray[np.float64], film: Frames
) -> Iterator[tuple[NDArray[np.float64], Frames]]:
    for start in range(0, len(film), 480):
        yield times[start : start + 480], film[start : start + 480]


def detect(detector: str, weights: str, times: NDArray[np.float64], film: Frames) -> Detected:
    if film.shape[2] != SIZES[detector][0]:
        size = SIZES[detector]
        film = np.stack([cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in film])
    if detector == "transnetv2":
        return transnet_cuts(portions(times, film), weights, THRESHOLDS[detector], 0.6)
    return scene_cuts(portions(times, film), detector, THRESHOLDS[detector], 0.6)  # type: ignore[arg-type]


def on_made_films(pictures: list[Frames], detectors: list[str], weights: str) -> None:
    print(f"{'films of known transitions':<30}" + "".join(f"{name:>14}" for name in detectors))
    for kind in (*TRANSITIONS, *CONTINUOUS):
        draw = np.random.default_rng(7)
        found = dict.fromkeys(detectors, 0)
        for _ in range(NUM_FILMS):
            one, two = draw.choice(len(pictures), 2, replace=False)
            if kind in TRANSITIONS:
                a, b = (shot(pictures[i], "slow pan", draw) for i in (one, two))
                film, start, end = joined(a, b, kind)
            else:
                film, start, end = shot(pictures[one], kind, draw), 0.0, np.inf
            times = np.arange(len(film)) / FPS
            for name in detectors:
                cuts = detect(name, weights, times, film).cuts
                found[name] += any(c.end_s > start - 0.2 and c.start_s < end + 0.2 for c in cuts)
        what = "found" if kind in TRANSITIONS else "with false cuts"
        rest = "".join(f"{found[name]:>10}/{NUM_FILMS:<3}" for name in detectors)
        print(f"{kind + ': ' + what:<30}{rest}")


def on_real_clips(clips: list[Path], detectors: list[str], weights: str) -> None:
    for path in clips:
        file = VideoFile(str(path.parent.resolve()), path.name)
        for name in detectors:
            before = time.perf_counter()
            times, film = small_frames(file, None, 70.0, *SIZES[name])
            decoded = time.perf_counter()
            cuts = detect(name, weights, times, film).cuts
            done = time.perf_counter()
            print(
                f"{path.name:<28}{name:<12}{len(film):>6} frames {len(cuts):>3} cuts  decode "
                f"{(decoded - before) / len(film) * 1e3:5.2f} ms, detect "
                f"{(done - decoded) / len(film) * 1e3:6.2f} ms a frame"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, weights, *clips = (*sys.argv[1:], "") if len(sys.argv) == 2 else sys.argv[1:]
    detectors = ["content", "adaptive", *(["transnetv2"] if weights else [])]
    on_made_films(load(Path(folder)), detectors, weights)
    on_real_clips([Path(clip) for clip in clips], detectors, weights)
