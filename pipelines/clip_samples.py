"""Videos cut into clips: the shots of each, and a sample per shot.

    videos/<source>  ─► shots/<source> ─► samples/<source>

Part k is made of part k. A clip has its video's caption and metadata. A video that
cannot be read, or in which there is no clip, is one failed sample, so that nothing is lost in
silence.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from infra.runs import TableRecord
from infra.schema import ERROR, SAMPLES, sample_id
from infra.storage import Storage
from operators.shots import Shots
from pipelines.inputs import SampleInput
from pipelines.phase import Phase, Stage
from pipelines.scored import score_schema
from pipelines.sections import Pool
from pipelines.source import Source
from pipelines.spans import clip_key, fragment


def shot_phase(source: Source, videos: TableRecord, shots: Shots, pool: Pool) -> Phase:
    """The phase that writes ``shots/<source>``: where each of its videos is to be cut."""
    return Phase(
        table=f"shots/{source.name}",
        key="sample_id",
        schema=score_schema((shots,)),
        input=SampleInput(source, videos),
        num_parts=len(videos.parts),
        stages=(pool.stage(shots),),
        spec={},
        value_inputs=(videos,),
        unit_rows=pool.unit_rows,
    )


def clip_phase(source: Source, videos: TableRecord, shots: TableRecord) -> Phase:
    """The phase that writes ``samples/<source>``: a row per clip of the videos' shots."""
    return Phase(
        table=f"samples/{source.name}",
        key="sample_id",
        schema=SAMPLES,
        input=ClipInput(source, videos, shots),
        num_parts=len(videos.parts),
        stages=(Stage(operators=(), batch_rows=1024),),
        spec={"clips_of": source.name, "stream": source.video_stream},
        value_inputs=(videos, shots),
        unit_rows=4096,
        facts=dict(videos.facts),
    )


@dataclass(frozen=True)
class ClipInput:
    """Videos with their spans, turned into rows of `samples`: one per span."""

    source: Source
    videos: TableRecord
    shots: TableRecord
    columns: tuple[str, ...] = tuple(SAMPLES.names)

    @property
    def is_remote(self) -> bool:
        return False  # both tables lie in the workspace

    def rows(self, storage: Storage, part: int) -> pa.Table:
        """The videos of a part, in the order of their ids, with their ``spans``.

        Their ids are named ``video_id``: a row becomes samples that have others.
        """
        videos = storage.read_table(self.videos.path(part))
        shots = storage.read_table(self.shots.path(part), ["sample_id", "spans", "error"])
        # Both parts are sorted by the id, and hold the same.
        assert videos["sample_id"].equals(shots["sample_id"]), "shots of other videos"
        place = videos.column_names.index("error")
        videos = videos.set_column(place, ERROR.remove_metadata(), shots["error"])
        videos = videos.append_column("spans", shots["spans"])
        names = {"sample_id": "video_id"}
        return videos.rename_columns([names.get(name, name) for name in videos.column_names])

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        clips = [clip for video in rows.to_pylist() for clip in _clips(self.source, video)]
        bare = pa.schema([field.remove_metadata() for field in SAMPLES])
        return pa.Table.from_pylist(clips, schema=bare)


def _clips(source: Source, video: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples of one video: its clips, or itself where it has failed."""
    spans, id_ = video.pop("spans"), video.pop("video_id")
    if video["error"] is not None:
        return [video | {"sample_id": id_}]
    # A span of a longer video is cut into shorter ones of the same video.
    own = fragment(source.video_stream, video["start_s"], video["end_s"])
    file = video["key"][: -len(own) - 1] if own else video["key"]
    clips = []
    for span in spans:
        key = clip_key(file, source.video_stream, span["start_s"], span["end_s"])
        clips.append(video | span | {"key": key, "sample_id": sample_id(source.name, key)})
    return clips
