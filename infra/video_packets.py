"""Which packets of a video must be decoded for the frames asked for, judged from times alone.

A demuxer tells times and key frames of packets without decoding any. From these it is known which
frames are shown at the times asked for, and with that which groups of pictures hold them: a group
starts with a key frame and needs nothing before it, but for pictures of an open group that are
shown before their key frame and are made of the group before.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PacketTime:
    """A packet in the order of decoding: when its frame is shown, and for how long (0: untold)."""

    pts: int
    duration: int
    is_key: bool


@dataclass(frozen=True)
class Wanted:
    """A frame asked for and its partner; None where there is no such frame."""

    pts: int | None
    partner: int | None


@dataclass(frozen=True)
class Stretch:
    """Packets decoded one after the other from a key frame; ``wanted`` is not empty.

    ``start`` and ``stop`` count in the order of decoding; packet ``start`` is a key frame, or the
    first packet of all.
    """

    start: int
    stop: int
    wanted: frozenset[int]


def choose(
    shown: Sequence[int], times: Sequence[float], gap: float | None = None, end: float | None = None
) -> list[Wanted]:
    """The frame shown at each time, and the one nearest to ``gap`` after that frame.

    ``shown`` are the sorted pts of all frames around the times, all in ticks. Before the first
    frame the first is shown. A partner is another frame, later, and before ``end``.
    """
    found = []
    for time in times:
        if not shown:
            found.append(Wanted(None, None))
            continue
        # half a tick: times were seconds on their way here
        place = max(0, bisect_right(shown, time + 0.5) - 1)
        partner = None
        if gap is not None:
            stop = len(shown) if end is None else bisect_left(shown, end - 0.5)
            goal = shown[place] + gap
            after = bisect_left(shown, goal)
            near = [i for i in (after - 1, after) if place < i < stop]
            if not near and place + 1 < stop:
                near = [place + 1]
            if near:
                partner = shown[min(near, key=lambda i: (abs(shown[i] - goal), i))]
        found.append(Wanted(shown[place], partner))
    return found


def stretches(packets: Sequence[PacketTime], wanted: set[int]) -> list[Stretch]:
    """What to decode so that the ``wanted`` pts come out, in the order of decoding.

    Each stretch ends with the last wanted packet of its group: nothing after it is needed, since a
    decoder gives out what it holds back when it is told that there is no more.
    """
    starts = [i for i, packet in enumerate(packets) if packet.is_key or i == 0]
    bounds = [*starts, len(packets)]
    found: list[Stretch] = []
    joined = len(packets)  # decode up to here: the group after is joined to the one in hand
    for number in range(len(starts) - 1, -1, -1):
        start, stop = starts[number], bounds[number + 1]
        here = [i for i in range(start, stop) if packets[i].pts in wanted]
        follows = found[-1] if found and found[-1].start == joined == stop else None
        if not here and follows is None:
            joined = -1
            continue
        pts = {packets[i].pts for i in here}
        if follows is not None:
            found.pop()
            last, pts = follows.stop, pts | follows.wanted
        else:
            last = here[-1] + 1
        found.append(Stretch(start, last, frozenset(pts)))
        is_open = any(packets[i].pts < packets[start].pts for i in here if packets[start].is_key)
        joined = start if is_open and number else -1
    return found[::-1]
