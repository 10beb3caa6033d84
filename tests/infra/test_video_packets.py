"""What is planned from times: against brute force over random groups of pictures."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from infra.video_packets import PacketTime, Wanted, choose, stretches


def group(start: int, length: int, is_open: bool) -> list[PacketTime]:
    """A group in the order of decoding: I P B P B ..., with pictures before it if it is open."""
    pts = list(range(start, start + length))
    order = pts[:1] + [i for pair in zip(pts[2::2], pts[1::2], strict=False) for i in pair]
    order += [i for i in pts if i not in order]
    if is_open and length > 1:  # the key frame is shown second
        order[0], order[order.index(start + 1)] = start + 1, start
    return [PacketTime(i, 1, n == 0) for n, i in enumerate(order)]


GROUPS = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=6)


@given(GROUPS, st.sets(st.integers(0, 60)))
def test_all_that_is_wanted_is_decoded_with_what_it_is_made_of(
    groups: list[tuple[int, bool]], wanted: set[int]
) -> None:
    packets: list[PacketTime] = []
    starts = []
    for number, (length, is_open) in enumerate(groups):
        starts.append(len(packets))
        packets += group(len(packets), length, is_open and number > 0)
    there = {packet.pts for packet in packets}
    plan = stretches(packets, wanted)
    assert set().union(*[stretch.wanted for stretch in plan]) == wanted & there
    for stretch in plan:
        assert stretch.start in starts
        assert packets[stretch.stop - 1].pts in stretch.wanted  # nothing is decoded for nothing
        here = packets[stretch.start : stretch.stop]
        assert stretch.wanted <= {packet.pts for packet in here}
        key = packets[stretch.start].pts
        # pictures before their key frame need the group before, if there is one
        assert stretch.start == 0 or all(pts >= key for pts in stretch.wanted)
    for before, after in itertools.pairwise(plan):
        assert before.stop <= after.start
    needless = [
        start
        for start, stop in zip(starts, [*starts[1:], len(packets)], strict=True)
        if not any(packet.pts in wanted for packet in packets[start:stop])
    ]
    leading = {starts[n] for n, (_, is_open) in enumerate(groups) if is_open}
    for start in needless:
        following = [one for one in starts if one > start]
        if not following or following[0] not in leading:
            assert not any(stretch.start <= start < stretch.stop for stretch in plan)


@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=30, unique=True),
    st.lists(st.floats(-20, 600), max_size=8),
    st.floats(0.1, 90),
    st.none() | st.floats(0, 600),
)
def test_choice_is_that_of_a_search_through_all(
    shown: list[int], times: list[float], gap: float, end: float | None
) -> None:
    shown = sorted(shown)
    for time, found in zip(times, choose(shown, times, gap, end), strict=True):
        before = [pts for pts in shown if pts <= time + 0.5]
        pts = before[-1] if before else shown[0]
        later = [one for one in shown if one > pts and (end is None or one < end - 0.5)]
        partner = min(later, key=lambda one: (abs(one - pts - gap), one)) if later else None
        assert found == Wanted(pts, partner)


def test_without_frames_nothing_is_chosen() -> None:
    assert choose([], [1.0, 2.0], 0.5) == [Wanted(None, None)] * 2
    assert stretches([], {3}) == []
