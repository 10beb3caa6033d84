"""A file of rows cut into groups, each of which can be read by itself with two short reads.

Unlike a Parquet file, whose footer grows with every row group and is read whole by every reader.
Layout: [groups + 1] little-endian int64 offsets, then an Arrow stream per group that has rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.storage import Storage

_OFFSET_BYTES = 8


def write_groups(
    storage: Storage, path: str, tables: Mapping[int, pa.Table], num_groups: int
) -> None:
    """Write the tables of groups 0 to ``num_groups`` - 1; a group without one has no rows."""
    streams = [b""] * num_groups
    for group, table in tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        streams[group] = sink.getvalue().to_pybytes()
    lengths = [_OFFSET_BYTES * (num_groups + 1), *map(len, streams)]
    offsets = np.cumsum(lengths).astype("<i8").tobytes()
    storage.write(path, b"".join([offsets, *streams]))


def read_group(storage: Storage, path: str, group: int) -> pa.Table | None:
    """The rows of a group, None where it has none; raises FileNotFoundError."""
    told = storage.read(path, _OFFSET_BYTES * group, 2 * _OFFSET_BYTES)
    start, stop = np.frombuffer(told, "<i8").tolist()
    if start == stop:
        return None
    return pa.ipc.open_stream(storage.read(path, start, stop - start)).read_all()


def to_matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of lists as [n, length]; raises ValueError unless all have one length."""
    if not len(column):
        return np.empty((0, 0), np.float32)
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(lengths) != 1:
        raise ValueError(f"lists of {len(lengths)} lengths: let one operator make them all")
    flat = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    return flat.reshape(len(column), lengths[0])


def to_lists(matrix: NDArray[Any]) -> pa.FixedSizeListArray:
    """[n, length] as an Arrow array of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
