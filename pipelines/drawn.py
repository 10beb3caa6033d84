"""A seeded sample of a source: rows of `samples`, the groups they fall into, what they stand for.

Of a folder, pictures are drawn from the listing. Of tars and of tables, files are drawn, and rows
within them; where there are few files all are indexed (headers only) and rows are drawn from all.
A row is drawn by `infra.schema.uniform` of its id: those with the least are the sample. The id is
prefixed there, since balancing asks for u of the id itself and the sample must not depend on that.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.schema import sample_id, uniform
from pipelines.estimator import Total, chained_total, ratio_total
from pipelines.source import Entry, Source
from pipelines.sources import IndexInput, list_source, parts_of

Floats = NDArray[np.float64]
MAX_GROUPS = 20


@dataclass(frozen=True)
class Drawn:
    """Drawn rows of a source.

    ``groups`` numbers the group of every drawn id. ``sizes`` are the groups' known sizes (rows, or
    bytes of files), which sum to ``whole`` over the source; their files hold ``held`` rows, of
    which ``taken`` were drawn. ``share`` of all rows was drawn.
    """

    source: Source
    rows: pa.Table
    groups: dict[str, int]
    whole: float
    sizes: Floats
    held: Floats
    taken: Floats
    share: float
    num_parts: int
    num_rows: Total
    index_s: Total

    def total(self, by_group: Sequence[float] | Floats) -> Total:
        """The total over the source of what the drawn rows of each group add up to."""
        ratios = [(self.held, self.sizes), (by_group, self.taken)]
        found = chained_total(ratios, self.whole, self.share)
        if not found.value and self.share < 1:
            # None among n: with 95% confidence, fewer than 3 in n (J. Hanley, JAMA 1983).
            bound = 3 * self.num_rows.value / max(len(self.rows), 1)
            return Total(0.0, (bound / 1.96) ** 2, 10_000)
        return found


@dataclass(frozen=True)
class _Indexed:
    """Files of a source that were indexed: their rows, with the place of each row's file."""

    rows: pa.Table
    file: NDArray[np.int64]
    weights: Floats
    seconds: Floats


def draw(sources: Sequence[Source], rows: int, seed: int) -> list[Drawn]:
    """``rows`` rows of all sources together, each source by its share. Raises ConfigError.

    No source is read as a whole: of files with many rows, `MAX_GROUPS` are indexed, or as many as
    hold the rows asked for.
    """
    listed = [list_source(source) for source in sources]
    ordered = [
        _shuffled(source, entries, seed) for source, entries in zip(sources, listed, strict=True)
    ]
    firsts = [
        None if source.kind == "folder" else _index(source, entries[:MAX_GROUPS], entries)
        for source, entries in zip(sources, ordered, strict=True)
    ]
    sizes = []
    for entries, first in zip(ordered, firsts, strict=True):
        if first is None:
            sizes.append(float(len(entries)))
        else:
            weight = _weights(entries).sum()
            sizes.append(len(first.rows) * weight / max(first.weights.sum(), 1e-9))
    share = min(1.0, rows / max(sum(sizes), 1.0))
    drawn = []
    for source, entries, first, size in zip(sources, ordered, firsts, sizes, strict=True):
        wanted = min(int(np.ceil(size)), max(round(size * share), 2))
        if first is None:
            drawn.append(_draw_pictures(source, entries, wanted))
        else:
            drawn.append(_draw_rows(source, entries, first, wanted, seed))
    return drawn


def _shuffled(source: Source, entries: list[Entry], seed: int) -> list[Entry]:
    # The id of a folder's picture is that of its path: files are drawn as their samples are.
    def place(entry: Entry) -> tuple[float, Entry]:
        key = entry.uri if source.kind == "folder" else "|".join(map(str, (entry.uri, *entry[4:])))
        return _place(sample_id(source.name, key), seed), entry

    return [entry for _, entry in sorted(map(place, entries), key=lambda pair: pair[0])]


def _place(id_: str, seed: int) -> float:
    return uniform(f"drawn {id_}", seed)


def _weights(entries: Sequence[Entry]) -> Floats:
    """Bytes of each entry; pieces of one file share its bytes evenly."""
    pieces = Counter(entry.uri for entry in entries)
    return np.array([max(entry.size_bytes, 1) / pieces[entry.uri] for entry in entries])


