"""Pictures that a condition holds for are drawn more often (paper, section 3.1: faces, text).

    oversample:
      - { table: workspace/scores/photos/ocr, where: "text_area > 0.05", factor: 3 }
      - { table: "labels/*.parquet", where: "num_faces >= 1", factor: 2, key: file }

The table is a finished table of a workspace or Parquet files, local or on S3; its key column holds
what the pictures are called: the sample_id in tables of documents, the file name in folders.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra import runs
from infra.config import ConfigError
from infra.storage import Storage

_WILD = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class Oversample:
    """Pictures whose row in ``table`` fits ``where`` are drawn ``factor`` times as often."""

    table: str  # WORKSPACE/scores/SOURCE/GROUP or the like, or FILES.parquet with * and ?
    where: str  # an SQL condition on its columns
    factor: float  # above 0; below 1: less often
    key: str = "sample_id"  # the column that names the picture

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise ValueError(f"factor is {self.factor}: use a number above 0")
        if not self.where.strip():
            raise ValueError("where is empty: give an SQL condition")


def weigh(names: pa.ChunkedArray, oversample: Sequence[Oversample]) -> NDArray[np.float64]:
    """Weights of the pictures called ``names``, [n]: 1 times the factors of all that hold.

    Raises ConfigError for a table that cannot be read, a missing or unfit key column, a condition
    that is not SQL over its columns, and one that no picture fits.
    """
    weights = np.ones(len(names))
    for entry in oversample:
        weights[_fitting(names, entry)] *= entry.factor
    return weights


def _fitting(names: pa.ChunkedArray, entry: Oversample) -> NDArray[np.int64]:
    """The numbers of the pictures that the condition holds for."""
    # Of all that train a tokenizer, only those who oversample need DuckDB.
    import duckdb

    from infra.catalog import connect, literal, quote

    place = f"oversample: {entry.table}"
    storage, files = _files(entry.table)
    paths = ", ".join(literal(storage.path(file)) for file in files)
    rows = f"read_parquet([{paths}], union_by_name = true)"
    pictures = pa.table({"name": names, "number": np.arange(len(names))})
    with connect(storage, views=False) as con:
        try:
            types = dict(
                con.sql(f"SELECT column_name, column_type FROM (DESCRIBE FROM {rows})").fetchall()
            )
        except duckdb.Error as error:
            raise ConfigError(f"{place} cannot be read: {_one_line(error)}") from None
        if types.get(entry.key) != "VARCHAR":
            found = f"is {types[entry.key]}, no text" if entry.key in types else "does not exist"
            raise ConfigError(
                f"{place}: the key column {entry.key} {found}: set key to the column that holds "
                f"sample_id or file name, one of {', '.join(sorted(types))}"
            )
        con.register("pictures", pictures)
        # The line's end keeps a comment in the condition from swallowing the bracket.
        fitting = f"SELECT {quote(entry.key)} FROM {rows} WHERE ({entry.where}\n)"
        try:
            selected = con.sql(f"SELECT number FROM pictures WHERE name IN ({fitting})")
            numbers = selected.to_arrow_table()["number"].to_numpy()
        except duckdb.Error as error:
            raise ConfigError(f"{place}: where `{entry.where}`: {_one_line(error)}") from None
    if not len(numbers):
        raise ConfigError(
            f"{place}: where `{entry.where}` fits no picture: check the condition, and that "
            f"{entry.key} holds what the pictures are called, such as {names[0]}"
        )
    return np.sort(numbers)


def _files(table: str) -> tuple[Storage, list[str]]:
    """The Parquet files of a table of a workspace, or those that a path or pattern names."""
    root, _, name = table.rstrip("/").rpartition("/")
    if table.endswith(".parquet"):
        while _WILD & set(root):
            root, _, above = root.rpartition("/")
            name = f"{above}/{name}"
        storage, files = Storage(root or "."), [name]
        storage.check()
    else:
        storage = Storage(root or ".")
        storage.check()
        record = runs.load_record(storage, name)
        if record is None or not record.parts:
            raise ConfigError(
                f"oversample: {table} is no finished table: give one of a workspace, such as "
                "workspace/scores/photos/ocr, or FILES.parquet"
            )
        files = [f"{name}/{part.file}" for part in record.parts]
    return storage, files


def _one_line(error: Exception) -> str:
    # What DuckDB adds below is a drawing of the place.
    return " ".join(str(error).partition("\n\nLINE")[0].split())
