"""Rows of tables that point into videos: a file, a span of it, a caption, and all else as metadata.

The videos themselves stay where they are; a row is a reference, however long the film.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from infra.schema import sample_id
from pipelines.source import Source
from pipelines.spans import clip_key, span_of


def video_row(
    source: Source, table: str, place: int | str, row: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of `samples` of one row of the file ``table``; ``place`` says which it is.

    A row without a video, or with a span that is none, has failed.
    """
    problem = metadata = None
    start_s = end_s = None
    video, caption = row.get(source.video_column), row.get(source.caption_column)
    caption = caption.strip() or None if isinstance(caption, str) else None
    if not isinstance(video, str) or not video:
        problem = ("no_video", f"`{source.video_column}` is {str(video)[:100]!r}, no file's name")
        video = table
    else:
        try:
            start_s, end_s = span_of(row, source.start_column, source.end_column)
        except ValueError as error:
            problem = ("bad_span", str(error))
    try:
        metadata = _metadata({k: v for k, v in row.items() if k not in source.media_columns})
        f"{video}{caption}".encode()
    except UnicodeEncodeError:
        problem, video, caption = ("bad_text", "it holds half a surrogate pair"), table, None
    except (ValueError, RecursionError):
        problem = ("bad_json", "a column is no JSON number, or deep")
    key = clip_key(f"{table}#{place}", source.video_stream, start_s, end_s)
    return {
        "sample_id": sample_id(source.name, key),
        "source": source.name,
        "key": key,
        "uri": video,
        "offset": None,
        "length": None,
        "start_s": start_s,
        "end_s": end_s,
        "media": "video",
        "caption": caption,
        "metadata": metadata,
        "error": problem and failure(problem[0], f"{table} row {place}: {problem[1]}"),
    }


def failed_row(
    source: Source, table: str, place: int | str, kind: str, message: str
) -> dict[str, Any]:
    """The row of `samples` for what cannot be read at a place of a table, or for all of it."""
    row = video_row(source, table, place, {})
    return row | {"error": failure(kind, f"{table}: {message}")}


def failure(kind: str, message: str) -> dict[str, str]:
    """The error of a row that is bad where it is listed."""
    return {"stage": "index", "type": kind, "message": message}


def _metadata(values: Mapping[str, Any]) -> str | None:
    """The other columns as JSON that any reader takes; a score that is no number is null.

    Raises ValueError (UnicodeEncodeError for half a surrogate pair) or RecursionError.
    """
    if not values:
        return None
    told = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    json.dumps(told, ensure_ascii=False, allow_nan=False, default=str).encode()
    return json.dumps(told, sort_keys=True, default=str)
