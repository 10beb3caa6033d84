"""The command line: ``nextscale COMMAND``. Sub-commands import what they need when they run."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from infra.config import ConfigError

WORKSPACE_HELP = "default: %(default)s"
RECIPE_HELP = "a YAML file, or the name of one of ours (demo)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and exit status 2."""
    args = parse(argv)
    run: Callable[[argparse.Namespace], int | None] = args.run
    try:
        return run(args) or 0
    except ConfigError as error:
        print(f"nextscale {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on where it was", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; key=value pairs may stand before or after the options."""
    args, more = parser().parse_known_args(argv)
    ids = getattr(args, "takes_ids", False)
    wrong = [word for word in more if word.startswith("-") or not (ids or "=" in word)]
    if wrong or (more and not hasattr(args, "overrides")):
        parser().error(f"unrecognized arguments: {' '.join(wrong or more)}")
    if more:
        args.overrides = [*args.overrides, *more]
    return args


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="nextscale", description="From raw media to trained steps.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, recipe: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if recipe:
            sub.add_argument("recipe", help=RECIPE_HELP)
            sub.add_argument("overrides", nargs="*", metavar="key=value", help="change the recipe")
        return sub

    for name, run, text in (
        ("run", _run, "all phases that a recipe has, from sources to trained steps"),
        ("curate", _curate, "sources -> scores -> decisions -> captions -> documents"),
        ("tokenize", _tokenize, "documents -> text tokens and visual codes"),
        ("pack", _pack, "tokens -> balanced packs"),
    ):
        _add_session(command(name, run, text))
    retry = command("retry", _retry, "compute failed rows again, and what depends on them")
    retry.add_argument("--stage", help="only rows that failed there, for example: caption")
    retry.add_argument("--type", help="only rows that failed so, for example: missing")
    _add_session(retry)
    estimate = command("estimate", _estimate, "what a recipe will cost and keep, from a sample")
    estimate.add_argument("--rows", type=int, default=500, help="size of it (default: %(default)s)")
    estimate.add_argument("--seed", type=int, default=0, help="which sample (default: %(default)s)")
    for price in ("cpu-hour", "gpu-hour", "million-tokens"):
        what = f"of a {price.replace('-', ' ')}".replace("a million", "a million VLM")
        estimate.add_argument(f"--{price}-price", type=float, default=0.0, help=f"price {what}")
    _add_session(estimate)
    train = command("train", _train, "train the decoder on the packs")
    train.epilog = "RECIPE is a whole job's, or the trainer's own: then it names `packs`."
    command("train-tokenizer", _train_tokenizer, "train a visual tokenizer on photographs")
    command("status", _status, "which phases are done, stale or missing, and why")
    stats = command("stats", _stats, "funnel and distributions of a dataset")
    stats.add_argument(
        "--what-if",
        action="append",
        metavar="RULE",
        help="the funnel under another rule, for example: 'aesthetic > 5', 'top 0.3 by clarity', "
        "'NAME: condition', 'NAME:' to leave it out; may be repeated",
    )
    report = command("report", _report, "one HTML page: funnel, cuts, pictures")
    report.add_argument("--output", help="where to write it (default: report.html, workspace)")
    codes = command(
        "inspect-codes", _inspect_codes, "images drawn again from their codes, as a page"
    )
    codes.usage = "nextscale inspect-codes [options] recipe [ID ...] [key=value ...]"
    codes.epilog = "An ID begins the id of a document or a sample; without any, images are drawn."
    codes.set_defaults(takes_ids=True)
    codes.add_argument("--pictures", type=int, default=12, help="1 to 200 (default: %(default)s)")
    codes.add_argument("--seed", type=int, default=0, help="which ones (default: %(default)s)")
    codes.add_argument(
        "--replica", type=int, default=0, help="of the tokens (default: %(default)s)"
    )
    codes.add_argument("--output", help="the page (default: inspect-codes.html, workspace)")
    codes.add_argument("--png", metavar="PATH", help="also one plain picture, there")
    simulate = command("simulate", _simulate, "packing strategies on N ranks", recipe=False)
    simulate.add_argument(
        "source", help="packs of the workspace (demo-256), or a .parquet or .csv of lengths"
    )
    simulate.add_argument("-w", "--workspace", default="workspace/demo", help=WORKSPACE_HELP)
    simulate.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 256, 1024], metavar="N")
    simulate.add_argument("--micro-steps", type=int, default=1, metavar="M", help="of a step")
    simulate.add_argument("--zero", type=int, default=2, help="3: ranks wait every micro-step")
    simulate.add_argument(
        "--token-cap-ratio",
        type=float,
        nargs="+",
        default=[1.0, 1.1, 1.25],
        metavar="R",
        help="longest pack over tokens per pack, under fixed_compute",
    )
    simulate.add_argument("--tokens-per-pack", type=int, help="default: as the packs, or 20480")
    simulate.add_argument("--batch-size", type=int, default=4, help="of batch_padding")
    simulate.add_argument(
        "--preset", default="qwen2.5-7b", help="model shape: qwen2.5-0.5b to -72b"
    )
    simulate.add_argument(
        "--no-checkpointing", action="store_true", help="layers are not computed twice"
    )
    simulate.add_argument("--tflops", type=float, default=0.0, help="of a rank, for tokens/s")
    simulate.add_argument("--seed", type=int, default=0, help="order of documents")
    simulate.add_argument("--output", help="page (default: simulation.html, workspace)")
    export = command("export", _export, "a trained model as a folder of safetensors", recipe=False)
    export.add_argument("checkpoint", help="a step-... folder of a run's checkpoints")
    export.add_argument("folder", help="where to write it")
    export.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    sample = command("sample", _sample, "pictures of a prompt from a trained model", recipe=False)
    sample.add_argument("model", help="an exported model's folder")
    sample.add_argument("prompt", help='what to draw; "" for whatever the model likes')
    sample.add_argument("--pictures", type=int, default=1, help="default: %(default)s")
    sample.add_argument("--level", type=int, default=256, help="256, 512 or 1024")
    sample.add_argument("--aspect", default="1:1", metavar="W:H", help="default: %(default)s")
    sample.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest codes")
    sample.add_argument("--top-k", type=int, default=0, help="codes to draw from (default: all)")
    sample.add_argument("--top-p", type=float, default=1.0, help="share of the chances to keep")
    sample.add_argument("--guidance", type=float, default=1.0, help="towards the prompt; 1: none")
    sample.add_argument("--seed", type=int, default=0, help="of the first picture")
    sample.add_argument("--tokenizer", default="", help="visual tokenizer (default: the carried)")
    sample.add_argument("--vocabulary", default="", help="of texts (default: Qwen2.5's)")
    sample.add_argument("--device", default="", help="cpu or cuda (default: what is there)")
    sample.add_argument("--output", default="samples", help="a folder (default: %(default)s)")
    sql = command("sql", _sql, "a DuckDB query over all tables of a workspace", recipe=False)
    sql.add_argument("query", help="for example: SELECT status, count(*) FROM decisions GROUP BY 1")
    sql.add_argument("-w", "--workspace", default="workspace/demo", help="default: %(default)s")
    return top


def _add_session(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--ray", metavar="ADDRESS", help="join a Ray cluster: auto or host:port")
    sub.add_argument("--num-cpus", type=int, help="CPUs of a session on this machine")


def _run(args: argparse.Namespace) -> None:
    from pipelines import whole_job

    whole_job.run(args.recipe, args.overrides, args.ray, args.num_cpus, strict=False)


def _curate(args: argparse.Namespace) -> None:
    from pipelines import whole_job

    whole_job.run(args.recipe, args.overrides, args.ray, args.num_cpus, last="curate")


def _tokenize(args: argparse.Namespace) -> None:
    from pipelines import whole_job

    whole_job.run(args.recipe, args.overrides, args.ray, args.num_cpus, last="tokenize")


def _pack(args: argparse.Namespace) -> None:
    from pipelines import whole_job

    whole_job.run(args.recipe, args.overrides, args.ray, args.num_cpus, last="pack")


def _retry(args: argparse.Namespace) -> None:
    from pipelines import retry
    from pipelines.job import Retry

    what = Retry(args.stage, args.type)
    retry.main(args.recipe, args.overrides, what, args.ray, args.num_cpus)


def _estimate(args: argparse.Namespace) -> None:
    from pipelines import estimate
    from pipelines.estimate_table import Prices

    prices = Prices(args.cpu_hour_price, args.gpu_hour_price, args.million_tokens_price)
    estimate.main(
        args.recipe, args.overrides, args.rows, args.seed, prices, args.ray, args.num_cpus
    )


def _train(args: argparse.Namespace) -> None:
    from infra import config
    from pipelines.recipe import recipe_path

    if "packs" in config.read(recipe_path(args.recipe)):
        from pipelines.train_packs import train_folder

        train_folder(recipe_path(args.recipe), args.overrides)
        return
    from pipelines import whole_job

    whole_job.train_only(args.recipe, args.overrides)


def _export(args: argparse.Namespace) -> None:
    import torch

    from trainer.export import export

    export(args.checkpoint, args.folder, getattr(torch, args.dtype))


def _sample(args: argparse.Namespace) -> None:
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


def _train_tokenizer(args: argparse.Namespace) -> None:
    from pipelines.recipe import recipe_path
    from tokenize_offline import training

    training.main(recipe_path(args.recipe), args.overrides)


def _status(args: argparse.Namespace) -> None:
    from pipelines import whole_job

    for state in whole_job.status(args.recipe, args.overrides):
        print(f"{state.state:<8} {state.table:<28} {state.why}")


def _stats(args: argparse.Namespace) -> None:
    from pipelines.whole_job import load

    recipe = load(args.recipe, args.overrides)
    if args.what_if:
        from pipelines.what_if import print_what_if

        print_what_if(recipe, args.what_if)
        return
    from pipelines.stats import print_stats

    print_stats(recipe)


def _report(args: argparse.Namespace) -> None:
    from pipelines.report import write_report
    from pipelines.whole_job import load

    print(write_report(load(args.recipe, args.overrides), args.output))


def _inspect_codes(args: argparse.Namespace) -> None:
    from pipelines.inspect_codes import inspect_codes
    from pipelines.whole_job import load

    ids = [word for word in args.overrides if "=" not in word]
    recipe = load(args.recipe, [word for word in args.overrides if "=" in word])
    lines = inspect_codes(
        recipe, ids, args.pictures, args.seed, args.replica, args.output, args.png
    )
    print("\n".join(lines))


def _simulate(args: argparse.Namespace) -> None:
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


def _sql(args: argparse.Namespace) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
