"""What the sample's rows of a table add up to, group by group, and the totals that follow."""

import math
import uuid
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from infra.runs import TableRecord
from infra.schema import REJECTIONS
from infra.storage import Storage
from pipelines.drawn import Drawn, Floats
from pipelines.estimator import Total

MANY = 10_000  # degrees of freedom of what is a bound, no estimate
# Sizes of files of 4 times the rows were told within 4 to 7% (texts) or 1% (pictures).
SIZE_ERROR = 0.05


@dataclass
class Sums:
    """What the rows of a table add up to in each group of each source, by quantity."""

    drawn: list[Drawn]
    sums: dict[str, list[Floats]]
    size: "FileSize"

    def total(self, name: str) -> Total:
        found = (one.total(y) for one, y in zip(self.drawn, self.sums[name], strict=True))
        return sum(found, Total(0.0))

    def totals(self, num_parts: int) -> dict[str, Total]:
        """The fields of a Line, over all sources and in so many parts."""
        found = {name: self.total(name) for name in self.sums}
        found["bytes"] += self.size.beside(found["rows"].value, num_parts)
        beyond = 1 - 1 / self.size.ratio(found["rows"].value, num_parts)
        error = SIZE_ERROR * beyond * found["bytes"].value
        found["bytes"] += Total(0.0, (error / 1.96) ** 2, MANY if error else 0)
        return found


@dataclass(frozen=True)
class FileSize:
    """How a table's files grow: bytes(2 n rows) = 2 bytes(n rows) - what both halves have.

    Both have a footer, and texts that repeat: ``shared`` bytes at the size of the sample, and
    ``growth`` more with every doubling, as texts that are rare repeat in larger files only.
    """

    num_rows: float  # of the sample's files, on average
    shared: float
    growth: float

    @property
    def per_file(self) -> float:
        """What a file of the sample has beyond its rows' share in very large files."""
        return self.shared + 2 * self.growth

    def ratio(self, rows: float, num_parts: int) -> float:
        """How many times larger than the sample's files such files are."""
        return max(rows / max(num_parts, 1) / max(self.num_rows, 1.0), 1.0)

    def beside(self, rows: float, num_parts: int) -> Total:
        """Bytes of so many rows in so many files beyond the rows' own; sums up the doublings.

        Half of an interval is as much as the growth, which is the guess in it, amounts to.
        """
        ratio = self.ratio(rows, num_parts)
        doublings = math.log2(ratio)
        guessed = self.growth * (2 * ratio - doublings - 2) * num_parts
        value = (self.shared + self.growth * (doublings + 2)) * num_parts
        return Total(value, (guessed / 1.96) ** 2, MANY if guessed else 0)


def add_up(storage: Storage, record: TableRecord, drawn: list[Drawn]) -> Sums:
    """The sums of a table of the sample, whose rows come from these sources."""
    place = {
        id_: (number, group)
        for number, one in enumerate(drawn)
        for id_, group in one.groups.items()
    }
    sums: dict[str, list[Floats]] = defaultdict(lambda: [np.zeros(len(one.sizes)) for one in drawn])
    sizes = []
    of_rows = 0.0
    for number in range(len(record.parts)):
        path = record.path(number)
        table = storage.read_table(path)
        sizes.append(_file_size(storage, table, record.key))
        of_rows += len(storage.read(path)) - sizes[-1].per_file
        ids = table["sample_id" if "sample_id" in table.column_names else "sample_ids"].to_pylist()
        places = [place[id_ if isinstance(id_, str) else id_[0]] for id_ in ids]
        columns = _quantities(table)
        for row, (source, group) in enumerate(places):
            for name, values in columns.items():
                sums[name][source][group] += values[row]
        codes = np.array([source * 1_000 + group for source, group in places], np.int64)
        for code in np.unique(codes):
            rows = table.filter(pa.array(codes == code))
            sums["bytes"][code // 1_000][code % 1_000] += rows.nbytes
    for name in ("rows", "fine", "failed", "bytes"):
        sums[name]  # there, though the table may be empty
    # Compression makes less of them, as a whole: each group's share is that of its plain bytes.
    plain = sum(float(y.sum()) for y in sums["bytes"])
    sums["bytes"] = [y * of_rows / plain if plain else y for y in sums["bytes"]]
    count = len(sizes)
    size = FileSize(
        sum(one.num_rows for one in sizes) / count,
        sum(one.shared for one in sizes) / count,
        sum(one.growth for one in sizes) / count,
    )
    return Sums(drawn, dict(sums), size)


def _quantities(table: pa.Table) -> dict[str, list[float]]:
    """Per row: that it is there, is fine, failed; and the tokens that an endpoint counted."""
    rows = len(table)
    if "status" in table.column_names:
        status = table["status"].to_pylist()
        fine, failed = [s == "kept" for s in status], [s == "failed" for s in status]
    elif "error" in table.column_names:
        errors = table["error"].to_pylist()
        fine = [error is None for error in errors]
        failed = [error is not None and error["type"] not in REJECTIONS for error in errors]
    else:
        fine, failed = [True] * rows, [False] * rows
    found: dict[str, list[float]] = {"rows": [1.0] * rows}
    found |= {"fine": [float(one) for one in fine], "failed": [float(one) for one in failed]}
    if "prompt_hash" in table.column_names:
        for name in ("num_prompt_tokens", "num_tokens"):
            if name in table.column_names:
                found[name] = [float(count or 0) for count in table[name].to_pylist()]
    return found


def _file_size(storage: Storage, table: pa.Table, key: str) -> FileSize:
    """From the file's rows, their halves and quarters, each written as a file."""
    path = f"part-{uuid.uuid4().hex}.parquet"

    def written(first: int, step: int) -> int:
        rows = table.take(pa.array(np.arange(first, len(table), step)))
        return storage.write_part(path, rows, table.schema, key)

    whole, halves = written(0, 1), [written(first, 2) for first in range(2)]
    quarters = sum(written(first, 4) for first in range(4))
    storage.remove(path)
    shared = sum(halves) - whole
    before = (quarters - sum(halves)) / 2
    growth = min(max(shared - before, 0.0), max(whole - shared, 0) / 4)
    return FileSize(float(len(table)), float(shared), growth)