def _index(source: Source, entries: Sequence[Entry], every: Sequence[Entry]) -> _Indexed:
    """The rows of these entries, each read by itself and timed."""
    index = IndexInput(source, "")
    weight_of = dict(zip(every, _weights(every), strict=True))
    tables, file, seconds = [index.load(source.storage, _table([]))], [], []
    for number, entry in enumerate(entries):
        started = time.perf_counter()
        tables.append(index.load(source.storage, _table([entry])))
        seconds.append(time.perf_counter() - started)
        file += [number] * len(tables[-1])
    weights = np.array([weight_of[entry] for entry in entries])
    return _Indexed(pa.concat_tables(tables), np.array(file, int), weights, np.array(seconds))


def _table(entries: Sequence[Entry]) -> pa.Table:
    types = {"size_bytes": pa.int64(), "start": pa.int64()}
    return pa.table(
        {
            name: pa.array(
                [getattr(entry, name) for entry in entries], types.get(name, pa.string())
            )
            for name in Entry._fields
        }
    )


def _draw_pictures(source: Source, entries: list[Entry], wanted: int) -> Drawn:
    """The first ``wanted`` files of a shuffled folder, each of them one sample."""
    groups = min(MAX_GROUPS, wanted)
    index = IndexInput(source, "")
    tables, sizes, seconds = [], np.zeros(groups), np.zeros(groups)
    numbers: dict[str, int] = {}
    for group in range(groups):
        some = entries[group:wanted:groups]
        started = time.perf_counter()
        table = index.load(source.storage, _table(some))
        seconds[group] = time.perf_counter() - started
        sizes[group] = len(some)
        numbers |= dict.fromkeys(table["sample_id"].to_pylist(), group)
        tables.append(table)
    total, share = float(len(entries)), wanted / len(entries)
    return Drawn(
        source=source,
        rows=pa.concat_tables(tables),
        groups=numbers,
        whole=total,
        sizes=sizes,
        held=sizes,
        taken=sizes,
        share=share,
        num_parts=len(parts_of(source, sorted(entries))),
        num_rows=Total(total),
        index_s=ratio_total(seconds, sizes, total, share),
    )


def _draw_rows(
    source: Source, entries: list[Entry], found: _Indexed, wanted: int, seed: int
) -> Drawn:
    """``wanted`` rows of as many drawn files as hold them."""
    while len(found.rows) < wanted and len(found.weights) < len(entries):
        found = _index(source, entries[: 2 * len(found.weights)], entries)
    ids = found.rows["sample_id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda i: (_place(ids[i], seed), ids[i]))[:wanted]
    num_files, whole = len(found.weights), float(_weights(entries).sum())
    of_files = num_files / len(entries)
    if of_files == 1:  # all rows are known: groups are of rows
        count = max(min(MAX_GROUPS, len(order)), 1)
        groups = {ids[i]: place % count for place, i in enumerate(order)}
        whole = float(len(ids))
        sizes = held = _count(groups.values(), count)
        share, num_rows = len(order) / max(whole, 1.0), Total(whole)
    else:
        count = min(MAX_GROUPS, num_files)
        group_of = np.arange(num_files) % count
        groups = {ids[i]: int(group_of[found.file[i]]) for i in order}
        sizes = np.bincount(group_of, found.weights, minlength=count).astype(np.float64)
        held = _count(group_of[found.file], count)
        share = of_files * len(order) / max(len(ids), 1)
        num_rows = ratio_total(held, sizes, whole, of_files)
    return Drawn(
        source=source,
        rows=found.rows.take(pa.array(order, pa.int64())),
        groups=groups,
        whole=whole,
        sizes=sizes,
        held=held,
        taken=_count(groups.values(), count),
        share=share,
        num_parts=len(parts_of(source, sorted(entries))),
        num_rows=num_rows,
        index_s=ratio_total(found.seconds, found.weights, float(_weights(entries).sum()), of_files),
    )


def _count(numbers: Iterable[int], minimum: int) -> Floats:
    return np.bincount(np.fromiter(numbers, np.int64), minlength=minimum).astype(np.float64)
