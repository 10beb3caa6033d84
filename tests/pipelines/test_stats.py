"""The funnel counts every sample once; distributions and topics say what the tables hold."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from infra import catalog
from infra.config import ConfigError
from infra.runs import TableRecord, save_record
from infra.storage import Storage
from pipelines import stats
from pipelines.decide import Decide
from pipelines.decided import decided
from pipelines.recipe import Recipe
from pipelines.rules import Rule


def test_every_sample_ends_once(curated: Recipe, mixed_photos: Path) -> None:
    steps = stats.funnel(curated.storage, curated.dataset)
    funnel = dict(steps)
    assert len(funnel) == len(steps)
    names = [name for name, _ in steps]
    images = [path for path in mixed_photos.iterdir() if path.suffix in (".png", ".jpg", ".webp")]
    assert steps[0] == ("seen", len(images))
    before = steps[1 : names.index("kept")]
    assert funnel["seen"] == sum(count for _, count in before) + funnel["kept"]
    failed = {name for name, _ in before if name.startswith("failed")}
    assert failed == {
        "failed index:bad_sidecar",
        "failed probe:truncated",
        "failed probe:unknown_format",
    }
    rejected = [name for name, _ in before if name.startswith("rejected")]
    assert rejected == ["rejected small", "rejected blurred", "rejected best", "rejected balance"]
    assert funnel["rejected small"] == 1
    later = {name: count for name, count in steps if " later " in name}
    assert later["rejected later documents:too_small_for_level"] == 1
    assert funnel["kept"] == funnel["documents"] + sum(later.values())
    assert later["failed later caption:no_caption"] >= 1


def test_tokens_and_packs_follow(curated: Recipe, write_tokens: Callable[[Recipe], None]) -> None:
    write_tokens(curated)
    funnel = dict(stats.funnel(curated.storage, curated.dataset))
    assert funnel["failed tokens/mixed-256 tokenize:text_too_long"] == 1
    left = funnel["documents"] - 1
    assert funnel["tokens mixed-256"] == sum(900 + 1 + i for i in range(left))
    assert funnel["packs mixed-256"] == 2
    assert list(funnel)[-1] == "packs mixed-256"


def test_frames_are_counted_and_what_they_reject(
    curated: Recipe, write_frames: Callable[..., TableRecord]
) -> None:
    kept = [
        row["sample_id"]
        for row in curated.storage.read_table(
            next(r for r in catalog.records(curated.storage) if r.table == "decisions/mixed").path(
                0
            )
        ).to_pylist()
        if row["status"] == "kept"
    ]
    few = {"stage": "frames", "type": "too_few_frames", "message": "none qualifies"}
    record = write_frames(curated, ["object", "static", "cut", "object"], {kept[0]: few})
    assert [one.table for one in stats.frames_of(curated.storage, "mixed")] == [record.table]
    steps = dict(stats.funnel(curated.storage, "mixed"))
    assert steps["frames mixed-256"] == 3 * (record.num_rows - 1)
    text = "\n".join(stats.stats_lines(curated))
    assert re.search(rf"object +{2 * (record.num_rows - 1)} +.* 100.0%", text)
    assert re.search(r"frames mixed-256 +\d+\n", text + "\n")  # no share of the samples
    # Until there are documents, frames say what is lost.
    assert "rejected later frames:too_few_frames" not in steps
    for table in ("documents/mixed", "captions/mixed"):
        curated.storage.remove(table)
    steps = dict(stats.funnel(curated.storage, "mixed"))
    assert steps["rejected later frames:too_few_frames"] == 1


def test_tables_of_several_levels_come_in_their_order(
    curated: Recipe, write_frames: Callable[..., TableRecord]
) -> None:
    record = write_frames(curated, ["object"])
    for name in ("mixed-1024", "mixed-512", "mixed-256-r1", "other-256", "mixed"):
        save_record(curated.storage, replace(record, table=f"frames/{name}", parts=()))
    found = [one.table for one in stats.frames_of(curated.storage, "mixed")]
    assert found == ["frames/mixed-256", "frames/mixed-512", "frames/mixed-1024"]


def test_missing_scores_have_a_step_of_their_own(
    recipe: Recipe, curate_here: Callable[[Recipe], None]
) -> None:
    rule = Rule(name="far", keep="nullif(width, 64) >= 1")
    recipe = replace(recipe, decide=Decide(rules=(rule,)))
    curate_here(recipe)
    steps = stats.funnel(recipe.storage, recipe.dataset)
    assert ("rejected far", 0) in steps
    assert ("rejected far:missing", 1) in steps


def test_distributions_are_those_of_the_scores(curated: Recipe) -> None:
    made = decided(curated.storage, curated.dataset, curated.sources)
    con = catalog.connect(curated.storage)
    found = {d.column: d for d in stats.distributions(con, made)}
    expected = "width height aspect file_bytes bytes_per_pixel orientation clarity border_share "
    expected += "background_share background_luma colourfulness entropy grey_share line_art"
    assert set(found) == set(expected.split())
    [(low, high)] = con.sql(
        "SELECT min(width), max(width) FROM scores_cheap WHERE error IS NULL"
    ).fetchall()
    assert (found["width"].low, found["width"].high) == (low, high)
    assert found["width"].missing == 0
    assert list(found["width"].quantiles) == sorted(found["width"].quantiles)


def test_topics_before_and_after_balancing(curated: Recipe) -> None:
    made = decided(curated.storage, curated.dataset, curated.sources)
    con = catalog.connect(curated.storage)
    counts = {t.topic: t for t in stats.topics(con, made)}
    assert set(counts) == {"PNG", "JPEG", "WEBP"}
    funnel = dict(stats.funnel(curated.storage, curated.dataset))
    assert sum(t.kept for t in counts.values()) == funnel["kept"]
    assert sum(t.passed - t.kept for t in counts.values()) == funnel["rejected balance"]
    assert max(t.kept for t in counts.values()) == 4


def test_topics_need_balancing_or_a_score(
    recipe: Recipe, curate_here: Callable[[Recipe], None]
) -> None:
    recipe = replace(recipe, decide=Decide())
    curate_here(recipe)
    made = decided(recipe.storage, recipe.dataset, recipe.sources)
    assert stats.topics(catalog.connect(recipe.storage), made) == []


def test_printed(curated: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    stats.print_stats(curated)
    text = capsys.readouterr().out
    assert "changed since" not in text
    for word in ("seen", "rejected small", "kept", "clarity", "~50%", "JPEG"):
        assert word in text
    stats.print_funnel(curated)
    assert capsys.readouterr().out.rstrip() in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_nothing_decided_yet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="decisions/photos is not there: run `nextscale curate`"):
        stats.funnel(Storage(str(tmp_path)), "photos")


def test_text_columns() -> None:
    assert stats.table(("a", "n"), [("x\ny", "1"), ("z", "22")]) == [
        "a     n",
        "x y   1",
        "z    22",
    ]
