"""Frames of one scene, of two, and of one that is blended away."""

import cv2
import numpy as np
import pytest

from infra.pixels import Pixels
from operators.camera_motion import FlowField
from operators.scene_change import change, rematched
from tests.motion_cases import make

SIDE = 256


def still(rgb: Pixels) -> FlowField:
    return np.zeros((*rgb.shape[:2], 2), np.float32)


def square(kind: str, seed: int) -> Pixels:
    return np.ascontiguousarray(make("tune", kind, seed).now[:SIDE, :SIDE])


@pytest.fixture(scope="module")
def scene() -> Pixels:
    return square("still", 0)


@pytest.fixture(scope="module")
def other() -> Pixels:
    return square("cut", 2)


def test_a_frame_is_like_itself(scene: Pixels) -> None:
    found = change(scene, scene, still(scene))
    assert found.unlike == pytest.approx(0, abs=1e-6)
    assert found.contrast == pytest.approx(1)
    assert found.colours == 0
    assert found.detail > 0.2


def test_two_scenes_are_unlike(scene: Pixels, other: Pixels) -> None:
    for one, two in ((scene, other), (other, scene)):
        found = change(one, two, still(one))
        assert found.unlike > 0.6
        assert found.colours > 0.2


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_contrast_of_a_fade(scene: Pixels, share: float) -> None:
    faded = np.rint(scene * share).astype(np.uint8)
    found = change(scene, faded, still(scene))
    assert found.contrast == pytest.approx(share, abs=0.03)
    assert found.unlike < 0.2
    back = change(faded, scene, still(scene))
    assert back.contrast == pytest.approx(1 / share, rel=0.05)


def test_black_and_a_scene_are_unlike(scene: Pixels) -> None:
    black = np.zeros_like(scene)
    assert change(black, scene, still(scene)).unlike == pytest.approx(1, abs=0.1)
    assert change(scene, black, still(scene)).contrast is None
    nothing = change(black, black, still(black))
    assert (nothing.unlike, nothing.contrast, nothing.colours, nothing.detail) == (0, None, 0, 0)


def test_what_comes_into_a_view_leaves_the_scene_what_it_is(scene: Pixels, other: Pixels) -> None:
    covered = scene.copy()
    covered[60:160, 60:160] = other[60:160, 60:160]
    assert change(scene, covered, still(scene)).unlike < 0.4
    assert change(covered, scene, still(scene)).unlike < 0.4


def test_a_view_that_flow_explains_is_the_same(scene: Pixels) -> None:
    one, two = scene[:, 40:], scene[:, :-40]
    along = still(one) + np.array([40, 0], np.float32)
    assert change(one, two, still(one)).unlike > 0.3
    assert change(one, two, along).unlike == pytest.approx(0, abs=0.01)
    # What left the view is judged in place, as the rest would be.
    gone = 40 / one.shape[1]
    assert change(one, two, still(one), along).unlike == pytest.approx(gone, abs=0.05)


def test_points_find_a_zoom_and_a_turn(scene: Pixels) -> None:
    turn = cv2.getRotationMatrix2D((128, 128), 25, 1.4)
    turned = np.asarray(cv2.warpAffine(scene, turn, (SIDE, SIDE)), np.uint8)
    points, flow = rematched(scene, turned)
    assert points >= 20
    assert flow is not None
    rows, columns = np.mgrid[:SIDE, :SIDE]
    truth = np.stack([columns, rows, np.ones_like(rows)], 2) @ turn.T
    truth -= np.stack([columns, rows], 2)
    assert np.abs(flow - truth).max() < 3
    assert change(scene, turned, flow).unlike < 0.2


def test_points_of_two_scenes_do_not_agree(scene: Pixels, other: Pixels) -> None:
    assert rematched(scene, other)[0] < 20


@pytest.mark.parametrize("value", [0, 128])
def test_frames_without_points(scene: Pixels, value: int) -> None:
    flat = np.full_like(scene, value)
    assert rematched(flat, scene) == (0, None)
    assert rematched(scene, flat) == (0, None)
    assert rematched(flat, flat) == (0, None)
