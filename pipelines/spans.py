"""Spans of videos: as seconds read from tables, and as the end of a sample's key.

A table says ``12.5``, ``"12.5"``, ``"0:12.5"`` or ``"0:00:12.500"``; columns that hold both ends,
as those of Koala-36M and Panda-70M do, say ``[12.5, 18]`` or ``"['0:00:12.500', '0:00:18.000']"``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_CLOCK = re.compile(r"(?:(?:(\d+):)?([0-5]?\d):(?=[0-5]?\d(?:\.|$)))?(\d+(?:\.\d*)?|\.\d+)")
_ENDLESS_S = 1e9  # thirty years: no video, and a JSON number of any length is above it
_PAIR = re.compile(r"[\[(]([^,]*),([^,]*)[\])]")


def seconds(value: Any) -> float | None:
    """A time in seconds; None and empty text are none. Raises ValueError for what is no time."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        found = _CLOCK.fullmatch(value.strip())
        if found is None:
            raise ValueError(f"{value[:100]!r} is no time: write seconds or H:MM:SS.mmm")
        hours, minutes, rest = (float(part or 0) for part in found.groups())
        found_s = hours * 3600 + minutes * 60 + rest
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{str(value)[:100]!r} is {type(value).__name__}, no time")
    else:
        found_s = float(value) if abs(value) < _ENDLESS_S else math.inf
    if not 0 <= found_s < _ENDLESS_S:
        raise ValueError(f"{str(value)[:100]} is no time: seconds from the start of the video")
    return found_s


def span_of(
    row: Mapping[str, Any], start_column: str, end_column: str
) -> tuple[float | None, float | None]:
    """(start, end) in seconds of a table's row, each None where the row does not say it.

    Columns that are one hold both ends. Raises ValueError where they are no span of a video.
    """
    start, end = row.get(start_column), row.get(end_column)
    if start_column == end_column and start not in (None, ""):
        start, end = _both(start)
    start_s, end_s = seconds(start), seconds(end)
    if end_s is not None and end_s <= (start_s or 0.0):
        raise ValueError(f"the span ends at {end_s:g} s, where it starts at {start_s or 0:g} s")
    return start_s, end_s


def _both(value: Any) -> tuple[Any, Any]:
    if isinstance(value, str):
        found = _PAIR.fullmatch(value.strip())
        if found is None:
            raise ValueError(f"{value[:100]!r} is no span: write [start, end]")
        first, last = (part.strip().strip("'\"") for part in found.groups())
        return first, last
    if isinstance(value, bytes) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{str(value)[:100]!r} is no span: write [start, end]")
    return value[0], value[1]


def fragment(stream: int, start_s: float | None, end_s: float | None) -> str:
    """Which part of a video: ``track=1&t=12.000,18.500``, empty for all of the first stream.

    As a W3C media fragment; milliseconds, so that the same span gives the same text everywhere.
    """
    parts = [f"track={stream}"] if stream else []
    if start_s is not None or end_s is not None:
        end = "" if end_s is None else f",{end_s:.3f}"
        parts.append(f"t={start_s or 0.0:.3f}{end}")
    return "&".join(parts)


def clip_key(
    key: str, stream: int = 0, start_s: float | None = None, end_s: float | None = None
) -> str:
    """The key of a clip of the file, or of the table's row, with this key."""
    which = fragment(stream, start_s, end_s)
    # One `#` only: what stands before the last one is the source's file (see `job.Job.split`).
    return f"{key}{'&' if '#' in key else '#'}{which}" if which else key
