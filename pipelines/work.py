"""What a run's units cost in seconds of its workers, for its record and for estimates."""

import json
from collections.abc import Callable
from typing import Any

from pipelines.job import Retry
from pipelines.phase import Phase

COUNTS = ("units", "rows_computed", "rows_retried", "rows_recovered")
SECONDS = ("load_s", "operators_s", "write_s", "cpu_s", "gpu_s")


class Work:
    """Adds up what the units of a run cost, beside its tables; ``watch`` is shown each unit."""

    def __init__(self, watch: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.watch = watch
        self.counts = dict.fromkeys(COUNTS, 0)
        self.seconds = dict.fromkeys(SECONDS, 0.0)

    def add(self, phase: Phase, unit: dict[str, Any]) -> None:
        """A unit's summary, as `UnitWorker` gives it: its part, and what each stage says of it.

        That is its worker, whether that worker had done none before, its batches as (rows, seconds
        of loading, seconds of the operators) and the seconds of writing.
        """
        unit["stages"] = json.loads(unit["stages"])
        self.counts["units"] += 1
        self.counts["rows_computed"] += sum(rows for rows, _, _ in unit["stages"][0]["batches"])
        for stage, told in zip(phase.stages, unit["stages"], strict=True):
            load_s = sum(seconds for _, seconds, _ in told["batches"])
            operators_s = sum(seconds for _, _, seconds in told["batches"])
            busy_s = load_s + operators_s + told["write_s"]
            for name, seconds in (
                ("load_s", load_s),
                ("operators_s", operators_s),
                ("write_s", told["write_s"]),
                ("cpu_s", busy_s * stage.num_cpus),
                ("gpu_s", busy_s * stage.num_gpus),
            ):
                self.seconds[name] += seconds
        if self.watch:
            self.watch(unit)

    def told(self, retry: Retry | None) -> dict[str, Any]:
        """For the run's record: sums over all workers; CPU and GPU seconds are reserved ones."""
        return {**self.counts, **self.seconds, "retry": str(retry) if retry else None}
