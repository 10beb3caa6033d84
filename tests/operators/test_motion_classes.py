"""Classes of known motion: the cases of tests/motion_cases.py, and decisions at their edges."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.video import VideoFile, read_frames
from operators.flow import Flow
from operators.motion_classes import CLASSES, STATISTICS, MotionRule, Pair, Verdict
from tests.motion_cases import ACROSS_S, SHORT_S, TRUTH, Case, cases, make

NOTHING: dict[str, float | None] = dict.fromkeys(name for name, *_ in STATISTICS)
AT_REST = NOTHING | {"short_s": 0.125, "across_s": 2.0, "short_detail_share": 0.5}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pairs_of(case: Case, flow: Flow) -> tuple[Pair, Pair]:
    short, across = flow.flow([(case.now, case.after), (case.before, case.now)])
    assert short is not None
    assert across is not None
    return Pair(case.now, case.after, short, SHORT_S), Pair(case.before, case.now, across, ACROSS_S)


def recalls(made: Sequence[Case], said: Sequence[Verdict]) -> tuple[float, dict[str, float]]:
    """Accuracy, and the share of each class that is called so."""
    right = Counter(c.truth for c, v in zip(made, said, strict=True) if v.class_ == c.truth)
    there = Counter(case.truth for case in made)
    return right.total() / there.total(), {name: right[name] / there[name] for name in CLASSES}


def test_cases_are_the_same_each_time_and_differ_by_seed() -> None:
    one, again, other = (make("tune", "pan", seed) for seed in (1, 1, 2))
    assert np.array_equal(one.now, again.now)
    assert np.array_equal(one.before, again.before)
    assert one.now.shape != other.now.shape or not np.array_equal(one.now, other.now)
    assert set(TRUTH.values()) == set(CLASSES)


@pytest.mark.slow
def test_known_motion_with_a_cheap_flow() -> None:
    """Both rules on cases of the reported half, from both pairs and from the one 2 s apart."""
    made = cases("report", seeds=range(200, 216))
    pairs = [pairs_of(case, Flow(method="dis")) for case in made]
    accuracy, by_class = recalls(made, [MotionRule().classify(*pair) for pair in pairs])
    assert accuracy >= 0.95
    assert min(by_class.values()) >= 0.85
    alone, _ = recalls(made, [MotionRule().classify(None, across) for _, across in pairs])
    paper, _ = recalls(made, [MotionRule(rule="paper").classify(*pair) for pair in pairs])
    assert alone < accuracy - 0.05
    assert paper < accuracy - 0.2


@pytest.mark.slow
def test_known_motion_with_the_default_flow() -> None:
    made = cases("report", seeds=range(205, 206))
    said = [MotionRule().classify(*pairs_of(case, Flow())) for case in made]
    accuracy, by_class = recalls(made, said)
    assert accuracy >= 0.9
    assert min(by_class.values()) >= 0.75


def test_verdicts_say_why_and_from_what() -> None:
    verdict = MotionRule().classify(*pairs_of(make("tune", "small_object", 1), Flow(method="dis")))
    assert verdict.class_ == "object"
    assert "0.125 s" in verdict.evidence
    assert list(verdict.statistics) == [name for name, *_ in STATISTICS]


def test_nothing_to_compare_with() -> None:
    for rule in (MotionRule(), MotionRule(rule="paper")):
        verdict = rule.classify(None, None)
        assert verdict.class_ == "static"
        assert set(verdict.statistics.values()) == {None}


@pytest.mark.parametrize("kind", ["pan", "small_object", "still"])
def test_the_first_candidate_has_no_pair_across(kind: str) -> None:
    short, _ = pairs_of(make("tune", kind, 1), Flow(method="dis"))
    assert MotionRule().classify(short, None).class_ == TRUTH[kind]


@pytest.mark.parametrize("kind", ["moved_between", "cut", "fade", "still"])
def test_the_last_candidate_has_no_short_pair(kind: str) -> None:
    _, across = pairs_of(make("tune", kind, 2), Flow(method="dis"))
    assert MotionRule().classify(None, across).class_ == TRUTH[kind]


def test_a_partner_of_another_scene_tells_nothing() -> None:
    """The frame is the last of its scene: the next candidate is the cut."""
    case = make("tune", "cut", 2)
    (torn,) = Flow(method="dis").flow([(case.before, case.now)])
    assert torn is not None
    said = MotionRule().classify(Pair(case.before, case.now, torn, 0.125), None)
    assert said.class_ == "static"


def test_flow_on_one_colour_is_noise() -> None:
    black = np.zeros((256, 256, 3), np.uint8)
    flow = np.full((256, 256, 2), 3, np.float32)
    assert MotionRule().classify(Pair(black, black, flow, 0.125), None).class_ == "static"


def test_a_fast_pan_is_no_cut_and_a_cut_under_a_slow_one_is() -> None:
    gone = AT_REST | {"across_unlike": 0.9, "across_points": 0.0, "across_colours": 0.4}
    fast, slow = gone | {"short_camera_speed": 200.0}, gone | {"short_camera_speed": 40.0}
    assert MotionRule().decide(fast).class_ == "camera"
    assert MotionRule().decide(slow).class_ == "cut"
    assert MotionRule().decide(fast | {"across_colours": 0.9}).class_ == "cut"
    assert MotionRule().decide(slow | {"across_points": 50.0}).class_ == "camera"


def test_exposure_is_no_fade_but_a_fade_goes_on() -> None:
    darker = AT_REST | {"across_unlike": 0.1, "across_contrast": 0.75}
    assert MotionRule().decide(darker | {"short_contrast": 1.0}).class_ == "static"
    assert MotionRule().decide(darker | {"short_contrast": 0.9}).class_ == "cut"
    assert MotionRule().decide(darker | {"across_contrast": 0.5}).class_ == "cut"


def test_the_paper_s_rule() -> None:
    rule = MotionRule(rule="paper")
    moves = AT_REST | {"short_speed": 20.0, "across_shift": 30.0, "across_colours": 0.1}
    assert rule.decide(AT_REST).class_ == "static"
    assert rule.decide(moves | {"short_direction_variance": 0.01}).class_ == "camera"
    assert rule.decide(moves | {"short_direction_variance": 0.5}).class_ == "object"
    assert rule.decide(moves | {"across_shift": 200.0}).class_ == "cut"
    assert rule.decide(AT_REST | {"across_colours": 0.9}).class_ == "cut"
    # A zoom has all directions: what the residual rule was made for.
    case = make("tune", "zoom_in", 1)
    pairs = pairs_of(case, Flow(method="dis"))
    assert rule.classify(*pairs).class_ == "object"
    assert MotionRule().classify(*pairs).class_ == "camera"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "flow"}, "rule is 'flow': choose residual or paper"),
        ({"other_scene": 1.0}, "other_scene is 1.0: choose between 0 and 1"),
        ({"direction_variance": 0.0}, "direction_variance is 0.0"),
        ({"least_speed": 0.0}, "least_speed is 0.0: choose more than 0"),
        ({"same_points": float("nan")}, "same_points is nan"),
        ({"fade_contrast": 1.0}, "fade_contrast is 1.0: choose more than 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MotionRule(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "time_s", "class_"),
    [
        ("cars_topdown_30s.mp4", 6.0, "object"),  # a car comes, and the exposure follows it
        ("cars_topdown_30s.mp4", 14.0, "static"),
        ("bbb_0_30.webm", 6.0, "camera"),  # the view sinks, near trees faster than the hills
        ("bbb_0_30.webm", 12.0, "cut"),
        ("bbb_5s.mp4", 2.0, "object"),
        ("persons_static_139s.mp4", 12.0, "static"),
        ("flower_bloom.mp4", 2.0, "object"),
    ],
)
def test_real_clips_look_as_a_person_says(
    assets: Path, name: str, time_s: float, class_: str
) -> None:
    file = VideoFile(str(assets / "videos"), name)
    before, now = read_frames(file, [time_s - 2, time_s], 256, SHORT_S, 256)
    flow = Flow()
    one, two, after = (
        flow.resize(rgb) for rgb in (before.rgb, now.rgb, now.partner) if rgb is not None
    )
    short, across = flow.flow([(two, after), (one, two)])
    assert short is not None
    assert across is not None
    gap, since = (now.partner_s or 0) - (now.timestamp_s or 0), 2.0
    said = MotionRule().classify(Pair(two, after, short, gap), Pair(one, two, across, since))
    assert said.class_ == class_, said.evidence
