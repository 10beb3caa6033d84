"""Contact sheets: small pictures of chosen samples, with caption and attribution, for a report.

Of a clip, a frame from its middle is shown; of a text or a web document, its beginning stands where
the picture would.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from infra.html import jpeg_uri
from infra.pixels import DecodeError, decode, encode_jpeg, resize_crop
from infra.schema import SAMPLES, uniform_sql
from infra.video_process import VideoProcess
from operators import web_page
from operators.text_probe import TextError, parse
from pipelines.clip_pictures import middle_frame
from pipelines.source import Source
from pipelines.sources import read_media

THUMBNAIL = 160  # pixels of the longer side
EXCERPT = 300  # characters of a text
LOAD_ROWS = 8  # originals in memory at a time
CREDIT_KEYS = ("attribution", "credit", "author", "photographer", "artist")
LICENCE_KEYS = ("licence", "license")

PICK_ORDER = f"{uniform_sql('sample_id', 0)}, sample_id"
"""ORDER BY for a choice that depends on the ids alone."""


@dataclass(frozen=True)
class Choice:
    """A sample to show, and a word on why (a score)."""

    sample_id: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A sample as shown: ``uri`` is its thumbnail, ``excerpt`` the beginning of its text.

    Where there is neither, ``problem`` says why.
    """

    key: str
    note: str
    caption: str
    credit: str
    uri: str | None
    problem: str | None
    excerpt: str | None = None


def pictures(
    con: duckdb.DuckDBPyConnection,
    sources: Sequence[Source],
    dataset: str,
    choices: Sequence[Choice],
) -> list[Picture]:
    """The chosen samples in their order; ``con`` has the catalog's views."""
    rows = look_up(con, dataset, [choice.sample_id for choice in choices])
    found: dict[str, dict[str, Any]] = {}
    for source in sources:
        mine = rows.filter(pc.equal(rows["source"], source.name))
        for row in _load(source, mine):
            found[row["sample_id"]] = row
    shown = []
    for choice in choices:
        if choice.sample_id in found:
            shown.append(_picture(choice, found[choice.sample_id]))
        else:
            problem = "its source is not in this recipe"
            shown.append(Picture(choice.sample_id, choice.note, "", "", None, problem))
    return shown


def _picture(choice: Choice, row: dict[str, Any]) -> Picture:
    credit = ", ".join(part for part in (row["credit"], row["licence"]) if part)
    return Picture(
        key=row["key"],
        note=choice.note,
        caption=row["shown"] or "",
        credit=credit,
        uri=row["thumbnail"],
        problem=row["problem"],
        excerpt=row["excerpt"],
    )


def look_up(con: duckdb.DuckDBPyConnection, dataset: str, ids: list[str]) -> pa.Table:
    """Rows of samples with what is ``shown`` of their captions, ``credit`` and ``licence``.

    These are cut: what people wrote may be of any length.
    """
    views = {name for (name,) in con.execute("SELECT view_name FROM duckdb_views()").fetchall()}
    made, join = "NULL", ""
    if "captions" in views:
        made = "c.text"
        join = "LEFT JOIN captions AS c ON c.sample_id = s.sample_id AND c.dataset = $dataset"

    def said(keys: Sequence[str]) -> str:
        texts = ", ".join(f"facts ->> '$.{key}'" for key in keys)
        return f"substr(coalesce({texts}), 1, 500)"

    plain = ", ".join(f's."{n}"' for n in SAMPLES.names if n not in ("caption", "metadata"))
    sql = (
        f"SELECT * EXCLUDE (facts), {said(CREDIT_KEYS)} AS credit, "
        f"{said(LICENCE_KEYS)} AS licence FROM (SELECT {plain}, "
        f"substr(coalesce({made}, s.caption), 1, 1000) AS shown, "
        f"try_cast(s.metadata AS JSON) AS facts FROM samples AS s {join} "
        "WHERE s.sample_id IN (SELECT unnest($ids::VARCHAR[])))"
    )
    parameters: dict[str, Any] = {"ids": ids}
    if join:
        parameters["dataset"] = dataset
    return con.sql(sql, params=parameters).to_arrow_table()


def _load(source: Source, rows: pa.Table) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        process = None  # of a clip's decoder, where there are clips
        for start in range(0, len(rows), LOAD_ROWS):
            loaded = read_media(source, rows.slice(start, LOAD_ROWS))
            for row in loaded.to_pylist():
                data, error = row.pop("bytes", None), row["error"]
                row |= {"thumbnail": None, "excerpt": None, "problem": None}
                try:
                    if error is not None:
                        row["problem"] = f"{error['stage']}:{error['type']}"
                    elif row["media"] == "text":
                        row["excerpt"] = excerpt(data)
                    elif row["media"] == "interleaved":
                        row["excerpt"] = first_words(data)
                    elif row["media"] == "video":
                        process = process or stack.enter_context(VideoProcess())
                        frame = middle_frame(process, row["file"])
                        row["thumbnail"] = jpeg_uri(encode_jpeg(frame, quality=80))
                    else:
                        row["thumbnail"] = jpeg_uri(thumbnail(data))
                except (DecodeError, TextError) as problem:
                    row["problem"] = problem.type
                yield row


def excerpt(data: bytes) -> str:
    """The beginning of a text, or of a chat with its roles; raises TextError."""
    told = [turn.text if turn.role is None else f"{turn.role}: {turn.text}" for turn in parse(data)]
    return _beginning(told)


def first_words(data: bytes) -> str:
    """The beginning of a web document's texts; raises TextError."""
    return _beginning([part.text for part in web_page.parse(data) if part.text])


def _beginning(texts: Sequence[str]) -> str:
    text = " ".join(part[: EXCERPT + 1].strip() for part in texts[:EXCERPT])
    return text if len(text) <= EXCERPT else text[:EXCERPT].rstrip() + "…"


def thumbnail(data: bytes) -> bytes:
    """The picture as a JPEG of at most `THUMBNAIL` pixels a side; raises DecodeError."""
    rgb = decode(data, THUMBNAIL).rgb
    height, width = rgb.shape[:2]
    scale = min(1.0, THUMBNAIL / max(height, width))
    small, _ = resize_crop(rgb, max(1, round(height * scale)), max(1, round(width * scale)))
    return encode_jpeg(small, quality=80)
