"""Groups of a file, read one by one."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.storage import Storage
from pipelines.grouped_rows import read_group, to_lists, to_matrix, write_groups


@pytest.mark.parametrize("bucket", [False, True])
def test_groups_are_read_alone(
    tmp_path: Path, bucket: bool, request: pytest.FixtureRequest
) -> None:
    storage = Storage(request.getfixturevalue("s3") if bucket else str(tmp_path))
    tables = {
        1: pa.table({"id": ["a", "b"], "v": to_lists(np.eye(2, dtype=np.float16))}),
        3: pa.table({"id": ["c"], "v": to_lists(np.ones((1, 2), np.float16))}),
    }
    write_groups(storage, "rows.bin", tables, 4)
    for group in range(4):
        found = read_group(storage, "rows.bin", group)
        assert found is None if group not in tables else found == tables[group]
    write_groups(storage, "none.bin", {}, 2)
    assert read_group(storage, "none.bin", 1) is None
    with pytest.raises(FileNotFoundError):
        read_group(storage, "absent.bin", 0)


def test_lists_and_matrices() -> None:
    matrix = np.arange(12, dtype=np.float16).reshape(4, 3)
    column = pa.chunked_array([to_lists(matrix)])
    np.testing.assert_array_equal(to_matrix(column), matrix)
    np.testing.assert_array_equal(to_matrix(column.slice(1, 2)), matrix[1:3])
    listed = pa.chunked_array([pa.array([[1.0, 2.0]]), pa.array([[3.0, 4.0]])])
    assert to_matrix(listed).tolist() == [[1, 2], [3, 4]]
    assert to_matrix(pa.chunked_array([], pa.list_(pa.float16()))).shape == (0, 0)
    with pytest.raises(ValueError, match="lists of 2 lengths"):
        to_matrix(pa.chunked_array([pa.array([[1.0], [3.0, 4.0]])]))
