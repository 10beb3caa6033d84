"""The candidates of a clip as a page shows them: picture, class, evidence, flow, what is kept.

Only kept frames are stored, and these are cut; so all are decoded once more, small and whole. Where
that fails, kept ones are shown as they are stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.frames import Frame
from infra.html import jpeg_uri
from infra.pixels import DecodeError, decode, encode_jpeg
from infra.video_process import VideoProcess
from operators.motion_classes import STATISTICS
from pipelines.charts import number
from pipelines.clip_pictures import frames_at, small
from pipelines.filmstrip_drawing import arrow_seconds, arrows, flow_grid

MAX_CELLS = 24
QUALITY = 80
NO_PICTURE = (160, 90)
PLAIN = frozenset("timestamp_s class evidence kept rank flow width height cropped image".split())
"""Fields of a candidate that are no statistics."""

_UNITS = {name: unit for name, unit, _ in STATISTICS}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Cell:
    """A candidate. Times are from the start of the clip; ``rank`` is from 1.

    ``size`` is the picture's (width, height), which ``arrows``, an SVG path, and ``crop`` speak of:
    x, y, width and height of what is kept. ``problem`` says why there is no picture.
    """

    time: str
    note: str
    class_: str
    kept: bool
    rank: int | None
    evidence: str
    uri: str | None
    size: tuple[int, int]
    problem: str
    arrows: str
    crop: Box | None


@dataclass(frozen=True)
class Cells:
    """Cells in time order; arrows are the motion of ``arrows_s`` seconds, None where none is."""

    shown: list[Cell]
    arrows_s: float | None


def cells(
    process: VideoProcess,
    sample: Mapping[str, Any],
    candidates: Sequence[Mapping[str, Any]],
    flow_side: int,
) -> Cells:
    """The candidates of a clip; ``sample`` is its row with ``file``, if its source is at hand.

    Of very many, some are shown, all kept ones among them. ``flow_side``: the short side of the
    pictures that flow was measured in.
    """
    chosen = _some(candidates)
    frames, problem = _decode(process, sample, chosen)
    grids = [flow_grid(one["flow"]) for one in chosen]
    seconds = arrow_seconds(grids, flow_side)
    shown = []
    for one, frame, grid in zip(chosen, frames, grids, strict=True):
        uri, size, why = _picture(one, frame)
        whole = frame is not None and frame.rgb is not None
        shown.append(
            Cell(
                time=clip_time(one, sample),
                note=_note(one),
                class_=one["class"] or "",
                kept=bool(one["kept"]),
                rank=None if one["rank"] is None else one["rank"] + 1,
                evidence=one["evidence"] or "",
                uri=uri,
                size=size,
                problem=why or problem,
                arrows="" if grid is None else arrows(grid, *size, seconds, flow_side),
                crop=_crop(one, *size) if whole and one["width"] and one["height"] else None,
            )
        )
    return Cells(shown, seconds if any(cell.arrows for cell in shown) else None)


def clip_time(candidate: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    """When a candidate is shown, from the start of its clip."""
    if candidate["timestamp_s"] is None:
        return "?"
    return f"{candidate['timestamp_s'] - (sample.get('start_s') or 0.0):.2f} s"


def _some(candidates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    kept = [n for n, one in enumerate(candidates) if one["kept"]][:MAX_CELLS]
    others = [n for n, one in enumerate(candidates) if not one["kept"]]
    room = MAX_CELLS - len(kept)
    if len(others) > room:
        others = [others[k * len(others) // room] for k in range(room)]
    return [candidates[n] for n in sorted(kept + others)]


def _decode(
    process: VideoProcess, sample: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]
) -> tuple[list[Frame | None], str]:
    """The frames of the candidates, and why there are none."""
    frames: list[Frame | None] = [None] * len(candidates)
    timed = [n for n, one in enumerate(candidates) if one["timestamp_s"] is not None]
    if sample.get("file") is None:
        error = sample.get("error")
        return frames, f"{error['stage']}:{error['type']}" if error else "its source is not here"
    if not timed:
        return frames, ""
    try:
        times_s = [candidates[n]["timestamp_s"] for n in timed]
        for n, frame in zip(timed, frames_at(process, sample["file"], times_s), strict=True):
            frames[n] = frame
    except DecodeError as error:
        return frames, error.type
    return frames, ""


def _picture(of: Mapping[str, Any], frame: Frame | None) -> tuple[str | None, tuple[int, int], str]:
    """Data URI, size, and why there is no picture."""
    problem = ""
    if frame is not None and frame.rgb is not None:
        picture = small(frame.rgb)
    else:
        problem = frame.error["type"] if frame is not None and frame.error is not None else ""
        if not of["image"]:
            return None, NO_PICTURE, problem
        try:
            picture = small(decode(of["image"]).rgb)
        except DecodeError as error:
            return None, NO_PICTURE, error.type
    return jpeg_uri(encode_jpeg(picture, QUALITY)), (picture.shape[1], picture.shape[0]), problem


def _crop(of: Mapping[str, Any], width: int, height: int) -> Box:
    """The middle of a ``width`` x ``height`` picture in the shape that the candidate is kept in."""
    ratio = of["width"] / of["height"]
    across, down = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - across) / 2, (height - down) / 2
    return round(left, 1), round(top, 1), round(across, 1), round(down, 1)


def _note(of: Mapping[str, Any]) -> str:
    """Where the frame lies in its file, and its statistics."""
    told = [] if of["timestamp_s"] is None else [f"{of['timestamp_s']:.3f} s in the file"]
    for name in of:
        if name not in PLAIN and of[name] is not None:
            told.append(f"{name} {number(of[name])} {_UNITS.get(name, '')}".rstrip())
    return "; ".join(told)
