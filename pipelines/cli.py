"""The command line: ``nextscale COMMAND``. Sub-commands import what they need when they run."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from infra.config import ConfigError
from pipelines import commands

WORKSPACE_HELP = "default: %(default)s"
Command = Callable[..., argparse.ArgumentParser]
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
    """All commands with their arguments."""
    top = argparse.ArgumentParser(prog="nextscale", description="From raw media to trained steps.")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, recipe: bool = True
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if recipe:
            sub.add_argument("recipe", help=RECIPE_HELP)
            sub.add_argument("overrides", nargs="*", metavar="key=value", help="change the recipe")
        return sub

    _add_jobs(command)
    _add_models(command)
    _add_looks(command)
    _add_packs(command)
    return top


def _add_jobs(command: Command) -> None:
    for name, run, text in (
        ("run", commands.run, "all phases that a recipe has, from sources to trained steps"),
        ("curate", commands.curate, "sources -> scores -> decisions -> captions -> documents"),
        ("tokenize", commands.tokenize, "documents -> text tokens and visual codes"),
        ("pack", commands.pack, "tokens -> balanced packs"),
        ("mix", commands.mix, "tokens of several datasets -> balanced packs, in shares of tokens"),
    ):
        _add_session(command(name, run, text))
    retry = command("retry", commands.retry, "compute failed rows again, and what depends on them")
    retry.add_argument("--stage", help="only rows that failed there, for example: caption")
    retry.add_argument("--type", help="only rows that failed so, for example: missing")
    _add_session(retry)
    estimate = command(
        "estimate", commands.estimate, "what a recipe will cost and keep, from a sample"
    )
    estimate.add_argument("--rows", type=int, default=500, help="size of it (default: %(default)s)")
    estimate.add_argument("--seed", type=int, default=0, help="which sample (default: %(default)s)")
    for price in ("cpu-hour", "gpu-hour", "million-tokens"):
        what = f"of a {price.replace('-', ' ')}".replace("a million", "a million VLM")
        estimate.add_argument(f"--{price}-price", type=float, default=0.0, help=f"price {what}")
    _add_session(estimate)


def _add_models(command: Command) -> None:
    train = command("train", commands.train, "train the decoder on the packs")
    train.epilog = "RECIPE is a whole job's, or the trainer's own: then it names `packs`."
    command("train-tokenizer", commands.train_tokenizer, "train a visual tokenizer on photographs")
    export = command(
        "export", commands.export, "a trained model as a folder of safetensors", recipe=False
    )
    export.add_argument("checkpoint", help="a step-... folder of a run's checkpoints")
    export.add_argument("folder", help="where to write it")
    export.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    sample = command(
        "sample", commands.sample, "pictures of a prompt from a trained model", recipe=False
    )
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


def _add_looks(command: Command) -> None:
    command("status", commands.status, "which phases are done, stale or missing, and why")
    stats = command("stats", commands.stats, "funnel and distributions of a dataset")
    stats.add_argument(
        "--what-if",
        action="append",
        metavar="RULE",
        help="the funnel under another rule, for example: 'aesthetic > 5', 'top 0.3 by clarity', "
        "'NAME: condition', 'NAME:' to leave it out; may be repeated",
    )
    report = command("report", commands.report, "one HTML page: funnel, cuts, pictures")
    report.add_argument("--output", help="where to write it (default: report.html, workspace)")
    codes = command(
        "inspect-codes", commands.inspect_codes, "images drawn again from their codes, as a page"
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
    sql = command(
        "sql", commands.sql, "a DuckDB query over all tables of a workspace", recipe=False
    )
    sql.add_argument("query", help="for example: SELECT status, count(*) FROM decisions GROUP BY 1")
    sql.add_argument("-w", "--workspace", default="workspace/demo", help="default: %(default)s")


def _add_packs(command: Command) -> None:
    simulate = command("simulate", commands.simulate, "packing strategies on N ranks", recipe=False)
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
    verify = command("verify", commands.verify, "are packs whole? or: what differs", recipe=False)
    verify.usage = "nextscale verify [options] PACKS | A B"
    verify.add_argument("names", nargs="+", metavar="NAME", help="packs (demo-256), or two tables")
    verify.add_argument("-w", "--workspace", default="workspace/demo", help=WORKSPACE_HELP)
    _add_session(verify)
    inspect = command(
        "inspect", commands.inspect, "one pack as a page: content, mask, cost", recipe=False
    )
    inspect.add_argument("packs", help="packs of the workspace, for example: demo-256")
    inspect.add_argument("number", type=int, help="the pack, from 0")
    inspect.add_argument("-w", "--workspace", default="workspace/demo", help=WORKSPACE_HELP)
    inspect.add_argument("--output", help="page (default: inspect-PACKS-NUMBER.html, workspace)")
    inspect.add_argument("--tokenizer", metavar="PATH", help="of the codes, if no run names it")
    inspect.add_argument("--vocabulary", metavar="PATH", help="of the text ids, likewise")
    what = "what tokens, pairs and targets take, measured"
    calibrate = command("calibrate", commands.calibrate, what, recipe=False)
    calibrate.add_argument("packs", help="packs of the workspace (demo-256), or a folder of packs")
    calibrate.add_argument("overrides", nargs="*", metavar="key=value", help="change the recipe")
    calibrate.add_argument("-w", "--workspace", default="workspace/demo", help=WORKSPACE_HELP)
    calibrate.add_argument("--recipe", help="with a train section, or the trainer's own")
    calibrate.add_argument("--packs-measured", type=int, default=32, help="default: %(default)s")
    calibrate.add_argument("--repeats", type=int, default=5, help="of each (default: %(default)s)")
    calibrate.add_argument("--output", help="default: calibration.json, workspace")


def _add_session(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--ray", metavar="ADDRESS", help="join a Ray cluster: auto or host:port")
    sub.add_argument("--num-cpus", type=int, help="CPUs of a session on this machine")


if __name__ == "__main__":
    sys.exit(main())
