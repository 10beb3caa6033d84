"""The camera's share of flows that were made of known cameras, objects and noise."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from infra.pixels import Pixels
from operators.camera_motion import FlowField, fit, moving
from operators.flow import Flow
from tests.motion_cases import make

HEIGHT, WIDTH = 192, 256
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
X, Y = COLUMNS - (WIDTH - 1) / 2, ROWS - (HEIGHT - 1) / 2


def field(u: NDArray[np.float64], v: NDArray[np.float64]) -> FlowField:
    return np.stack([u + 0 * X, v + 0 * X], 2).astype(np.float32)


def similarity(dx: float, dy: float, zoom: float, turn: float) -> FlowField:
    return field(dx + zoom * X - turn * Y, dy + zoom * Y + turn * X)


def box(top: int, left: int, height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def shifted(rgb: Pixels, dx: int, dy: int) -> Pixels:
    return np.roll(rgb, (dy, dx), (0, 1))


@settings(max_examples=20, deadline=None)
@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-0.08, 0.08), st.floats(-0.08, 0.08))
def test_exact_similarities_are_found(dx: float, dy: float, zoom: float, turn: float) -> None:
    flow = similarity(dx, dy, zoom, turn)
    camera = fit(flow)
    assert camera.inliers == 1
    assert np.abs(camera.flow - flow).max() < 0.05
    np.testing.assert_allclose(camera.flow + camera.residual, flow, atol=1e-4)


@pytest.mark.parametrize("at", [(0, 0), (60, 100), (100, 140)])
def test_an_object_of_a_third_does_not_sway_the_camera(at: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    truth = similarity(4, -2, 0.02, 0.01)
    flow = truth + rng.normal(0, 0.1, truth.shape).astype(np.float32)
    thing = box(*at, 110, 150)
    flow[thing] += np.array([7, 5], np.float32)
    camera = fit(flow)
    assert np.abs(camera.flow - truth).max() < 0.4
    assert camera.inliers == pytest.approx(1 - thing.mean(), abs=0.03)
    assert camera.residual[thing].mean(0) == pytest.approx([7, 5], abs=0.4)


def test_noise_alone_is_a_camera_at_rest() -> None:
    flow = np.random.default_rng(0).normal(0, 0.1, (HEIGHT, WIDTH, 2)).astype(np.float32)
    camera = fit(flow)
    assert camera.model == "similarity"
    assert np.abs(camera.flow).max() < 0.08
    assert camera.inliers > 0.9


def test_a_tilted_plane_needs_eight_parameters() -> None:
    flow = field(3 + 0.03 * X + 1e-4 * X * X, 0.01 * Y + 1e-4 * X * Y)
    camera = fit(flow)
    assert camera.model == "plane"
    assert len(camera.parameters) == 8
    assert np.abs(camera.residual).max() < 0.1
    assert fit(similarity(3, 0, 0.03, 0)).model == "similarity"


def test_the_same_flow_gives_the_same_camera() -> None:
    flow = np.random.default_rng(1).normal(0, 5, (HEIGHT, WIDTH, 2)).astype(np.float32)
    one, two = fit(flow), fit(flow.copy())
    assert one.parameters == two.parameters
    assert np.array_equal(one.flow, two.flow)


@pytest.mark.parametrize("shape", [(8, 8), (8, 64), (64, 8), (1, 1)])
def test_flows_of_few_pixels(shape: tuple[int, int]) -> None:
    camera = fit(np.full((*shape, 2), 2, np.float32))
    assert camera.residual.shape == (*shape, 2)
    assert np.isfinite(camera.residual).all()


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return np.ascontiguousarray(make("tune", "still", 0).now[:HEIGHT, :WIDTH])


@pytest.fixture(scope="module")
def thing() -> Pixels:
    return np.ascontiguousarray(make("tune", "still", 1).now[:HEIGHT, :WIDTH])


Composer = Callable[[int, int], tuple[Pixels, Pixels, FlowField]]


@pytest.fixture(scope="module")
def compose(photo: Pixels, thing: Pixels) -> Composer:
    """A patch of 40 x 40 that goes (dx, 2) against a view that goes (5, 0), and its true flow."""

    def made(left: int, dx: int) -> tuple[Pixels, Pixels, FlowField]:
        before, after = box(80, left, 40, 40), box(82, left + dx, 40, 40)
        first = np.where(before[..., None], thing, photo)
        second = np.where(after[..., None], shifted(thing, dx, 2), shifted(photo, 5, 0))
        flow = np.broadcast_to(np.array([5, 0], np.float32), (HEIGHT, WIDTH, 2)).copy()
        flow[before] = (dx, 2)
        return first, second, flow

    return made


def test_what_moves_by_itself_is_measured(compose: Composer) -> None:
    first, second, flow = compose(100, -6)
    found = moving(first, second, flow, fit(flow))
    assert found.share == pytest.approx(40 * 40 / (HEIGHT * WIDTH), rel=0.25)
    assert found.length == pytest.approx(np.hypot(11, 2), rel=0.1)


def test_flow_that_the_pictures_do_not_bear_out_is_noise(photo: Pixels) -> None:
    flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    flow[box(50, 50, 40, 40)] = (6, 0)  # says the flow; nothing moves
    found = moving(photo, photo, flow, fit(flow))
    assert (found.share, found.length, found.changed) == (0, 0, 0)


def test_what_jumped_farther_than_flow_sees_has_changed(photo: Pixels, thing: Pixels) -> None:
    first = np.where(box(40, 30, 40, 40)[..., None], thing, photo)
    second = np.where(box(120, 180, 40, 40)[..., None], thing, photo)
    still = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    found = moving(first, second, still, fit(still))
    assert found.share == 0
    assert found.changed > 0.02


def test_flicker_and_noise_move_nothing(photo: Pixels) -> None:
    rng = np.random.default_rng(0)
    second = np.clip(photo * 1.06 + rng.normal(0, 6, photo.shape), 0, 255).astype(np.uint8)
    flow = rng.normal(0, 0.2, (HEIGHT, WIDTH, 2)).astype(np.float32)
    found = moving(photo, second, flow, fit(flow))
    assert (found.share, found.changed) == (0, 0)


def test_parallax_at_the_edge_is_the_camera_s(compose: Composer) -> None:
    """A nearer part of the scene goes the camera's way, faster, and reaches out of the frame."""
    at_edge = compose(WIDTH - 40, 10)
    inside = compose(100, 10)
    flow = at_edge[2]
    flow[..., 1][flow[..., 0] == 10] = 0
    assert moving(at_edge[0], at_edge[1], flow, fit(flow)).share == 0
    assert moving(inside[0], inside[1], inside[2], fit(inside[2])).share > 0.01


def test_flow_of_a_real_pair() -> None:
    case = make("tune", "rotation", 1)
    (flow,) = Flow(method="dis").flow([(case.now, case.after)])
    assert flow is not None
    camera = fit(flow)
    assert camera.inliers > 0.8
    # A turn about the centre: no shift, no zoom, and points go faster the farther out they are.
    dx, dy, zoom, turn = camera.parameters[:4]
    assert abs(turn) > 10 * max(abs(dx), abs(dy), abs(zoom))
