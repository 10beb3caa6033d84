"""What the commands of `pipelines.cli` do with their arguments. Each imports what it needs."""

import argparse
import sys

from infra.config import ConfigError


def run(args: argparse.Namespace) -> None:
    from pipelines import whole_job

    whole_job.run(args.recipe, args.overrides, args.ray, args.num_cpus, strict=False)


def curate(args: argparse.Namespace) -> None:
    from pipelines import whole_job

    whole_job.run(args.recipe, args.overrides, args.ray, args.num_cpus, last="curate")


def tokenize(args: argparse.Namespace) -> None:
    from pipelines import whole_job

    whole_job.run(args.recipe, args.overrides, args.ray, args.num_cpus, last="tokenize")


def pack(args: argparse.Namespace) -> None:
    from pipelines import whole_job

    whole_job.run(args.recipe, args.overrides, args.ray, args.num_cpus, last="pack")


def mix(args: argparse.Namespace) -> None:
    from pipelines.mixture import pack_mixture

    pack_mixture(args.recipe, args.overrides, args.ray, args.num_cpus)


def retry(args: argparse.Namespace) -> None:
    from pipelines import retry
    from pipelines.job import Retry

    what = Retry(args.stage, args.type)
    retry.main(args.recipe, args.overrides, what, args.ray, args.num_cpus)


def estimate(args: argparse.Namespace) -> None:
    from pipelines import estimate
    from pipelines.estimate_table import Prices

    prices = Prices(args.cpu_hour_price, args.gpu_hour_price, args.million_tokens_price)
    estimate.main(
        args.recipe, args.overrides, args.rows, args.seed, prices, args.ray, args.num_cpus
    )


def train(args: argparse.Namespace) -> None:
    from infra import config
    from pipelines.recipe import recipe_path

    if "packs" in config.read(recipe_path(args.recipe)):
        from pipelines.train_packs import train_folder

        train_folder(recipe_path(args.recipe), args.overrides)
        return
    from pipelines import whole_job

    whole_job.train_only(args.recipe, args.overrides)


def export(args: argparse.Namespace) -> None:
    import torch

    from trainer.export import export

    export(args.checkpoint, args.folder, getattr(torch, args.dtype))


def sample(args: argparse.Namespace) -> None:
    from pipelines.sample import sample
    from trainer.sampling import Sampling

    try:
        names = ("temperature", "top_k", "top_p", "guidance", "seed")
        sampling = Sampling(**{name: getattr(args, name) for name in names})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    written = sample(
        args.model,
        args.prompt,
        sampling,
        num_pictures=args.pictures,
        level=args.level,
        aspect=args.aspect,
        tokenizer=args.tokenizer,
        vocabulary=args.vocabulary,
        output=args.output,
        device=args.device,
    )
    for path in written:
        print(path)


def train_tokenizer(args: argparse.Namespace) -> None:
    from pipelines.recipe import recipe_path
    from tokenize_offline import training

    training.main(recipe_path(args.recipe), args.overrides)


def status(args: argparse.Namespace) -> None:
    from pipelines import whole_job

    for state in whole_job.status(args.recipe, args.overrides):
        print(f"{state.state:<8} {state.table:<28} {state.why}")


def stats(args: argparse.Namespace) -> None:
    from pipelines.whole_job import load

    recipe = load(args.recipe, args.overrides)
    if args.what_if:
        from pipelines.what_if import print_what_if

        print_what_if(recipe, args.what_if)
        return
    from pipelines.stats import print_stats

    print_stats(recipe)


def report(args: argparse.Namespace) -> None:
    from pipelines.report import write_report
    from pipelines.whole_job import load

    print(write_report(load(args.recipe, args.overrides), args.output))


def inspect_codes(args: argparse.Namespace) -> None:
    from pipelines.inspect_codes import inspect_codes
    from pipelines.whole_job import load

    ids = [word for word in args.overrides if "=" not in word]
    recipe = load(args.recipe, [word for word in args.overrides if "=" in word])
    lines = inspect_codes(
        recipe, ids, args.pictures, args.seed, args.replica, args.output, args.png
    )
    print("\n".join(lines))


def simulate(args: argparse.Namespace) -> None:
    from pipelines import simulate
    from pipelines.scenario import Scenario

    scenario = Scenario(
        ranks=tuple(args.ranks),
        micro_steps=args.micro_steps,
        zero=args.zero,
        token_cap_ratios=tuple(args.token_cap_ratio),
        tokens_per_pack=args.tokens_per_pack,
        batch_size=args.batch_size,
        preset=args.preset,
        checkpointing=not args.no_checkpointing,
        tflops=args.tflops,
        seed=args.seed,
    )
    simulate.main(args.source, args.workspace, scenario, args.output)


def calibrate(args: argparse.Namespace) -> None:
    from pipelines.calibrate import Effort, main

    if args.overrides and not args.recipe:
        raise ConfigError(f"{args.overrides[0]} changes a recipe: name one with --recipe")
    effort = Effort(args.packs_measured, args.repeats)
    main(args.packs, args.workspace, args.recipe, args.overrides, effort, args.output)


def verify(args: argparse.Namespace) -> int:
    if len(args.names) > 2:
        raise ConfigError(f"{len(args.names)} names are given: name packs, or two tables")
    if len(args.names) == 2:
        from pipelines import compare_tables

        first, second = args.names
        return compare_tables.main(first, second, args.workspace)
    from pipelines.verify import main

    return main(args.names[0], args.workspace, args.ray, args.num_cpus)


def inspect(args: argparse.Namespace) -> None:
    from pipelines.inspect_pack import inspect_pack

    lines = inspect_pack(
        args.packs, args.number, args.workspace, args.output, args.tokenizer, args.vocabulary
    )
    print("\n".join(lines))


def sql(args: argparse.Namespace) -> int:
    import duckdb

    from infra import catalog
    from infra.storage import Storage

    storage = Storage(args.workspace)
    if not storage.exists():
        raise ConfigError(f"workspace {args.workspace} does not exist: name one with --workspace")
    con = catalog.connect(storage)
    try:
        result = con.sql(args.query)
        if result is not None:  # a statement without rows
            result.show(max_width=200)
    except duckdb.Error as error:
        print(f"nextscale sql: {error}", file=sys.stderr)
        return 2
    return 0
