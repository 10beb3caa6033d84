"""Detectors find cuts where they were made, and nothing depends on how a video is portioned."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from infra.pixels import decode
from operators.shot_cuts import Cut, apart, scene_cuts, transnet_cuts

FPS = 24
Frames = NDArray[np.uint8]


@pytest.fixture(scope="session")
def shots(photos: Path) -> list[Frames]:
    """A slow pan of 2 seconds over each of three photographs: [48, 72, 128, 3] each."""
    found = []
    for name in ("china.jpg", "coffee.png", "rocket.jpg"):
        rgb = decode((photos / name).read_bytes(), 200, 10**8).rgb
        size = (128, 72)
        crops = [rgb[20 : 20 + 108, 2 * i : 2 * i + 160] for i in range(2 * FPS)]
        found.append(np.stack([cv2.resize(c, size, interpolation=cv2.INTER_AREA) for c in crops]))
    return [np.asarray(shot, np.uint8) for shot in found]


def portions(frames: Frames, size: int) -> Iterator[tuple[NDArray[np.float64], Frames]]:
    for start in range(0, len(frames), size):
        some = frames[start : start + size]
        yield (start + np.arange(len(some))) / FPS, some


def small(frames: Frames) -> Frames:
    resized = [cv2.resize(frame, (48, 27), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.asarray(np.stack(resized), np.uint8)


def dissolve(a: Frames, b: Frames, num: int) -> Frames:
    """``a`` into ``b`` over ``num`` frames of each."""
    share = np.linspace(0, 1, num)[:, None, None, None]
    mixed = (a[-num:] * (1 - share) + b[:num] * share).astype(np.uint8)
    return np.concatenate([a[:-num], mixed, b[num:]])


@pytest.mark.parametrize(("detector", "threshold"), [("content", 27.0), ("adaptive", 3.0)])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_cuts_are_found_at_their_frames(
    shots: list[Frames], detector: str, threshold: float, size: int
) -> None:
    film = np.concatenate(shots)
    found = scene_cuts(portions(film, size), detector, threshold, 0.6)  # type: ignore[arg-type]
    assert found.cuts == [Cut(2.0, 2.0), Cut(4.0, 4.0)]
    assert found.times.tolist() == [i / FPS for i in range(len(film))]


@pytest.mark.parametrize(("detector", "threshold"), [("content", 27.0), ("adaptive", 3.0)])
def test_one_shot_is_one(shots: list[Frames], detector: str, threshold: float) -> None:
    found = scene_cuts(portions(shots[0], 20), detector, threshold, 0.6)  # type: ignore[arg-type]
    assert found.cuts == []
    assert scene_cuts(iter(()), detector, threshold, 0.6).cuts == []  # type: ignore[arg-type]


def test_a_flash_is_no_shot(shots: list[Frames]) -> None:
    flash = np.full((2, 72, 128, 3), 255, np.uint8)
    film = np.concatenate([shots[0], shots[1][:24], flash, shots[1][24:]])
    found = scene_cuts(portions(film, 50), "content", 27.0, 0.6)
    assert len(found.cuts) == 2
    assert found.cuts[0] == Cut(2.0, 2.0)
    assert len(scene_cuts(portions(film, 50), "content", 27.0, 0.0).cuts) == 3


def test_uneven_times_are_kept(shots: list[Frames]) -> None:
    """Variable frame rate: the cut is where the frame is, to the last bit."""
    film = np.concatenate(shots[:2])
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.1, len(film)))
    found = scene_cuts([(times, film)], "content", 27.0, 0.6)
    assert found.cuts == [Cut(times[48], times[48])]


def test_a_dissolve_is_seen_by_transnet_alone(assets: Path, shots: list[Frames]) -> None:
    weights = str(assets / "weights/transnetv2_fp16.safetensors")
    film = dissolve(shots[0], shots[2], 16)
    assert scene_cuts(portions(film, 500), "content", 27.0, 0.6).cuts == []
    found = transnet_cuts(portions(small(film), 31), weights, 0.5, 0.6)
    [cut] = found.cuts
    assert 32 / FPS <= cut.end_s < cut.start_s <= 49 / FPS


def test_transnet_on_hard_cuts(assets: Path, shots: list[Frames]) -> None:
    weights = str(assets / "weights/transnetv2_fp16.safetensors")
    film = small(np.concatenate([shots[0][:20], shots[1], shots[2][:20]]))
    found = transnet_cuts(portions(film, 31), weights, 0.5, 0.6)
    assert found.cuts == [Cut(20 / FPS, 20 / FPS), Cut(68 / FPS, 68 / FPS)]
    assert len(found.times) == len(film)


def test_cuts_too_near_are_one_transition() -> None:
    cuts = [Cut(1.0, 1.2), Cut(1.5, 1.6), Cut(2.3, 2.3), Cut(2.5, 2.5), Cut(9.0, 9.1)]
    assert apart(cuts, 0.0) == cuts
    assert apart(cuts, 0.6) == [Cut(1.0, 1.6), Cut(2.3, 2.5), Cut(9.0, 9.1)]
    assert apart(cuts, 5.0) == [Cut(1.0, 2.5), Cut(9.0, 9.1)]
    assert apart([], 1.0) == []
