"""Which clips a page of filmstrips shows: some of every mix of classes and of every failure."""

import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass

import pyarrow as pa

from infra.runs import TableRecord
from infra.schema import uniform
from infra.storage import Storage

MAX_PARTS = 16  # of a table that are looked at
LEAVES = ["sample_id", "candidates.list.element.class", "error"]


@dataclass(frozen=True, order=True)
class Clip:
    """A clip to show, ``part`` and ``row`` its place in the table of frames, ``u`` of its id."""

    u: float
    sample_id: str
    part: int
    row: int


def choose_clips(storage: Storage, record: TableRecord, limit: int) -> list[Clip]:
    """At most ``limit`` clips of a table of frames, of every mix in turn, by the hash of their ids.

    A mix is the classes of a clip's candidates, or its failure. The commonest mix comes first,
    failures come last. Of a table of many parts some are looked at, evenly spread, and no pictures
    are read.
    """
    found: dict[str, list[Clip]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for part in range(0, len(record.parts), max(1, -(-len(record.parts) // MAX_PARTS))):
        for mix, clips in _by_mix(storage.read_table(record.path(part), LEAVES), part).items():
            counts[mix] += len(clips)
            found[mix] = heapq.nsmallest(limit, found[mix] + clips)
    numbers = dict.fromkeys(found, 0)
    left = min(limit, sum(map(len, found.values())))
    while left:
        for mix in sorted(found, key=lambda one: (-counts[one], one)):
            if left and numbers[mix] < len(found[mix]):
                numbers[mix] += 1
                left -= 1
    order = sorted(found, key=lambda mix: (":" in mix, -counts[mix], mix))
    return [clip for mix in order for clip in found[mix][: numbers[mix]]]


def _by_mix(table: pa.Table, part: int) -> dict[str, list[Clip]]:
    """The rows by their classes in alphabetical order, or by ``<stage>:<type>``."""
    found: dict[str, list[Clip]] = defaultdict(list)
    columns = (table[name].to_pylist() for name in ("sample_id", "candidates", "error"))
    for row, (sample_id, candidates, error) in enumerate(zip(*columns, strict=True)):
        mix = " ".join(sorted({one["class"] or "" for one in candidates or ()}))
        if error is not None:
            mix = f"{error['stage']}:{error['type']}"
        found[mix].append(Clip(uniform(sample_id, 0), sample_id, part, row))
    return found
