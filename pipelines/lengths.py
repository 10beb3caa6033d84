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

from infra import catalog, runs
from infra.config import ConfigError, build
from infra.runs import TableRecord
from infra.storage import Storage
from packing.packs import FACTS, Facts
from packing.simulate import Lengths
from packing.strategies import Int64, Packing

COLUMNS = ("num_tokens", "num_loss", "num_pairs")
TABLES = (".parquet", ".csv")


@dataclass(frozen=True, eq=False)
class Existing:
    """Packs that are there: ``pack[i]`` is the pack of document i, or -1."""

    table: str
    pack: Int64
    packing: Packing
    lower_bound: int
    left_out: dict[str, int]
    num_codes: int


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


def read_packs(storage: Storage, name: str) -> Documents:
    """The documents of the plan ``packs/<name>``, every copy on its own, and the packs as they are.

    Raises ConfigError if plan or tokens are missing, or not of each other.
    """
    table = f"packs/{name}"
    record = runs.load_record(storage, table)
    tokens = runs.load_record(storage, f"tokens/{name}")
    if record is None or tokens is None:
        raise ConfigError(
            f"{storage.path(table if record is None else f'tokens/{name}')} is not there: name a "
            "table of packs of the workspace, or a .parquet or .csv file"
        )
    plan = catalog.literal(storage.path(record.facts["plan"]))
    with catalog.connect(storage, views=False) as con:
        rows = con.sql(
            "SELECT coalesce(pack, -1) AS pack, t.num_tokens::BIGINT AS num_tokens, "
            "t.num_loss::BIGINT AS num_loss, t.num_pairs AS num_pairs "
            f"FROM read_parquet([{plan}]) LEFT JOIN {catalog.scan(storage, tokens)} AS t "
            'USING (doc_id) ORDER BY "row"'
        ).to_arrow_table()
    if rows["num_tokens"].null_count:
        raise ConfigError(f"{table} is not of the tokens that are there: `nextscale pack` first")
    pack, *counts = (rows[column].to_numpy() for column in ("pack", *COLUMNS))
    folder = record.facts["plan"].rpartition("/")[0]
    facts = build(Facts, storage.read_json(f"{folder}/{FACTS}"), FACTS)
    existing = Existing(
        table,
        pack,
        _packing(storage, record, facts),
        record.facts["lower_bound"],
        record.facts["rejected"],
        facts.num_codes,
    )
    return Documents(storage.path(table), Lengths(*counts), existing)


def _packing(storage: Storage, record: TableRecord, facts: Facts) -> Packing:
    """How the packs were made, from the record of that run; else what the packs say of it."""
    ending = f"-{record.table.replace('/', '-')}.json"
    for name in reversed(storage.names("runs")):
        if name.endswith(ending):
            run = storage.read_json(f"runs/{name}")
            if run["fingerprint"] == record.fingerprint:
                tree = run["config"]["packing"]
                return build(Packing, {k: v for k, v in tree.items() if k != "class"})
    return Packing(facts.strategy, facts.token_cap, 1.0, seed=facts.seed)


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
