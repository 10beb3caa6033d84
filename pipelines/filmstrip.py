"""The filmstrip page: of chosen clips, which frames were looked at and which of them are kept.

Every candidate in time order, small, with its class, the evidence for it and the flow as arrows;
kept frames outlined, with the texts between them; and why a clip was rejected or has failed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.compute as pc

from infra import catalog, html
from infra.config import ConfigError
from infra.html import jpeg_uri
from infra.pixels import DecodeError, encode_jpeg
from infra.runs import TableRecord
from infra.schema import REJECTIONS
from infra.storage import Storage
from infra.video_process import VideoProcess
from pipelines.class_counts import class_counts
from pipelines.clip_choice import Clip, choose_clips
from pipelines.clip_pictures import middle_frame
from pipelines.contact_sheets import PICK_ORDER, look_up
from pipelines.decided import run_of
from pipelines.filmstrip_cells import QUALITY, Cells, cells, clip_time
from pipelines.filmstrip_drawing import FLOW_SIDE
from pipelines.recipe import Recipe
from pipelines.sources import read_media
from pipelines.stats import frames_of

TEMPLATES = Path(__file__).parent / "templates"
MAX_CLIPS = 24
MAX_EARLIER = 8  # beside them: clips that were rejected or failed before frames were looked at
EARLIER_OF_A_KIND = 2


@dataclass(frozen=True)
class Strip:
    """A clip as shown: ``fate`` is kept, rejected or failed, and ``reason`` says why.

    ``bridges`` are the texts between kept frames: from when, to when, and what. A clip without
    candidates may have a ``picture``.
    """

    key: str
    fate: str
    reason: str
    caption: str
    credit: str
    num_candidates: int
    num_kept: int
    cells: Cells
    bridges: list[tuple[str, str, str]]
    picture: str | None


def write_filmstrip(recipe: Recipe, path: str | None = None) -> str:
    """Write the page to ``path`` (default: filmstrip.html in the workspace); return where it is.

    Raises ConfigError where the dataset has no frames.
    """
    storage, dataset = recipe.storage, recipe.dataset
    record = _frames(storage, recipe)
    path = path or storage.path("filmstrip.html")
    html.check_page(path)
    with catalog.connect(storage) as con:
        strips = list(_strips(con, recipe, record))
    counts = class_counts(storage, record)
    page = html.render(
        TEMPLATES,
        "filmstrip.html",
        dataset=dataset,
        table=record.table,
        workspace=storage.path(),
        clips=record.num_rows,
        without=record.num_failed,
        classes=counts,
        candidates=sum(one.candidates for one in counts),
        kept=sum(one.kept for one in counts),
        strips=strips,
    )
    return html.write_page(path, page)


def _frames(storage: Storage, recipe: Recipe) -> TableRecord:
    """The frames at the level of the recipe's documents, else at the highest there is."""
    found = frames_of(storage, recipe.dataset)
    if not found:
        raise ConfigError(
            f"{storage.path('frames')} holds no frames of {recipe.dataset}: run `nextscale curate`"
        )
    named = [one for one in found if one.table.endswith(f"-{recipe.documents.level}")]
    return (named or found)[-1]


def _strips(con: duckdb.DuckDBPyConnection, recipe: Recipe, record: TableRecord) -> Iterator[Strip]:
    """Chosen clips with frames, then some of those that were rejected or failed before."""
    dataset, flow_side = recipe.dataset, _flow_side(recipe.storage, record)
    chosen: dict[str, Clip | None] = {
        clip.sample_id: clip for clip in choose_clips(recipe.storage, record, MAX_CLIPS)
    }
    chosen |= dict.fromkeys(_earlier(con, dataset, record))
    samples = _samples(con, recipe, list(chosen))
    fates = _fates(con, dataset, list(chosen))
    bridges = _bridges(con, dataset, list(chosen))
    with VideoProcess() as process:
        for sample_id, clip in chosen.items():
            sample = samples.get(sample_id, {"key": sample_id})
            candidates: list[dict[str, Any]] = []
            fate, reason = fates.get(sample_id, ("", ""))
            if clip is not None:
                [row] = recipe.storage.read_rows(record.path(clip.part), [clip.row]).to_pylist()
                candidates, error = row["candidates"] or [], row["error"]
                if error is not None:
                    fate = "rejected" if error["type"] in REJECTIONS else "failed"
                    reason = f"{error['stage']}:{error['type']}, {error['message']}"
            kept = [clip_time(one, sample) for one in candidates if one["kept"]]
            yield Strip(
                key=sample["key"],
                fate=fate,
                reason=reason,
                caption=sample.get("shown") or "",
                credit=", ".join(sample[n] for n in ("credit", "licence") if sample.get(n)),
                num_candidates=len(candidates),
                num_kept=len(kept),
                cells=cells(process, sample, candidates, flow_side),
                bridges=[
                    (start, stop, text)
                    for (start, stop), text in zip(
                        pairwise(kept), bridges.get(sample_id, ()), strict=False
                    )
                ],
                picture=None if candidates else _middle(process, sample),
            )


