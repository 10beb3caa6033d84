"""Statistics of pairs whose motion is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.pixels import Pixels
from operators.motion_statistics import STATISTICS, Pair, measure
from tests.motion_cases import make


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return np.ascontiguousarray(make("tune", "still", 0).now[:256, :256])


def panned(photo: Pixels, dx: int, baseline_s: float) -> Pair:
    one, two = photo[:, 30:], np.roll(photo, dx, 1)[:, 30:]
    flow = np.broadcast_to(np.array([dx, 0], np.float32), (*one.shape[:2], 2))
    return Pair(one, two, np.ascontiguousarray(flow), baseline_s)


def circular_variance(flow: NDArray[np.float32]) -> float:
    """By the book: 1 - |mean of unit vectors, weighted by length|."""
    lengths = np.hypot(flow[..., 0], flow[..., 1]).ravel()
    angles = np.arctan2(flow[..., 1], flow[..., 0]).ravel()
    return float(1 - abs((lengths * np.exp(1j * angles)).sum()) / lengths.sum())


def test_names_are_distinct_and_say_their_baseline(photo: Pixels) -> None:
    names = [name for name, *_ in STATISTICS]
    assert len(set(names)) == len(names)
    assert all(name.startswith(("short_", "across_")) for name in names)
    assert list(measure(None, None)) == names
    assert list(measure(panned(photo, 4, 0.125), panned(photo, 9, 2.0))) == names


def test_a_missing_pair_leaves_nulls(photo: Pixels) -> None:
    assert set(measure(None, None).values()) == {None}
    found = measure(panned(photo, 4, 0.125), None)
    assert all(value is None for name, value in found.items() if name.startswith("across_"))
    found = measure(None, panned(photo, 4, 2.0))
    assert all(value is None for name, value in found.items() if name.startswith("short_"))


def test_speeds_are_per_second_and_shifts_are_not(photo: Pixels) -> None:
    found = measure(panned(photo, 4, 0.16), panned(photo, 9, 1.5))
    scale = 256 / 226  # the short side is the width
    assert (found["short_s"], found["across_s"]) == (0.16, 1.5)
    assert found["short_speed"] == pytest.approx(4 / 0.16 * scale)
    assert found["short_camera_speed"] == pytest.approx(4 / 0.16 * scale, rel=0.01)
    assert found["across_shift"] == pytest.approx(9 * scale)
    assert found["across_camera_shift"] == pytest.approx(9 * scale, rel=0.01)
    assert found["short_camera_share"] == 1
    assert found["short_object_share"] == found["short_object_speed"] == 0
    assert found["across_unlike"] == pytest.approx(0, abs=0.1)
    assert found["across_points"] is None


@pytest.mark.parametrize("seed", range(3))
def test_variance_of_direction_against_the_book(photo: Pixels, seed: int) -> None:
    rng = np.random.default_rng(seed)
    flow = rng.normal(rng.uniform(-2, 2, 2), 1, (*photo.shape[:2], 2)).astype(np.float32)
    found = measure(Pair(photo, photo, flow, 0.125), None)
    assert found["short_direction_variance"] == pytest.approx(circular_variance(flow), abs=1e-5)


def test_no_flow_has_no_variance(photo: Pixels) -> None:
    flow = np.zeros((*photo.shape[:2], 2), np.float32)
    assert measure(Pair(photo, photo, flow, 0.125), None)["short_direction_variance"] == 0


def test_points_are_looked_for_where_flow_did_not_follow(photo: Pixels) -> None:
    pair = panned(photo, 60, 2.0)
    lost = Pair(pair.first, pair.second, np.zeros_like(pair.flow), 2.0)
    found = measure(None, lost)
    assert (found["across_points"] or 0) >= 20
    assert (found["across_unlike"] or 0) < 0.1


def test_values_are_plain_numbers(photo: Pixels) -> None:
    found = measure(panned(photo, 4, 0.125), panned(photo, 9, 2.0))
    assert {type(value) for value in found.values()} <= {float, type(None)}
