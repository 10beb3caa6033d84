"""``make demo``: the whole job on real photographs and clips, then what came of it.

python -m pipelines.demo [key=value ...]
"""

import json
import sys
from collections.abc import Sequence

import yaml

from infra import catalog
from infra.config import ConfigError
from infra.runs import load_record
from pipelines import whole_job
from pipelines.demo_clip import write_demo_clips
from pipelines.demo_source import write_demo_source
from pipelines.recipe import Recipe, recipe_path
from pipelines.report import write_report
from pipelines.stats import print_funnel
from pipelines.train_packs import losses

QUERIES = (
    "SELECT topic, status, count(*) FROM ledger GROUP BY ALL ORDER BY ALL",
    "SELECT key, aesthetic, clarity FROM scores ORDER BY aesthetic DESC NULLS LAST LIMIT 5",
    "SELECT reason, failed_message FROM ledger WHERE status = 'failed'",
)


def main(overrides: Sequence[str]) -> int:
    try:
        recipe = whole_job.load("demo", overrides)
        write_demo_source(recipe.sources[0].path)
        whole_job.run("demo", overrides)
        page = write_report(recipe)
        clips = run_clips(recipe)
    except ConfigError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    tell(recipe, str(page))
    print(f"clips     {write_report(clips)}")
    return 0


def run_clips(pictures: Recipe) -> Recipe:
    """The demo's clips up to packs, in a workspace beside that of the pictures."""
    [source] = yaml.safe_load(recipe_path("demo_clips").read_text(encoding="utf-8"))["sources"]
    source["path"] = f"{pictures.sources[0].path}-clips"
    overrides = [f"workspace={pictures.workspace}-clips", f"sources={json.dumps([source])}"]
    write_demo_clips(source["path"])
    return whole_job.run("demo_clips", overrides, last="pack")


def tell(recipe: Recipe, page: str) -> None:
    """Print the funnel, tokens, packs, losses, queries to try and the report's path."""
    print_funnel(recipe)
    con = catalog.connect(recipe.storage)
    [(documents, tokens)] = con.sql(
        "SELECT count(*), sum(num_tokens) FROM tokens WHERE error IS NULL"
    ).fetchall()
    print(f"\ntokens    {tokens:,} in {documents:,} documents")
    packs = load_record(recipe.storage, f"packs/{recipe.tokens_name}")
    assert packs is not None
    facts = packs.facts
    [(count, fill, shards)] = con.sql(
        f"SELECT count(*), avg(num_tokens) / {facts['token_cap']}, count(DISTINCT shard) FROM packs"
    ).fetchall()
    print(
        f"packs     {count} (lower bound {facts['lower_bound']}) in {shards} shards, {fill:.1%} of "
        f"the token cap filled, cost max/mean {facts['imbalance']:.3f}"
    )
    for line in losses(recipe, packs):
        print(line)
    print("\ntry")
    for query in QUERIES:
        print(f'  .venv/bin/nextscale sql "{query}"')
    print(f"\nreport    {page}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
