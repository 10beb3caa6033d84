"""``nextscale estimate RECIPE``: what a recipe will cost and keep, from a sample of its sources.

    nextscale estimate web.yaml --rows 2000 --gpu-hour-price 2.5

A seeded sample (`pipelines.drawn`) goes through every phase in a workspace of its own, below the
recipe's, which is removed afterwards; the recipe's tables are neither read nor touched. Totals over
the source carry 95% intervals (`pipelines.estimator`). Start-up (loading a model) is told from the
first batch of each worker and counted once per worker, never by rows.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from infra import runs
from infra.cluster import session
from infra.config import ConfigError
from infra.storage import Storage
from operators.caption import Caption
from pipelines.curate import check
from pipelines.drawn import Drawn, draw
from pipelines.estimate_table import Line, Prices, print_estimate
from pipelines.estimator import Total
from pipelines.execution import WAVE_PARTS
from pipelines.inputs import SAMPLES_PER_MEDIA_PART, SAMPLES_PER_TEXT_PART
from pipelines.pack_tokens import PackPhase
from pipelines.phase import Phase
from pipelines.recipe import Recipe
from pipelines.sample_run import Measured, Sample, run_sample, scaled, workspace_below
from pipelines.sample_sums import MANY, add_up
from pipelines.stage_costs import stage_costs
from pipelines.vllm_captions import AnsweredInput
from pipelines.vllm_engine import engine_gpus, require_vllm
from pipelines.whole_job import load

ROWS = 500


def main(
    name: str,
    overrides: Sequence[str] = (),
    rows: int = ROWS,
    seed: int = 0,
    prices: Prices | None = None,
    address: str | None = None,
    num_cpus: int | None = None,
) -> list[Line]:
    """Print what the recipe will cost and keep. Raises ConfigError before any work."""
    if rows < 1:
        raise ConfigError(f"--rows is {rows}: draw at least 1")
    recipe = load(name, overrides)
    if recipe.media == "video" and recipe.clips.shots is not None:
        raise ConfigError(
            "estimate draws clips, and `clips.shots` says that they are still to be found: run "
            "`nextscale curate` on a small source first, or estimate a table of clips"
        )
    with _leaves_no_trace(recipe.storage):
        check(recipe)
        with session(address, num_cpus, recipe.secrets):
            if recipe.captions.operator.engine == "vllm":
                require_vllm(recipe.captions.operator, recipe.captions.vllm)
            lines, notes = estimate(recipe, rows, seed)
    print_estimate(lines, notes, prices or Prices())
    return lines


def estimate(recipe: Recipe, rows: int = ROWS, seed: int = 0) -> tuple[list[Line], list[str]]:
    """One line per phase for the whole sources, and what to know about them. Needs Ray."""
    drawn = draw(recipe.sources, rows, seed)
    with workspace_below(recipe) as inside:
        share = sum(len(d.rows) for d in drawn) / max(sum(d.num_rows.value for d in drawn), 1.0)
        sample = Sample(scaled(inside, share), drawn)
        notes = _notes(recipe, sample, min(share, 1.0), seed)
        run_sample(sample)
        # Listing is done already; Ray takes about as long to start for this phase as for others.
        idle_s = max(min((one.idle_s for one in sample.ran if one.units), default=0.0), 0.0)
        lines = [_index_line(one, sample.recipe.storage, idle_s) for one in drawn]
        for measured in sample.ran:
            lines.append(_line(sample, measured, lines, idle_s))
    notes.append("times are those of this session's machines, as busy as they were just now")
    notes.append(
        "times of decisions and duplicates are bounds: by rows, with what does not grow by them; "
        "their CPU time is this process's"
    )
    notes += [_vllm_note(one, idle_s) for one in sample.ran if _vllm_gpus(one)]
    if any(measured.record.table.startswith("duplicates/") for measured in sample.ran):
        notes.append("duplicates were sought within the sample: the sources hold more of them")
    return lines, notes


@contextmanager
def _leaves_no_trace(storage: Storage) -> Iterator[None]:
    """Folders that were not there before are not there afterwards, but for those in use by then.

    Somebody else may fill the workspace meanwhile, so only empty ones go. S3 has no folders.
    """
    root = Path(storage.path())
    made = [one for one in (root, *root.parents) if not one.exists()] if storage.is_local else []
    try:
        yield
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _notes(recipe: Recipe, sample: Sample, share: float, seed: int) -> list[str]:
    drawn = sample.drawn
    whole = sum((one.num_rows for one in drawn), Total(0.0))
    about = "" if not whole.error else f" ± {whole.error:,.0f}"
    notes = [
        f"{sample.num_rows:,} of {whole.value:,.0f}{about} rows ({share:.3%}) were drawn with seed "
        f"{seed}; intervals are of 95%, by the jackknife over "
        + ", ".join(f"{len(one.sizes)} groups of `{one.source.name}`" for one in drawn)
    ]
    if share < 1 and any(rule.top is not None for rule in recipe.decide.rules):
        notes.append("quantiles were cut within the sample: their cuts have errors of their own")
    if share < 1 and sample.recipe.decide != recipe.decide:
        notes.append("bounds of `balance` that count rows were scaled to the sample and rounded")
    return notes


def _index_line(drawn: Drawn, storage: Storage, idle_s: float) -> Line:
    table = f"samples/{drawn.source.name}"
    record = runs.load_record(storage, table)
    assert record is not None
    sums = add_up(storage, record, [drawn])
    waves = math.ceil(drawn.num_parts / WAVE_PARTS)
    return Line(
        table,
        wall_s=drawn.index_s + Total(idle_s * waves),
        cpu_s=drawn.index_s,
        gpu_s=Total(0.0),
        **sums.totals(drawn.num_parts),
    )


def _line(sample: Sample, measured: Measured, before: Sequence[Line], idle_s: float = 0.0) -> Line:
    """``idle_s``: what a phase on Ray takes beside its units."""
    made, record = measured.made, measured.record
    if isinstance(made, PackPhase):
        return _pack_line(sample, measured, before)
    drawn = _drawn_of(sample, record.table)
    sums = add_up(sample.recipe.storage, record, drawn)
    num_parts = _num_parts(sample, record.table, drawn)
    totals = sums.totals(num_parts)
    if not isinstance(made, Phase):  # SQL in this process, which reads every row of the dataset
        seen = sum((one.num_rows for one in drawn), Total(0.0))
        factor = seen.times(1 / max(sample.num_rows, 1))
        if (by_parts := num_parts / max(len(record.parts), 1)) > factor.value:
            factor = Total(by_parts)
        wall, cpu = factor.times(measured.wall_s), factor.times(measured.cpu_s)
        return Line(record.table, wall_s=wall, cpu_s=cpu, gpu_s=Total(0.0), **totals)
    costs = stage_costs(measured.stages, measured.units)
    wall_s, cpu_s, gpu_s = Total(0.0), Total(0.0), Total(0.0)
    waves = math.ceil(num_parts / WAVE_PARTS)
    for stage, cost in zip(made.stages, costs, strict=True):
        busy = totals["rows"].times_rate(cost.per_row_s)
        starts = Total(cost.start_s * stage.workers * waves)
        for_each = busy + starts
        cpu_s += for_each.times(stage.num_cpus) if stage.num_cpus else Total(0.0)
        # The error of a single batch is infinite, and 0 times that is no number.
        gpu_s += for_each.times(stage.num_gpus) if stage.num_gpus else Total(0.0)
        alone = busy.times(1 / stage.workers)
        wall_s = max(wall_s, alone, key=lambda total: total.value)
    gpus = _vllm_gpus(measured)
    beside_s = idle_s if gpus else max(measured.idle_s, 0.0)
    wall_s += Total((beside_s + max(cost.start_s for cost in costs)) * waves)
    if gpus and isinstance(made.input, AnsweredInput):
        most_s = max(measured.idle_s - idle_s, 0.0) * totals["rows"].value
        most_s /= max(record.num_rows, 1)
        wall_s += _at_most(most_s)
        cpu_s += _at_most(most_s * (3 * made.input.vllm.cpu_workers + 1))
        gpu_s += _at_most(most_s * gpus)
    return Line(record.table, wall_s=wall_s, cpu_s=cpu_s, gpu_s=gpu_s, **totals)


def _num_parts(sample: Sample, table: str, drawn: Sequence[Drawn]) -> int:
    """Of a table over the whole sources; those of documents are cut as `dataset_parts` does."""
    if table.split("/")[0] not in ("documents", "tokens"):
        return sum(one.num_parts for one in drawn)
    most = SAMPLES_PER_TEXT_PART if sample.recipe.holds_texts else SAMPLES_PER_MEDIA_PART
    return sum(
        one.num_parts * max(1, math.ceil(one.num_rows.value / one.num_parts / most))
        for one in drawn
    )


def _at_most(seconds: float) -> Total:
    """Somewhere between none and so many."""
    return Total(0.0, (seconds / 1.96) ** 2, MANY if seconds else 0)


def _vllm_gpus(measured: Measured) -> int:
    """GPUs of the engines that answer before the phase's own units run; 0 where there are none."""
    made = measured.made
    if not isinstance(made, Phase) or not isinstance(made.input, AnsweredInput):
        return 0
    caption = next(operator for operator in made.operators if isinstance(operator, Caption))
    return made.input.vllm.engines * engine_gpus(caption)


