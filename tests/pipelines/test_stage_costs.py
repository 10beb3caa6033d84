"""Start-up is told from the first batch of a worker and is not counted by rows."""

from typing import Any

import pytest

from pipelines.phase import Stage
from pipelines.stage_costs import stage_costs

STAGE = Stage(())


def unit(worker: str, batches: list[list[float]], first: bool = False) -> dict[str, Any]:
    told = {"worker": worker, "is_first": first, "batches": batches, "write_s": 0.5}
    return {"part": 0, "start": 0, "stages": [told]}


def test_a_model_that_loads_is_counted_once_per_worker() -> None:
    # 10 rows take 1 s to load and 2 s to score; models load in 30 and in 50 s; a unit is 20 rows.
    plain = [10, 1.0, 2.0]
    units = [
        unit("a", [[10, 1.0, 32.0], plain], first=True),
        unit("b", [[10, 1.0, 52.0], plain], first=True),
        *(unit("a", [plain, plain]) for _ in range(3)),
    ]
    [cost] = stage_costs([STAGE], units)
    assert cost.start_s == pytest.approx(40.0)
    assert cost.per_row_s.value == pytest.approx(0.3 + 0.5 / 20)
    assert cost.per_row_s.error == pytest.approx(0.0, abs=1e-9)
    assert cost.longest_s == pytest.approx(53 + 3 + 0.5)  # b is busier than a is with all its units


def test_batches_that_differ_give_an_error() -> None:
    units = [unit("a", [[10, 0.0, 1.0]], first=True)]
    units += [unit("a", [[10, 0.0, seconds]]) for seconds in (1.0, 2.0, 3.0, 2.0)]
    [cost] = stage_costs([STAGE], units)
    assert 0 < cost.per_row_s.error < cost.per_row_s.value


def test_first_batches_alone_are_counted_as_rows() -> None:
    [cost] = stage_costs([STAGE], [unit("a", [[10, 1.0, 4.0]], first=True)])
    assert cost.start_s == 0
    assert cost.per_row_s.value == pytest.approx(0.55)
    assert cost.per_row_s.error == float("inf")


def test_nothing_ran() -> None:
    [cost] = stage_costs([STAGE], [])
    assert (cost.per_row_s.value, cost.start_s, cost.longest_s) == (0.0, 0.0, 0.0)
