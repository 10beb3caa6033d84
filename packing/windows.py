"""Documents that stream by, packed window by window: the planner that no number of them fills up.

A window and what the one before it left over are in memory, nothing else. `packing.plan.plan` does
the same with arrays, for documents of one component.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from packing.strategies import REASONS, Int64, Packing, assign_window, reasons


def plan_windows(
    batches: Iterable[pa.Table], packing: Packing, budget: float
) -> Iterator[pa.Table]:
    """Pack rows of `packing.plan.MANIFEST`, given in the order to pack, in windows.

    Yields the same rows with ``pack`` (int64) and ``position`` (int32) behind their columns, in the
    order of packs, which tables do not cut. Rows over the token cap or over ``budget``, or that
    come with a reason, are in tables of their own in between, with that reason and without a pack,
    in the order given. Further columns travel along. Neither packs nor the order of rows in them
    depend on how rows are cut into batches.

    Packs of a window are in the order of their largest documents, or, of several components, in one
    that spreads the mixture evenly (`packing.pack_order`). Raises ValueError for tokens or costs
    that are not positive.
    """
    packer = _Packer(packing, budget)
    held: list[pa.Table] = []
    num_held = 0
    for batch in batches:
        why = _why(batch, packing, budget)
        if why.any():
            yield _reject(batch, why)
            batch = batch.filter(pa.array(why == 0))
        held.append(batch)
        num_held += len(batch)
        if num_held > packing.window:  # the last window is packed only when it is known to be that
            rows = pa.concat_tables(held)
            while len(rows) > packing.window:
                yield from packer.pack(rows.slice(0, packing.window), last=False)
                rows = rows.slice(packing.window)
            held, num_held = [rows], len(rows)
    if held:
        yield from packer.pack(pa.concat_tables(held), last=True)


class _Packer:
    """What one window leaves to the next: rows in no pack yet, and the number of packs."""

    def __init__(self, packing: Packing, budget: float) -> None:
        self._packing, self._budget = packing, budget
        self._left: pa.Table | None = None
        self._carries = np.zeros(0, np.int8)  # how often each row was left over
        self._num_packs = 0

    def pack(self, window: pa.Table, last: bool) -> Iterator[pa.Table]:
        rows = window if self._left is None else pa.concat_tables([self._left, window])
        carries = np.append(self._carries, np.zeros(len(window), np.int8))
        tokens, costs = _sizes(rows)
        packs = assign_window(tokens, costs, self._packing, self._budget, carries, last)
        component = rows["component"].to_numpy()
        # Padded batches are in the order given, in which the mixture is even.
        if self._packing.strategy != "batch_padding" and np.any(component != component[:1]):
            from packing.pack_order import spread  # readers of packs need no compiler

            packs = spread(packs, tokens, component)
        again = np.flatnonzero(packs < 0)
        self._left, self._carries = rows.take(pa.array(again)), carries[again] + np.int8(1)
        if len(again) < len(rows):
            yield _packed(rows, packs, self._num_packs)
            self._num_packs += int(packs.max()) + 1


def _why(rows: pa.Table, packing: Packing, budget: float) -> NDArray[np.int8]:
    """Why each row is in no pack, as an index into `REASONS`, or -1 where it came with a reason."""
    tokens, costs = _sizes(rows)
    wrong = np.flatnonzero(~((tokens > 0) & (costs > 0) & np.isfinite(costs)))
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            f"document {rows['doc_id'][i]} has {tokens[i]} tokens and cost {costs[i]}: "
            "both must be positive"
        )
    why = reasons(tokens, costs, packing, budget)
    why[rows["reason"].is_valid().to_numpy()] = -1
    return why


def _reject(rows: pa.Table, why: NDArray[np.int8]) -> pa.Table:
    names = pa.array([*REASONS[1:], None], pa.string()).take(pa.array(why - 1, mask=why < 1))
    place = rows.schema.get_field_index("reason")
    field = rows.schema.field(place)
    given = rows["reason"].combine_chunks()
    rows = rows.set_column(place, field, pc.coalesce(given, names))
    rows = rows.filter(pa.array(why != 0))
    rows = rows.append_column("pack", pa.nulls(len(rows), pa.int64()))
    return rows.append_column("position", pa.nulls(len(rows), pa.int32()))


def _packed(rows: pa.Table, packs: Int64, first: int) -> pa.Table:
    """Rows by pack, and within a pack as they came, so that place says nothing of size."""
    order = np.argsort(packs, kind="stable")[np.count_nonzero(packs < 0) :]
    pack = packs[order]
    starts = np.flatnonzero(np.diff(pack, prepend=-1))
    sizes = np.diff(starts, append=len(pack))
    position = (np.arange(len(pack)) - np.repeat(starts, sizes)).astype(np.int32)
    rows = rows.take(pa.array(order))
    rows = rows.append_column("pack", pa.array(pack + first))
    return rows.append_column("position", pa.array(position))


def _sizes(rows: pa.Table) -> tuple[Int64, NDArray[np.float64]]:
    return rows["num_tokens"].to_numpy(), rows["cost"].to_numpy()
