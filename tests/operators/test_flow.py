"""Flow of photographs moved by known amounts, and settings that cannot be."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from infra.pixels import Pixels, decode
from operators.flow import Flow, FlowField

SMALL = Flow(short_side=128)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photo(photos: Path) -> Pixels:
    return decode((photos / "china.jpg").read_bytes(), 400).rgb


def moved(rgb: Pixels, dx: int, dy: int, height: int, width: int) -> tuple[Pixels, Pixels]:
    """Two windows of a photograph; its points go by (dx, dy) from the first to the second."""
    top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
    first = rgb[top : top + height, left : left + width]
    second = rgb[top - dy : top - dy + height, left - dx : left - dx + width]
    return np.ascontiguousarray(first), np.ascontiguousarray(second)


def error(flow: FlowField | None, dx: float, dy: float) -> float:
    """Mean end-point error in pixels, without the border, which may have gone out of sight."""
    assert flow is not None
    inner = flow[16:-16, 16:-16]
    return float(np.hypot(inner[..., 0] - dx, inner[..., 1] - dy).mean())


def test_raft_finds_known_shifts(photo: Pixels) -> None:
    shifts = [(0, 0), (2, 1), (7, -4), (-16, 12)]
    flows = Flow().flow([moved(photo, dx, dy, 256, 320) for dx, dy in shifts])
    for flow, (dx, dy) in zip(flows, shifts, strict=True):
        assert flow is not None
        assert flow.shape == (256, 320, 2)
        assert flow.dtype == np.float32
        assert error(flow, dx, dy) < 0.25, (dx, dy)


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_the_cheap_ones_find_a_small_shift(photo: Pixels, method: str) -> None:
    cheap = Flow(method=method)  # type: ignore[arg-type]
    for dx, dy in ((0, 0), (2, 1), (-2, 2)):
        (flow,) = cheap.flow([moved(photo, dx, dy, 256, 320)])
        assert flow is not None
        # The median: in a flat sky they find nothing.
        assert np.median(np.hypot(flow[..., 0] - dx, flow[..., 1] - dy)) < 0.1


def test_large_weights_by_path(photo: Pixels, assets: Path) -> None:
    path = assets / "weights/raft_large_sintel_tv_fp16.safetensors"
    large = Flow(method="raft_large", weights=str(path), short_side=128)
    pair = moved(photo, 7, -4, 128, 160)
    (flow,), (by_small,) = large.flow([pair]), SMALL.flow([pair])
    assert error(flow, 7, -4) < min(0.1, error(by_small, 7, -4))


def test_a_pair_does_not_depend_on_its_neighbours(photo: Pixels) -> None:
    flow = Flow(short_side=128, batch_pairs=3)
    wide = [moved(photo, dx, 3, 128, 160) for dx in range(5)]
    tall = [moved(photo, dx, 3, 168, 128) for dx in range(2)]
    mixed = [wide[0], None, tall[0], *wide[1:], tall[1], None]
    together = flow.flow(mixed)
    assert [field is None for field in together] == [pair is None for pair in mixed]
    for pair, field in zip(mixed, together, strict=True):
        (alone,) = flow.flow([pair])
        assert alone is None or np.array_equal(alone, field)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_the_cheap_ones_remember_nothing(photo: Pixels, method: str) -> None:
    cheap = Flow(method=method, short_side=128)  # type: ignore[arg-type]
    pairs = [moved(photo, dx, 3, 128, 160) for dx in range(4)]
    together = cheap.flow([*pairs, *pairs[::-1]])
    for pair, first, second in zip(pairs, together, together[::-1], strict=False):
        (alone,) = cheap.flow([pair])
        assert np.array_equal(alone, first)  # type: ignore[arg-type]
        assert np.array_equal(first, second)  # type: ignore[arg-type]


def test_nothing_gives_nothing() -> None:
    assert Flow().flow([]) == []
    assert Flow().flow([None, None]) == [None, None]


@pytest.mark.parametrize(
    ("given", "working"),
    [
        ((1080, 1920), (256, 456)),
        ((1920, 1080), (456, 256)),
        ((256, 256), (256, 256)),
        ((90, 100), (256, 288)),
        ((100, 101), (256, 256)),
        ((1, 1), (256, 256)),
        ((100, 1000), (256, 1024)),  # longer than 4:1: squeezed
    ],
)
def test_working_sizes(given: tuple[int, int], working: tuple[int, int]) -> None:
    flow = Flow()
    assert flow.working_size(*given) == working
    assert flow.working_size(*working) == working
    rgb = np.zeros((*given, 3), np.uint8)
    assert flow.resize(rgb).shape == (*working, 3)


def test_a_picture_of_the_size_is_left_alone(photo: Pixels) -> None:
    rgb, _ = moved(photo, 0, 0, 256, 320)
    assert Flow().resize(rgb) is rgb


def test_frames_of_two_sizes_do_not_seem_to_move(photo: Pixels) -> None:
    """A partner is decoded smaller than its frame: that alone must not look like motion."""
    large, small = (
        np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), np.uint8)
        for size in ((455, 256), (228, 128))
    )
    (flow,) = SMALL.flow([(large, small)])
    assert error(flow, 0, 0) < 0.1


def test_black_frames_hardly_move() -> None:
    """RAFT has nothing to hold on to: its flow is finite and small, not zero."""
    black = np.zeros((128, 128, 3), np.uint8)
    for method in ("raft_small", "dis", "farneback"):
        (flow,) = Flow(method=method, short_side=128).flow([(black, black)])
        assert flow is not None
        assert np.abs(flow).mean() < 0.5, method


def test_pickles_without_its_weights() -> None:
    assert len(pickle.dumps(SMALL)) < 1000
    assert pickle.loads(pickle.dumps(SMALL)) == SMALL


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "pwc"}, "method is 'pwc'"),
        ({"short_side": 250}, "short_side is 250: choose a multiple of 8"),
        ({"short_side": 64}, "short_side is 64"),
        ({"updates": 0}, "updates is 0"),
        ({"batch_pairs": 0}, "batch_pairs is 0"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"precision": "bf16"}, "precision bf16 needs an accelerator"),
        ({"method": "dis", "weights": "w"}, "method dis takes no `weights`"),
        ({"method": "raft_large"}, "method raft_large needs `weights`"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Flow(**settings)  # type: ignore[arg-type]
