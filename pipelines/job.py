"""What a run of a phase computes, and what it takes over from the version of the table before.

Rows that had not failed are taken over where their values come about as before; rows that had
failed are always computed again. A retry computes nothing else.
"""

from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from infra.runs import TableRecord
from infra.schema import REJECTIONS
from infra.storage import Storage
from pipelines.phase import Phase


@dataclass(frozen=True)
class Retry:
    """Which failed rows to try again: all, or those of an error's stage or type."""

    stage: str | None = None
    type: str | None = None

    def __str__(self) -> str:
        return f"{self.stage or '*'}:{self.type or '*'}"

    def mask(self, errors: pa.ChunkedArray) -> pa.ChunkedArray:
        """Which rows have such an error."""
        types = pc.struct_field(errors, "type")
        found = pc.and_(pc.is_valid(errors), pc.invert(pc.is_in(types, pa.array(REJECTIONS))))
        if self.stage is not None:
            found = pc.and_(found, pc.equal(pc.struct_field(errors, "stage"), self.stage))
        if self.type is not None:
            found = pc.and_(found, pc.equal(types, self.type))
        return pc.fill_null(found, False)


class Split(NamedTuple):
    """A part's rows to compute, and which rows of the version before are taken over, if any."""

    rows: pa.Table
    taken: pa.Array | None = None
    num_taken: int = 0
    tried: pa.Array | None = None  # keys of rows that had failed and are computed again


@dataclass(frozen=True)
class Job:
    """A phase as the workers see it: with its storage and, if any, the version it builds on.

    Rows of the previous version that had not failed are taken over. With ``retry``, parts in which
    nothing is computed stay the files that they are. ``again`` says that the previous version is of
    the same rows: then only what ``retry`` names is computed.
    """

    storage: Storage
    phase: Phase
    folder: str
    previous: TableRecord | None
    retry: Retry | None = None
    again: bool = False

    def part_file(self, part: int) -> str:
        return f"part-{part:05d}.parquet"

    def unit_path(self, part: int, start: int) -> str:
        # The unit size is in the name: a run resumed with another size starts its parts afresh.
        name = f"p{part:05d}-{start:09d}-n{self.phase.unit_rows}.parquet"
        return f"{self.folder}/_units/{name}"

    def split(self, part: int) -> Split:
        """What is to be computed of a part, and what is taken over."""
        rows = self.phase.input.rows(self.storage, part)
        if self.previous is None:
            return Split(rows)
        key, known = self.phase.key, self.phase.schema.names
        by_file = key not in rows.column_names  # a source's files become rows in their workers
        columns = [key, *(name for name in ("uri", "key") if by_file), "error"]
        old = self.storage.read_table(
            self.previous.path(part), [name for name in columns if name in known]
        )
        nothing = pa.chunked_array([pa.repeat(False, len(old))])
        failed = nothing
        if "error" in known:
            chosen = self.retry if self.again and self.retry else Retry()
            failed = chosen.mask(old["error"])
        if by_file:
            files = _files_of(old, rows["uri"])
            again = pc.unique(files.filter(failed))
            taken = pc.invert(pc.is_in(files, again))
            fresh = rows.filter(pc.is_in(rows["uri"], again))
        else:
            wanted = pc.is_in(old[key], _one(rows[key]))
            if self.again and "error" in rows.column_names:
                # What failed before it came here fails again.
                inherited = rows.filter(pc.is_valid(rows["error"]))[key]
                failed = pc.and_(failed, pc.invert(pc.is_in(old[key], _one(inherited))))
            taken = pc.and_(wanted, pc.invert(failed))
            fresh = rows.filter(pc.invert(pc.is_in(rows[key], _one(old[key].filter(taken)))))
            failed = pc.and_(failed, wanted)
        number = pc.sum(taken).as_py() or 0
        return Split(fresh, _one(taken), number, _one(old[key].filter(failed)))

    def stays(self, part: int, split: Split) -> bool:
        """Whether the previous version's file of this part is the new one as well."""
        if self.retry is None or self.previous is None:
            return False
        return not len(split.rows) and split.num_taken == self.previous.parts[part].num_rows


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


def _files_of(samples: pa.Table, files: pa.ChunkedArray) -> pa.ChunkedArray:
    """The source's file of each sample: its own, or the table of URIs that its key begins with."""
    table_of = pc.replace_substring_regex(samples["key"], r"(?s)#[^#]*$", "")
    return pc.if_else(pc.is_in(samples["uri"], _one(files)), samples["uri"], table_of)
