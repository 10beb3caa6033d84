"""Images of a table of tokens: their codes, the pictures they stand for, and how true these are.

Codes come from the tokens, originals from the documents, reduced to the level as extraction does.
Only the row groups that hold a chosen document are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from infra import catalog
from infra.config import ConfigError
from infra.pixels import DecodeError, Pixels
from infra.runs import TableRecord
from infra.schedules import SCHEDULES, Schedule
from infra.schema import uniform_sql
from infra.storage import Storage
from tokenize_offline.codes import decode, per_scale, read_stored
from tokenize_offline.evaluation import mse, psnr_db
from tokenize_offline.model import Tokenizer

Codes = NDArray[np.int64]
Counts = NDArray[np.int64]
Decibels = NDArray[np.float64]

TEXT_CHARACTERS = 300
MAX_DOCUMENTS = 200
"""As many at most: their pictures are held in memory, and in the page."""


@dataclass(frozen=True, eq=False)
class CodedImage:
    """An image of a document with its codes [N] and the picture [H, W, 3] they were made of."""

    doc_id: str
    sample_id: str  # "" where the document names none
    task: str
    text: str  # the beginning of the document's first text
    role: str  # target or condition
    schedule: Schedule
    num_scales: int
    input_codes: Codes
    target_codes: Codes
    sampled: Counts | None  # tokens drawn, by scale; None where the tokens do not say
    original: Pixels

    @property
    def num_codes(self) -> Counts:
        """Codes of each scale, [K]."""
        return np.diff([0, *self.schedule.code_ends[: self.num_scales]])

    @property
    def flipped(self) -> Counts:
        """Codes of each scale whose input is not the target, [K]."""
        marks = self.input_codes != self.target_codes
        return per_scale(marks[None], self.schedule, self.num_scales)[0].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Redrawn:
    """Pictures [H, W, 3] of an image's first 1 .. K scales, and their PSNR to the original, [K]."""

    from_targets: list[Pixels]
    from_inputs: list[Pixels]
    target_db: Decibels
    input_db: Decibels


def find_images(
    storage: Storage,
    tokens: TableRecord,
    documents: TableRecord,
    ids: Sequence[str] = (),
    num_images: int = 12,
    seed: int = 0,
) -> list[CodedImage]:
    """Images by the beginnings of document or sample ids; without ``ids``, a seeded draw.

    At most ``num_images`` are drawn; each of the ``ids`` stands for at most as many documents. In
    the order of document ids. Raises ConfigError where there is no such image or an id is empty,
    for more than MAX_DOCUMENTS, and where the documents are other ones than those that the tokens
    were made of.
    """
    if not all(ids):
        raise ConfigError("an id is empty: name the beginning of one, or none to draw images")
    with catalog.connect(storage, views=False) as con:
        scan = catalog.scan(storage, tokens)
        if ids:
            chosen = _by_id(con, scan, tokens.table, ids, num_images)
        else:
            chosen = con.execute(
                f"SELECT doc_id FROM {scan} WHERE error IS NULL AND task <> 'text' "
                f"ORDER BY {uniform_sql('doc_id', seed)}, doc_id LIMIT ?",
                [num_images],
            ).fetchall()
        chosen = sorted(set(chosen))
        if len(chosen) > MAX_DOCUMENTS:
            raise ConfigError(
                f"{len(chosen)} documents are asked for, one page shows {MAX_DOCUMENTS}: name fewer"
            )
        wanted = ", ".join(catalog.literal(doc_id) for (doc_id,) in chosen) or "NULL"
        rows = con.sql(
            f"SELECT doc_id, task, list_filter(segments, lambda s: s.kind = 'image') AS images "
            f"FROM {scan} WHERE doc_id IN ({wanted}) ORDER BY doc_id"
        ).to_arrow_table()
        originals = con.sql(
            "SELECT doc_id, list_transform(list_filter(segments, lambda s: s.kind = 'image'), "
            "lambda s: s.image) AS images, substr(coalesce(list_filter(segments, "
            f"lambda s: s.kind = 'text')[1].text, ''), 1, {TEXT_CHARACTERS}) AS text "
            f"FROM {catalog.scan(storage, documents)} WHERE doc_id IN ({wanted})"
        ).to_arrow_table()
    stored = {row["doc_id"]: row for row in originals.to_pylist()}
    found = []
    for row in rows.to_pylist():
        from_document = stored.get(row["doc_id"], {"images": [], "text": ""})
        if len(from_document["images"]) != len(row["images"]):
            raise _changed(tokens, documents, row["doc_id"])
        for segment, data in zip(row["images"], from_document["images"], strict=True):
            names = row["doc_id"], segment["sample_id"] or ""
            if ids and not any(name.startswith(word) for name in names for word in ids):
                continue
            image = _image(row, segment, data, from_document["text"], tokens.facts["level"])
            if image is None:
                raise _changed(tokens, documents, row["doc_id"])
            found.append(image)
    if not found:
        of = f" of {', '.join(f'`{word}`' for word in ids)}" if ids else ""
        raise ConfigError(f"{tokens.table} holds no image{of}: there are no codes to inspect")
    return found if ids else found[:num_images]


