"""How many candidates of a table of frames show which class of motion, and how many are kept."""

from collections import Counter
from dataclasses import dataclass

import pyarrow.compute as pc

from infra.runs import TableRecord
from infra.storage import Storage

LEAVES = ["candidates.list.element.class", "candidates.list.element.kept"]


@dataclass(frozen=True)
class ClassCount:
    """Candidates of a class ("" where none was decided), and those of them that are kept."""

    class_: str
    candidates: int
    kept: int


def class_counts(storage: Storage, record: TableRecord) -> list[ClassCount]:
    """The classes of all candidates, the most frequent first. No picture is read.

    DuckDB reads lists of structs whole, hence Arrow, which reads the fields that it is asked for.
    """
    candidates: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for part in range(len(record.parts)):
        every = storage.read_table(record.path(part), LEAVES)["candidates"].combine_chunks()
        told = every.flatten()
        for counts, rows in ((candidates, told), (kept, told.filter(told.field("kept")))):
            for one in pc.value_counts(rows.field("class")).to_pylist():
                counts[one["values"] or ""] += one["counts"]
    order = sorted(candidates, key=lambda name: (-candidates[name], name))
    return [ClassCount(name, candidates[name], kept[name]) for name in order]
