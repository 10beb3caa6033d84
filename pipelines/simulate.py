"""``nextscale simulate SOURCE``: the three strategies on the same documents, ranks and budget.

    nextscale simulate demo-256 --workspace workspace/demo --ranks 8 64
    nextscale simulate lengths.parquet --ranks 1024 --token-cap-ratio 1.0 1.1 1.25 --tflops 400

SOURCE is a table of packs in a workspace, which is then simulated as it is too, or a table of
lengths (`pipelines.lengths`). Prints tables and writes a page with the bars of the paper's
Figure 13. Arithmetic in FLOPs of a model's shape: kernels, communication and input are not
modelled (`packing.simulate`).
"""

import os
from collections.abc import Iterator

from infra import html
from infra.storage import Storage
from pipelines.lengths import TABLES, read_packs, read_table
from pipelines.scenario import BASELINE, Result, Scenario, many, run
from pipelines.simulate_page import write_simulation


def main(source: str, workspace: str, scenario: Scenario, output: str | None = None) -> Result:
    """Simulate, print the tables and write the page: to ``output``, the workspace or the table's
    folder. Raises ConfigError for a source that is not there, or cannot be simulated so, and for
    a page that cannot be written."""
    if output is not None:
        html.check_page(output)
    if source.endswith(TABLES):
        documents, page = read_table(source), f"{os.path.splitext(source)[0]}-simulation.html"
    else:
        storage = Storage(workspace)
        documents = read_packs(storage, source.removeprefix("packs/"), scenario.tokens_per_pack)
        page = storage.path("simulation.html")
    if output is None:
        html.check_page(page)  # not before: the folder of a source that is not there is no reason
    result = run(documents, scenario)
    for line in describe(result):
        print(line)
    print(f"\n{write_simulation(result, output or page)}")
    return result


def describe(result: Result) -> Iterator[str]:
    """The tables as lines of text."""
    documents, scenario = result.documents, result.scenario
    mean = documents.lengths.num_tokens.mean()
    number = many(len(documents.lengths), "document")
    yield f"{documents.name}: {number}, {mean:,.0f} tokens on average"
    if documents.assumed:
        yield documents.assumed
    again = ", with checkpointing" if scenario.checkpointing else ""
    yield f"FLOPs of training {scenario.preset}{again}; {scenario.waits}; seed {scenario.seed}"
    width = max(len(outcome.name) for outcome in result.outcomes)
    yield (
        f"\n{'packs':<{width}} {'number':>10} {'over bound':>11} {'fill':>7} {'max/mean':>9} "
        f"{'tokens: mean':>13} {'most':>8} {'cap':>8}  left out"
    )
    for outcome in result.outcomes:
        packed = outcome.packed
        over = packed.num_packs / packed.lower_bound - 1
        lost = ", ".join(f"{n:,} {reason}" for reason, n in packed.left_out.items())
        yield (
            f"{outcome.name:<{width}} {packed.num_packs:>10,} {over:>11.2%} {packed.fill:>7.1%} "
            f"{packed.imbalance:>9.4f} {packed.padded_tokens.mean():>13,.0f} "
            f"{packed.padded_tokens.max():>8,} {packed.packing.token_cap:>8,}  {lost or '-'}"
        )
    for outcome in result.outcomes:
        if outcome.note:
            yield f"{outcome.name}: {outcome.note}"
    for ranks in scenario.ranks:
        speed = f" {'tokens/s a rank':>16}" if scenario.tflops else ""
        head = many(ranks, "rank")
        yield f"\n{head:<{width}} {'throughput':>11} {'max/mean':>9} {'of the bound':>13}{speed}"
        for outcome in result.outcomes:
            run, relative = outcome.runs[ranks], result.relative(outcome, ranks)
            if run is None:
                number = many(outcome.packed.num_packs, "pack")
                yield f"{outcome.name:<{width}} {'-':>11}   {number}"
                continue
            speed = f" {result.tokens_per_s(run):>16,.0f}" if scenario.tflops else ""
            times = "-" if relative is None else f"{relative:.3f}"
            yield (
                f"{outcome.name:<{width}} {times:>11} {run.imbalance:>9.4f} "
                f"{run.efficiency:>13.1%}{speed}"
            )
    yield f"\nthroughput: tokens per rank and FLOP, {BASELINE} = 1"
