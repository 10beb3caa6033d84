"""Rows of the manifest from one part of a table of tokens: what of its documents is packed.

A row is a slice of a document's segments (`packing.slices`): all of them, those after a prompt that
is dropped, or a piece of a document that fits no pack whole. Codes are never read.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.storage import Storage
from packing.cost import Coefficients, cost
from packing.measures import SEGMENT_COLUMNS
from packing.order import order_keys
from packing.plan import MANIFEST, Packing
from packing.slices import Slicing, slices_of
from pipelines.pack_phase import PackComponent
from pipelines.replicas import COUNTS, read_light

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What decides the slices of a document, and whether a slice fits a pack."""

    slicing: Slicing
    packing: Packing
    coefficients: Coefficients
    budget: float  # most cost of a pack


def manifest_rows(
    storage: Storage,
    component: PackComponent,
    number: int,
    part: int,
    copies: Ints | None,
    epoch: int,
    limits: Limits,
) -> pa.Table:
    """The rows of one part of the tokens, by row of it, copy and piece.

    ``number`` is the component's. ``copies`` of each row of the part, null for as many as the
    component says; those of a later epoch follow on those of the epochs before it. Raises
    ConfigError where replicas hold other documents.
    """
    tokens = read_light(storage, component.tables, part)
    chosen = tokens["error"].is_null().to_numpy()
    if component.tasks:
        chosen &= np.isin(np.array(tokens["task"].to_pylist(), np.str_), component.tasks)
    times = np.full(len(tokens), component.copies) if copies is None else copies
    times = np.where(chosen, times, 0)
    segments = storage.read_table(component.tokens.path(part), list(SEGMENT_COLUMNS))
    slices = slices_of(
        tokens.append_column("segments", segments["segments"]),
        times,
        limits.slicing,
        limits.packing.token_cap,
        limits.budget,
        limits.coefficients,
        first_copy=epoch * times,
    )
    n = len(slices)
    doc_ids = tokens["doc_id"].combine_chunks().take(slices["row"].combine_chunks())
    copy = slices["copy"].to_numpy()
    num_tokens, num_loss, num_pairs = (slices[name].to_numpy() for name in COUNTS)
    loose: dict[str, Any] = {
        "component": np.full(n, number),
        "epoch": np.full(n, epoch),
        "key": order_keys(doc_ids, copy, 0, limits.packing.seed),
        "doc_id": doc_ids,
        "part": np.full(n, part),
        "token_row": slices["row"],
        "cost": cost(num_tokens, num_loss, num_pairs, limits.coefficients),
    }
    columns = [loose[name] if name in loose else slices[name] for name in MANIFEST.names]
    return pa.table(columns, names=MANIFEST.names).cast(MANIFEST)