def _flow_side(storage: Storage, record: TableRecord) -> int:
    """The short side of the pictures whose flow the table tells."""
    config = (run_of(storage, record) or {}).get("config", {})
    for operator in config.get("operators", ()):
        if "flow" in operator:
            return int(operator["flow"]["short_side"])
    return FLOW_SIDE


def _middle(process: VideoProcess, sample: dict[str, Any]) -> str | None:
    """A picture of a clip without candidates; None where it has none either."""
    if sample.get("file") is None:
        return None
    try:
        return jpeg_uri(encode_jpeg(middle_frame(process, sample["file"]), QUALITY))
    except DecodeError:
        return None  # the reason that the ledger has says why


def _earlier(con: duckdb.DuckDBPyConnection, dataset: str, record: TableRecord) -> list[str]:
    """Some clips of each reason that have no row in the table of frames."""
    with_frames = "SELECT sample_id FROM frames WHERE dataset = $table"
    rows = con.execute(
        f"SELECT sample_id FROM ledger ANTI JOIN ({with_frames}) USING (sample_id) "
        "WHERE dataset = $dataset AND status <> 'kept' QUALIFY row_number() OVER "
        f"(PARTITION BY reason ORDER BY {PICK_ORDER}) <= $some "
        f"ORDER BY status DESC, reason, {PICK_ORDER} LIMIT $most",
        {
            "table": record.table.partition("/")[2],
            "dataset": dataset,
            "some": EARLIER_OF_A_KIND,
            "most": MAX_EARLIER,
        },
    ).fetchall()
    return [sample_id for (sample_id,) in rows]


def _samples(
    con: duckdb.DuckDBPyConnection, recipe: Recipe, ids: list[str]
) -> dict[str, dict[str, Any]]:
    """Rows of samples by id with where each clip lies, what is said of it and its credit."""
    rows = look_up(con, recipe.dataset, ids)
    found: dict[str, dict[str, Any]] = {}
    for source in recipe.sources:
        mine = rows.filter(pc.equal(rows["source"], source.name))
        for row in read_media(source, mine).to_pylist():
            found[row["sample_id"]] = row
    return found


def _fates(
    con: duckdb.DuckDBPyConnection, dataset: str, ids: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Status and reason of clips, as the ledger has them."""
    rows = con.execute(
        "SELECT sample_id, status, concat_ws(', ', reason, failed_message) FROM ledger "
        "WHERE dataset = ? AND sample_id IN (SELECT unnest(?::VARCHAR[]))",
        [dataset, ids],
    ).fetchall()
    return {sample_id: (status, reason) for sample_id, status, reason in rows}


def _bridges(
    con: duckdb.DuckDBPyConnection, dataset: str, ids: Sequence[str]
) -> dict[str, list[str]]:
    """The texts between the kept frames of clips, where they are written."""
    columns = con.execute(
        "SELECT column_name FROM duckdb_columns() WHERE table_name = 'captions'"
    ).fetchall()
    if ("transitions",) not in columns:
        return {}
    rows = con.execute(
        "SELECT sample_id, list_transform(transitions, lambda one: "
        "coalesce(substr(one.text, 1, 1000), one.error.type, '')) FROM captions "
        "WHERE dataset = ? AND transitions IS NOT NULL "
        "AND sample_id IN (SELECT unnest(?::VARCHAR[]))",
        [dataset, ids],
    ).fetchall()
    return dict(rows)
