"""Answers about samples at rest, in the workspace: fetched before the captions that need them.

    responses/<dataset>/<source>/p<part>/…parquet    sample_id, key of the question, text, tokens, …

A cache that every node reaches, file by file: each block of answers is committed as it comes, and
the files of a part are put together when its questions are through. It is no table of the catalog.
An answer belongs to one sample and one question. Parts are those of the source: what stands before
it in the recipe does not matter.
"""

from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.schema import digest
from infra.storage import Storage
from operators.caption_answers import ANSWER
from pipelines.inputs import DatasetPart

RESPONSES = pa.schema([pa.field("sample_id", pa.string()), *ANSWER])


def answers_about(
    storage: Storage, folder: str, sample_ids: list[str]
) -> list[list[dict[str, Any]]]:
    """What is known about each of these samples of a part: rows of ANSWER."""
    answers = _answers(storage, tuple(f"{folder}/{name}" for name in storage.names(folder)))
    found: dict[str, list[dict[str, Any]]] = {id_: [] for id_ in sample_ids}
    mine = pc.is_in(answers["sample_id"], pa.array(sample_ids, pa.string()))
    for answer in answers.filter(mine).to_pylist():
        found[answer.pop("sample_id")].append(answer)
    return [found[id_] for id_ in sample_ids]


def answered(storage: Storage, folder: str) -> set[tuple[str, str]]:
    """(sample_id, key) of the questions about a part's samples that have an answer."""
    pairs: set[tuple[str, str]] = set()
    for name in storage.names(folder):
        file = storage.read_table(f"{folder}/{name}", ["sample_id", "key"])
        pairs.update(zip(file["sample_id"].to_pylist(), file["key"].to_pylist(), strict=True))
    return pairs


def keep_answers(rows: pa.Table, storage: Storage) -> pa.Table:
    """Commit a block of answers, a file for each ``folder`` in it; tells how many, and of failures.

    Rows of RESPONSES, with the folder that `folder_of` gives.
    """
    kept, messages = 0, []
    by_folder: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        if row.get("__inference_error__"):
            messages.append(str(row["__inference_error__"]))
        elif row.get("key") is not None:
            by_folder.setdefault(row["folder"], []).append(row)
            kept += 1
    for folder, answers in by_folder.items():
        table = pa.Table.from_pylist(answers, schema=RESPONSES)
        name = f"new-{digest(*table['sample_id'].to_pylist(), *table['key'].to_pylist())}.parquet"
        _write(storage, f"{folder}/{name}", table)
    message = messages[0][:300] if messages else ""
    return pa.table({"kept": [kept], "failed": [len(messages)], "message": [message]})


def merge_answers(storage: Storage, folder: str) -> None:
    """Make one file of a part's answers; the first of each stays. May be run again at any time."""
    names = storage.names(folder)
    if len(names) > 1:
        paths = [f"{folder}/{name}" for name in names]
        table = pa.concat_tables(storage.read_table(path, RESPONSES.names) for path in paths)
        name = f"all-{digest(*names)}.parquet"
        _write(storage, f"{folder}/{name}", table)
        for old in names:
            if old != name:
                storage.remove(f"{folder}/{old}")


def folder_of(dataset: str, place: DatasetPart) -> str:
    """Where the answers about the samples of a part of a source lie."""
    return f"responses/{dataset}/{place.source.name}/p{place.part:05d}"


def _write(storage: Storage, path: str, table: pa.Table) -> None:
    # "all-…" comes before "new-…": what was kept first is first.
    seen: set[tuple[str, str]] = set()
    first = []
    for pair in zip(table["sample_id"].to_pylist(), table["key"].to_pylist(), strict=True):
        first.append(pair not in seen)
        seen.add(pair)
    table = table.filter(pa.array(first, pa.bool_()))
    ids = pc.binary_join_element_wise(table["sample_id"], table["key"], "/")
    schema = pa.schema([*RESPONSES, ("id", pa.string())])
    storage.write_part(path, table.append_column("id", ids), schema, "id")


@lru_cache(maxsize=1)
def _answers(storage: Storage, files: tuple[str, ...]) -> pa.Table:
    """The answers in these files, kept for the next micro-batch of the same part."""
    tables = [RESPONSES.empty_table()]
    tables += [storage.read_table(file, RESPONSES.names) for file in files]
    return pa.concat_tables(tables)