def _vllm_note(measured: Measured, idle_s: float) -> str:
    seconds = max(measured.idle_s - idle_s, 0.0)
    return (
        f"{measured.record.table} by vLLM: {seconds:,.0f} s for {measured.record.num_rows:,} rows "
        f"on {_vllm_gpus(measured)} GPUs, where the start of the engines cannot be told from their "
        "work: its times are bounds, nearer to the truth with more --rows"
    )


def _pack_line(sample: Sample, measured: Measured, before: Sequence[Line]) -> Line:
    """Packs grow with the documents that are packed."""
    made, record = measured.made, measured.record
    assert isinstance(made, PackPhase)
    [component] = made.components
    packed = component.tokens.num_rows - component.tokens.num_failed
    tokens = next(line for line in before if line.table == component.tokens.table)
    factor = tokens.fine.times(1 / max(packed, 1))
    storage = sample.recipe.storage
    written = sum(size for _, size, _ in storage.find(f"{record.table}/{record.parts[0].folder}"))
    return Line(
        record.table,
        wall_s=factor.times(measured.wall_s),
        cpu_s=factor.times(measured.cpu_s),
        gpu_s=Total(0.0),
        bytes=factor.times(written),
        rows=factor.times(record.num_rows),
        fine=factor.times(record.num_rows),
        failed=Total(0.0),
    )


def _drawn_of(sample: Sample, table: str) -> list[Drawn]:
    kind, name = table.split("/")[:2]
    if kind in ("samples", "scores"):
        return [one for one in sample.drawn if one.source.name == name]
    return sample.drawn