def count_documents(storage: Storage, tokens: TableRecord, ids: Sequence[str]) -> dict[str, int]:
    """For each of the ``ids`` the documents with codes of which it begins an id or a sample's."""
    with catalog.connect(storage, views=False) as con:
        rows = con.execute(
            f"SELECT word, count(*) FROM {_matches(catalog.scan(storage, tokens))} "
            "WHERE error IS NULL GROUP BY word",
            {"ids": list(dict.fromkeys(ids))},
        ).fetchall()
    return dict(rows)


def redraw(tokenizer: Tokenizer, image: CodedImage) -> Redrawn:
    """Decode an image's target codes and its input codes after each scale."""
    of = image.schedule, image.num_scales
    targets, inputs = image.target_codes[None], image.input_codes[None]
    from_targets: list[Pixels] = []
    from_inputs: list[Pixels] = []
    for scale, end in enumerate(image.schedule.code_ends[: image.num_scales], 1):
        from_targets.append(decode(tokenizer, targets, *of, scale)[0])
        same = np.array_equal(targets[:, :end], inputs[:, :end])
        drawn = from_targets[-1] if same else decode(tokenizer, inputs, *of, scale)[0]
        from_inputs.append(drawn)
    target_db, input_db = (
        np.array([psnr_db(mse(image.original, drawn)) for drawn in pictures])
        for pictures in (from_targets, from_inputs)
    )
    return Redrawn(from_targets, from_inputs, target_db, input_db)


def _by_id(
    con: duckdb.DuckDBPyConnection, scan: str, table: str, ids: Sequence[str], most: int
) -> list[tuple[str]]:
    """Documents with an id, or a sample's id, that begins with one of ``ids``."""
    rows = con.execute(
        "SELECT word, doc_id, error.stage || ':' || error.type AS failed "
        f"FROM {_matches(scan)} QUALIFY row_number() OVER "
        "(PARTITION BY word ORDER BY error IS NOT NULL, doc_id) <= $most ORDER BY ALL",
        {"ids": list(ids), "most": most},
    ).fetchall()
    for word in ids:
        mine = [(doc_id, failed) for of, doc_id, failed in rows if of == word]
        if not mine:
            raise ConfigError(
                f"{table} holds no image of a document or sample whose id begins with `{word}`"
            )
        if all(failed for _, failed in mine):
            raise ConfigError(f"document {mine[0][0]} has no codes: it failed ({mine[0][1]})")
    return [(doc_id,) for _, doc_id, failed in rows if not failed]


def _matches(scan: str) -> str:
    """(word, doc_id, error) for every document of images and every one of ``$ids`` it has."""
    return (
        "(SELECT word, doc_id, error FROM (SELECT doc_id, "
        f"list_prepend(doc_id, coalesce(sample_ids, [])) AS names, task, error FROM {scan}) "
        "JOIN (SELECT unnest($ids::VARCHAR[]) AS word) "
        "ON len(list_filter(names, lambda name: starts_with(name, word))) > 0 "
        "WHERE task <> 'text')"
    )


def _image(
    row: dict[str, Any], segment: dict[str, Any], data: bytes, text: str, level: int
) -> CodedImage | None:
    """None where the stored picture is not the one of the codes."""
    schedule = SCHEDULES[segment["schedule"]]
    try:
        stored, original = read_stored(data, level)
    except DecodeError:
        return None
    if stored != schedule:
        return None
    sampled = segment.get("sampled")  # tokens of before it was counted have no such field
    return CodedImage(
        row["doc_id"],
        segment["sample_id"] or "",
        row["task"],
        text,
        segment["role"],
        schedule,
        segment["num_scales"],
        np.array(segment["input_codes"], np.int64),
        np.array(segment["target_codes"], np.int64),
        None if sampled is None else np.array(sampled, np.int64),
        original,
    )


def _changed(tokens: TableRecord, documents: TableRecord, doc_id: str) -> ConfigError:
    return ConfigError(
        f"{documents.table} has changed since {tokens.table} was made (see document {doc_id}): run "
        "`nextscale tokenize`"
    )
