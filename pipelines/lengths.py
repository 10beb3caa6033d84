"""Counts of documents for the simulator: from the packs of a workspace, or from any table.

A table (Parquet or CSV, local or ``s3://``) has the columns ``num_tokens`` and, if they are there,
``num_loss`` and ``num_pairs``; a document without them counts as a causal text that is predicted
from its second token on.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from infra import runs
from infra.config import ConfigError, build
from infra.runs import TableRecord
from infra.storage import Storage
from packing.cost import Coefficients
from packing.packs import FACTS, Facts
from packing.simulate import Lengths
from packing.strategies import Int64, Packing
from pipelines.decided import run_of

COLUMNS = ("num_tokens", "num_loss", "num_pairs")
TABLES = (".parquet", ".csv")


@dataclass(frozen=True, eq=False)
class Existing:
    """Packs that are there: ``pack[i]`` is the pack of document i, or -1.

    ``lower_bound`` is of the cost model that they were packed for: ``coefficients``, or None where
    the record of that run is gone.
    """

    table: str
    pack: Int64
    packing: Packing
    lower_bound: int
    left_out: dict[str, int]
    num_codes: int
    coefficients: Coefficients | None


@dataclass(frozen=True, eq=False)
class Documents:
    """What is to be simulated, where it is from, and what had to be assumed of it."""

    name: str
    lengths: Lengths
    existing: Existing | None = None
    assumed: str = ""


def read_table(path: str) -> Documents:
    """The documents of a Parquet or CSV file. Raises ConfigError for what they cannot be."""
    folder, name = os.path.split(path)
    storage = Storage(folder or ".")
    if not storage.exists(name):
        raise ConfigError(f"table {path} does not exist: check the path")
    columns: dict[str, list[Int64]] = {}
    try:
        with storage.open(name) as file:
            for batch in _batches(file, path):
                for column in batch.schema.names:
                    values = batch[column].cast(pa.int64())
                    if values.null_count:
                        raise ConfigError(f"table {path}: `{column}` has nulls: leave them out")
                    columns.setdefault(column, []).append(values.to_numpy())
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"table {path} is not readable: {' '.join(str(error).split())}") from None
    if not columns or not sum(map(len, columns["num_tokens"])):
        raise ConfigError(f"table {path} holds no row: give one per document")
    # One after another, so that only one of them is there twice.
    found = {column: np.concatenate(columns.pop(column)) for column in list(columns)}
    tokens = found["num_tokens"]
    loss = found.get("num_loss", tokens - 1)
    pairs = found.get("num_pairs", tokens * (tokens + 1) // 2)
    lengths = Lengths(tokens, loss, pairs)
    _check(path, lengths)
    missing = [column for column in COLUMNS if column not in found]
    assumed = f"no {' and '.join(missing)}: taken as causal texts, all predicted" if missing else ""
    return Documents(path, lengths, assumed=assumed)


def read_packs(storage: Storage, name: str, tokens_per_pack: int | None = None) -> Documents:
    """The documents of the plan of ``packs/<name>``, every copy on its own, and the packs as they
    are: the plan alone says it.

    ``tokens_per_pack`` is for packs of balanced cost whose run left no record: only that knows it.
    Raises ConfigError if the packs are not there, or older than their plan must be.
    """
    table = f"packs/{name}"
    record = runs.load_record(storage, table)
    if record is None:
        raise ConfigError(
            f"{storage.path(table)} is not there: name a table of packs of the workspace, or a "
            ".parquet or .csv file"
        )
    if "components" not in record.facts:
        raise ConfigError(f"the plan of {table} has no counts yet: run `nextscale pack` first")
    parts = [storage.read_table(file, ["pack", *COLUMNS]) for file in record.facts["plan"]]
    rows = pa.concat_tables(parts)
    pack = rows["pack"].fill_null(-1).to_numpy()
    counts = (rows[column].to_numpy() for column in COLUMNS)
    folder = f"{table}/{record.parts[0].folder}"
    facts = build(Facts, storage.read_json(f"{folder}/{FACTS}"), FACTS)
    packing, of = _packing(storage, record, facts, tokens_per_pack)
    existing = Existing(
        table,
        pack,
        packing,
        record.facts["lower_bound"],
        record.facts["rejected"],
        facts.num_codes,
        of,
    )
    return Documents(storage.path(table), Lengths(*counts), existing)


def _packing(
    storage: Storage, record: TableRecord, facts: Facts, tokens_per_pack: int | None
) -> tuple[Packing, Coefficients | None]:
    """How the packs were made, from the record of that run; else what the packs say of it.

    These know the token cap, which is ``tokens_per_pack`` too unless packs balance cost.
    """
    run = run_of(storage, record)
    if run is None:
        if facts.strategy == "fixed_compute" and tokens_per_pack is None:
            raise ConfigError(
                f"{storage.path('runs')} does not say how {record.table} was made: give "
                "--tokens-per-pack"
            )
        return Packing(facts.strategy, facts.token_cap, 1.0, seed=facts.seed), None
    packing, of = (
        {key: value for key, value in run["config"][part].items() if key != "class"}
        for part in ("packing", "coefficients")
    )
    return build(Packing, packing), build(Coefficients, of)


def _batches(file: object, path: str) -> Iterator[pa.RecordBatch]:
    """Record batches with those of `COLUMNS` that are there."""
    if path.endswith(".parquet"):
        parquet = pq.ParquetFile(file)
        names = _columns(path, parquet.schema_arrow.names)
        yield from parquet.iter_batches(columns=names)
        return
    reader = pa.csv.open_csv(file)
    names = _columns(path, reader.schema.names)
    for batch in reader:
        yield batch.select(names)


def _columns(path: str, names: list[str]) -> list[str]:
    if "num_tokens" not in names:
        raise ConfigError(
            f"table {path} has no column `num_tokens` but {', '.join(names[:10])}: it needs "
            f"{', '.join(COLUMNS)}, or the first alone"
        )
    for name in COLUMNS:
        if names.count(name) > 1:
            raise ConfigError(f"table {path} has {names.count(name)} columns `{name}`: keep one")
    return [name for name in COLUMNS if name in names]


def _check(path: str, of: Lengths) -> None:
    tokens, loss, pairs = of.num_tokens, of.num_loss, of.num_pairs
    fine = (tokens > 0) & (tokens < 2**31) & (loss >= 0) & (loss <= tokens)
    fine &= (pairs >= tokens) & (pairs <= tokens * np.minimum(tokens, 2**31))
    wrong = np.flatnonzero(~fine)
    if len(wrong):
        i = int(wrong[0])
        raise ConfigError(
            f"table {path}, row {i}: {tokens[i]} tokens, {loss[i]} with loss and {pairs[i]} pairs "
            "cannot be: loss is 0 to tokens, pairs are tokens to their square"
        )
