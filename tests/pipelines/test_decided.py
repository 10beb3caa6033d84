"""Decisions are explained by the rules that made them, whatever the recipe says now."""

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
import pytest

from infra import catalog, runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.schema import DUPLICATES
from infra.storage import Storage
from pipelines.decide import Decide, Decision, decide, decisions_sql, prepare_cuts
from pipelines.decided import Decided, decided, rules
from pipelines.recipe import Recipe
from pipelines.rules import Rule
from pipelines.scored import ScoredPart


def test_rules_are_those_of_the_run(curated: Recipe) -> None:
    assert rules(curated.storage, curated.dataset) == curated.decide.rules
    other = replace(curated, decide=Decide(rules=(Rule(name="other", keep="width > 1"),)))
    made = decided(other.storage, other.dataset, other.sources)
    assert made.config == curated.decide
    assert not made.stale


def test_each_rule_sees_what_passed_the_earlier_ones(curated: Recipe) -> None:
    made = decided(curated.storage, curated.dataset, curated.sources)
    with catalog.connect(curated.storage) as con:
        seen = []
        for at in made.arrivals(con):
            [(arrived, passed)] = con.sql(
                f"SELECT count(*), count(*) FILTER (({at.failure}) IS NULL) FROM ({at.rows})"
            ).fetchall()
            seen.append((arrived, passed))
        [(reasons,)] = con.sql(
            "SELECT map_from_entries(list((reason, n))) FROM (SELECT reason, count(*) AS n "
            "FROM decisions WHERE status = 'rejected' GROUP BY reason)"
        ).fetchall()
    assert [left for _, left in seen[:-1]] == [arrived for arrived, _ in seen[1:]]
    for rule, (arrived, passed) in zip(curated.decide.rules, seen, strict=True):
        assert arrived - passed == reasons[rule.name]


def test_changed_scores_make_decisions_stale(
    curated: Recipe, score_here: Callable[[Recipe], None]
) -> None:
    cheap = replace(curated.cheap, clarity=replace(curated.cheap.clarity, short_side=256))
    score_here(replace(curated, cheap=cheap))
    assert decided(curated.storage, curated.dataset, curated.sources).stale


def test_rules_of_a_foreign_workspace_are_checked(curated: Recipe) -> None:
    made = decided(curated.storage, curated.dataset, curated.sources)
    bad = Rule(name="bad", keep="(SELECT true)")
    with (
        catalog.connect(curated.storage) as con,
        pytest.raises(ConfigError, match="rule `bad`"),
    ):
        replace(made, config=Decide(rules=(bad,))).arrivals(con)


def test_duplicates_and_captions_are_found_again(curated: Recipe) -> None:
    """Whatever the rules saw is seen by those who explain them, and by a what-if."""
    storage = curated.storage
    made = decided(storage, curated.dataset, curated.sources)
    duplicates = tuple(_duplicates(storage, made, kind) for kind in ("perceptual", "exact"))
    captions = runs.load_record(storage, "captions/mixed")
    parts = tuple(ScoredPart(p.place, p.groups, duplicates) for p in made.parts)
    rules_ = (Rule(name="single", keep="NOT exact_duplicate AND NOT perceptual_duplicate"),)
    first = decide(storage, Decision("mixed", parts, Decide(rules=rules_)))
    again = decided(storage, "mixed", curated.sources)
    assert again.parts == parts
    assert not again.stale
    later = tuple(replace(part, captions=captions) for part in parts)
    long = Decide(rules=(Rule(name="long", keep="length(text) > 20 AND NOT exact_duplicate"),))
    second = decide(storage, Decision("mixed", later, long, "caption_decisions"))
    inputs = [record.table for record in Decision("mixed", later, long).inputs]
    assert second.facts["inputs"] == inputs
    told = decided(storage, "mixed", curated.sources, "caption_decisions")
    assert (told.parts, told.config, told.stale) == (later, long, False)
    assert rules(storage, "mixed", "caption_decisions") == long.rules
    assert rules(storage, "mixed") == rules_
    with catalog.connect(storage, views=False) as con:
        for found, record in ((again, first), (told, second)):
            failures = prepare_cuts(con, storage, found.parts, found.config)
            sql = decisions_sql(storage, found.parts, found.config, failures)
            anew = con.sql(f"SELECT * FROM ({sql}) ORDER BY sample_id").fetchall()
            scan = catalog.scan(storage, record)
            assert anew == con.sql(f"SELECT * FROM {scan} ORDER BY sample_id").fetchall()
            assert {status for _, status, *_ in anew} == {"kept", "rejected", "failed"}
        assert {"exact_group", "exact_duplicate"} <= set(told.columns(con).names)


def _duplicates(storage: Storage, made: Decided, kind: str) -> TableRecord:
    """A table of duplicates in which every third row of a part goes with the first."""
    schema = pa.schema([field.remove_metadata() for field in DUPLICATES])
    written = []
    for number, part in enumerate(made.parts):
        ids = storage.read_table(part.place.samples.path(part.place.part))["sample_id"].to_pylist()
        copies = set(ids[3::3])
        rows = [(id_, ids[0] if id_ in copies else id_, id_ not in copies) for id_ in ids]
        columns = [list(column) for column in zip(*rows, strict=True)]
        file = f"{runs.version_of(kind)}/part-{number:05d}.parquet"
        table = pa.Table.from_arrays([pa.array(c) for c in columns], schema=schema)
        storage.write_part(f"duplicates/mixed/{kind}/{file}", table, DUPLICATES, "sample_id")
        written.append(Part(file, len(ids)))
    record = TableRecord(f"duplicates/mixed/{kind}", kind, kind, "sample_id", tuple(written))
    runs.save_record(storage, record)
    return record


def test_tables_of_fewer_parts_are_told(curated: Recipe) -> None:
    made = decided(curated.storage, "mixed", curated.sources)
    exact = _duplicates(curated.storage, made, "exact")
    parts = tuple(ScoredPart(p.place, p.groups, (exact,)) for p in made.parts)
    decide(curated.storage, Decision("mixed", parts, curated.decide))
    runs.save_record(curated.storage, replace(exact, parts=exact.parts[:1]))
    with pytest.raises(ConfigError, match="duplicates/mixed/exact is older than its samples"):
        decided(curated.storage, "mixed", curated.sources)


def test_without_a_run_record_the_rules_are_unknown(curated: Recipe) -> None:
    curated.storage.remove("runs")
    with pytest.raises(ConfigError, match="does not say how decisions/mixed was made"):
        decided(curated.storage, curated.dataset, curated.sources)


def test_missing_scores_are_told(curated: Recipe) -> None:
    curated.storage.remove("scores/some/cheap")
    with pytest.raises(ConfigError, match="scores/some/cheap is not there: run `nextscale curate`"):
        decided(curated.storage, curated.dataset, curated.sources)
