"""All that rules may ask of a dataset's samples: columns, and one SQL select over its tables."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from infra import catalog
from infra.catalog import quote
from infra.runs import TableRecord
from infra.schema import ERROR, SAMPLES, column
from infra.storage import Storage
from pipelines.inputs import DatasetPart
from pipelines.phase import Operator, is_transient

SAMPLE_COLUMNS = ("sample_id", "source", "key", "caption", "metadata")
SAMPLE_ID = column("sample_id", pa.string(), "", "the sample")


@dataclass(frozen=True)
class ScoredPart:
    """A part of a dataset and the tables whose columns rules may name.

    Score ``groups`` are aligned with the parts of the source, ``duplicates`` and ``captions`` with
    those of the dataset. Where there are captions, only captioned samples are judged.
    """

    place: DatasetPart
    groups: tuple[TableRecord, ...]
    duplicates: tuple[TableRecord, ...] = ()
    captions: TableRecord | None = None

    @property
    def tables(self) -> tuple[TableRecord, ...]:
        captions = () if self.captions is None else (self.captions,)
        return (self.place.samples, *self.groups, *self.duplicates, *captions)


def score_schema(operators: Sequence[Operator], stored: Sequence[pa.Schema] = ()) -> pa.Schema:
    """The stored columns of a score group: what its operators write, less what is stored before."""
    known = {name for schema in stored for name in schema.names}
    written = [f for operator in operators for f in operator.writes if not is_transient(f.name)]
    return pa.schema([SAMPLE_ID, *(f for f in written if f.name not in known), ERROR])


def rule_columns(*groups: pa.Schema) -> pa.Schema:
    """The typed columns that rules may name."""
    fields = [SAMPLES.field(name) for name in SAMPLE_COLUMNS]
    fields += [f for group in groups for f in group if f.name not in ("sample_id", "error")]
    return pa.schema([field.remove_metadata() for field in fields])


def duplicate_columns(kinds: Sequence[str]) -> list[pa.Field]:
    """What rules may ask of duplicates of these kinds."""
    both = [(f"{kind}_group", pa.string()) for kind in kinds]
    both += [(f"{kind}_duplicate", pa.bool_()) for kind in kinds]
    return [pa.field(*one) for one in both]


def scores_sql(storage: Storage, parts: tuple[ScoredPart, ...]) -> str:
    """Samples of these parts with the columns of all tables, and ``error`` if one failed.

    A table ``duplicates/<dataset>/<kind>`` gives ``<kind>_group`` and ``<kind>_duplicate``.
    """
    by_source = itertools.groupby(parts, key=lambda part: part.place.source.name)
    return "\nUNION ALL BY NAME\n".join(_select(storage, list(some)) for _, some in by_source)


def _select(storage: Storage, parts: list[ScoredPart]) -> str:
    """The select over parts of one source."""
    in_source = [part.place.part for part in parts]
    in_dataset = [part.place.index for part in parts]
    first = parts[0]
    columns = [f"s.{name}" for name in SAMPLE_COLUMNS]
    errors = ["s.error"]
    tables = f"{_scan(storage, first.place.samples, in_source)} AS s"
    for number, record in enumerate(first.groups):
        name = f"g{number}"
        tables += f" LEFT JOIN {_scan(storage, record, in_source)} AS {name} USING (sample_id)"
        columns.append(f"{name}.* EXCLUDE (sample_id, error)")
        errors.append(f"{name}.error")
    for number, record in enumerate(first.duplicates):
        name, kind = f"d{number}", record.table.rpartition("/")[2]
        tables += f" LEFT JOIN {_scan(storage, record, in_dataset)} AS {name} USING (sample_id)"
        columns.append(f'{name}."group" AS {quote(kind + "_group")}')
        columns.append(f"NOT {name}.representative AS {quote(kind + '_duplicate')}")
    if first.captions is not None:
        tables += f" JOIN {_scan(storage, first.captions, in_dataset)} AS c USING (sample_id)"
        columns.append("c.* EXCLUDE (sample_id, error)")
        errors.append("c.error")
    return f"SELECT {', '.join(columns)}, coalesce({', '.join(errors)}) AS error FROM {tables}"


def _scan(storage: Storage, record: TableRecord, parts: Iterable[int]) -> str:
    files = (catalog.literal(storage.path(record.path(part))) for part in parts)
    return f"read_parquet([{', '.join(files)}])"
