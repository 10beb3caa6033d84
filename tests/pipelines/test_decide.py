"""Decisions against a plain Python reading of the rules, on random tables."""

import hashlib
import math
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.runs import Part, TableRecord, load_record
from infra.schema import DECISIONS, ERROR, SAMPLES, sample_id, uniform
from infra.storage import Storage
from pipelines.decide import Balance, Decide, Decision, decide
from pipelines.inputs import dataset_parts
from pipelines.rules import Rule
from pipelines.scored import ScoredPart
from pipelines.source import Source

CHEAP = pa.schema(
    [("sample_id", pa.string()), ("width", pa.int32()), ("clarity", pa.float32()), ERROR]
)
MODELS = pa.schema(
    [("sample_id", pa.string()), ("topic", pa.string()), ("beauty", pa.float64()), ERROR]
)
Row = dict[str, Any]


def make_rows(seed: int, count: int, source: str) -> list[Row]:
    """Rows with few distinct values (ties), nulls, failures of each group and rows it never saw."""
    draw = random.Random(f"{seed} {source}")
    rows = []
    for number in range(count):
        failed = draw.choices(["", "samples", "cheap", "models", "unseen"], [20, 1, 1, 1, 3])[0]
        row: Row = {"sample_id": sample_id(source, str(number)), "source": source, "failed": failed}
        row |= dict.fromkeys(("width", "clarity", "topic", "beauty"))
        if failed not in ("samples", "cheap"):
            row["width"] = draw.choice([100, 200, 300, 400, None])
            row["clarity"] = draw.choice([0.0, 0.25, 0.5, 0.75, 1.0, None])
            if failed not in ("models", "unseen"):
                row["topic"] = draw.choice(["cats", "cats", "cats", "dogs", "o'hare", None])
                row["beauty"] = draw.choice([1.5, 2.5, 3.5, -1.0, None])
        rows.append(row)
    return rows


def error(row: Row, group: str) -> Row | None:
    return {"stage": group, "type": "bad", "message": "m"} if row["failed"] == group else None


def store(storage: Storage, rows: list[Row], source: str, per_part: int) -> list[TableRecord]:
    """The tables of a source as phases leave them."""
    records = []
    empty = dict.fromkeys(SAMPLES.names)
    for table, schema in (
        (f"samples/{source}", SAMPLES),
        (f"scores/{source}/cheap", CHEAP),
        (f"scores/{source}/models", MODELS),
    ):
        group = table.rpartition("/")[2] if table.startswith("scores") else "samples"
        parts = []
        for number, start in enumerate(range(0, len(rows), per_part)):
            here = rows[start : start + per_part]
            if group == "models":
                here = [row for row in here if row["failed"] not in ("samples", "cheap", "unseen")]
            full = [empty | row | {"error": error(row, group)} for row in here]
            bare = pa.schema([field.remove_metadata() for field in schema])
            cut = [{name: row[name] for name in schema.names} for row in full]
            data = pa.Table.from_pylist(cut, schema=bare)
            file = f"v-1/part-{number:05d}.parquet"
            storage.write_part(f"{table}/{file}", data, schema, "sample_id")
            parts.append(Part(file, len(data)))
        spec = hashlib.md5(repr((table, rows)).encode()).hexdigest()
        records.append(TableRecord(table, spec, spec, "sample_id", tuple(parts)))
    return records


def decided(folder: Path, rows: dict[str, list[Row]], config: Decide, per_part: int) -> list[Row]:
    """What `decide` writes, sorted by id."""
    storage = Storage(str(folder))
    sources, samples, groups = [], [], {}
    for name, here in rows.items():
        first, *others = store(storage, here, name, per_part)
        sources.append(Source(name=name, kind="folder", path="x"))
        samples.append(first)
        groups[name] = tuple(others)
    places = dataset_parts(tuple(sources), tuple(samples))
    scored = tuple(ScoredPart(place, groups[place.source.name]) for place in places)
    record = decide(storage, Decision("d", scored, config))
    assert load_record(storage, "decisions/d") == record
    tables = [storage.read_table(record.path(part)) for part in range(len(record.parts))]
    assert all(table.column_names == DECISIONS.names for table in tables)
    assert [part.num_rows for part in record.parts] == [len(table) for table in tables]
    found = pa.concat_tables(tables).to_pylist()
    assert record.num_failed == sum(row["status"] == "failed" for row in found)
    return sorted(found, key=lambda row: row["sample_id"])


VALUES = {
    "width >= 200": lambda r: None if r["width"] is None else r["width"] >= 200,
    "beauty > 0 or clarity > 0.5": lambda r: either(r["beauty"], 0, r["clarity"], 0.5),
    "topic is null or topic <> 'dogs'": lambda r: r["topic"] != "dogs",
    "clarity": lambda r: r["clarity"],
    "beauty - clarity": lambda r: (
        None if None in (r["beauty"], r["clarity"]) else r["beauty"] - r["clarity"]
    ),
}


def either(a: float | None, a_min: float, b: float | None, b_min: float) -> bool | None:
    if (a is not None and a > a_min) or (b is not None and b > b_min):
        return True
    return None if a is None or b is None else False


def expected(rows: list[Row], config: Decide) -> list[Row]:
    """The rules as they are meant, read row by row."""
    fine = [row for row in rows if row["failed"] not in ("samples", "cheap", "models")]
    failures: dict[str, list[str]] = {row["sample_id"]: [] for row in rows}
    for rule in config.rules:
        value = {row["sample_id"]: VALUES[rule.expression](row) for row in rows}
        if rule.top is not None:
            passed = [
                row["sample_id"]
                for row in fine
                if not failures[row["sample_id"]] and value[row["sample_id"]] is not None
            ]
            best = sorted(passed, key=lambda id_: (-value[id_], id_))
            best = best[: max(math.ceil(Fraction(str(rule.top)) * len(best)), 1)]
            cut = (-value[best[-1]], best[-1]) if best else (-math.inf, "")
            # A row that failed before is told how it stands to the same cut.
            value |= {i: (-v, i) <= cut for i, v in value.items() if v is not None}
        for id_, passes in value.items():
            if passes is None:
                failures[id_].append(f"{rule.name}:missing")
            elif not passes:
                failures[id_].append(rule.name)
    kept = [row for row in fine if not failures[row["sample_id"]]]
    over = balanced_away(kept, config.balance) if config.balance else set()
    told = []
    for row in rows:
        id_, failed = row["sample_id"], row not in fine
        reason = failures[id_][0] if failures[id_] else None
        if failed:
            reason = f"{row['failed']}:bad"
        elif not failures[id_] and id_ in over:
            reason = f"balance:{row['topic']}"
        status = "failed" if failed else "rejected" if reason else "kept"
        told.append(
            {
                "sample_id": id_,
                "status": status,
                "reason": reason,
                "failed_rules": [] if failed else failures[id_],
                "topic": row["topic"] if config.balance else None,
                "copies": int(status == "kept"),
            }
        )
    return sorted(told, key=lambda row: row["sample_id"])


def balanced_away(kept: list[Row], balance: Balance) -> set[str]:
    counts = Counter(row["topic"] for row in kept if row["topic"] is not None)
    rate = {topic: balance.keep_rates.get(topic, 1.0) for topic in counts}
    if balance.temperature is not None:
        left = {topic: counts[topic] * rate[topic] for topic in counts if rate[topic] > 0}
        share = {topic: n ** (1 / balance.temperature) / n for topic, n in left.items()}
        for topic in share:
            rate[topic] *= share[topic] / max(share.values())
    away = set()
    for topic in counts:
        here = [row["sample_id"] for row in kept if row["topic"] == topic]
        drawn = {id_: uniform(id_, balance.seed) for id_ in here}
        stay = [id_ for id_ in here if drawn[id_] < rate[topic]]
        if balance.cap is not None:
            stay = sorted(stay, key=lambda id_: (drawn[id_], id_))[: balance.cap]
        away |= set(here) - set(stay)
    return away


RULES = st.lists(
    st.sampled_from(
        [
            ("width >= 200", None),
            ("beauty > 0 or clarity > 0.5", None),
            ("topic is null or topic <> 'dogs'", None),
            ("clarity", 0.5),
            ("clarity", 0.07),
            ("beauty - clarity", 0.7),
            ("beauty - clarity", 1.0),
        ]
    ),
    max_size=4,
)
BALANCES = st.none() | st.builds(
    Balance,
    by=st.just("topic"),
    keep_rates=st.dictionaries(st.sampled_from(["cats", "o'hare", "x"]), st.floats(0, 1)),
    temperature=st.none() | st.floats(1, 5),
    cap=st.none() | st.integers(1, 12),
    seed=st.integers(0, 3),
)


@given(RULES, BALANCES, st.integers(0, 10**6), st.integers(0, 60), st.sampled_from([7, 25, 100]))
@settings(max_examples=60, deadline=None)
def test_against_plain_python(
    tmp_path_factory: pytest.TempPathFactory,
    rules: list[tuple[str, float | None]],
    balance: Balance | None,
    seed: int,
    count: int,
    per_part: int,
) -> None:
    config = Decide(
        rules=tuple(
            Rule(name=f"it's {i}", keep=text)
            if top is None
            else Rule(name=f"{i}", top=top, by=text)
            for i, (text, top) in enumerate(rules)
        ),
        balance=balance,
    )
    rows = {"a": make_rows(seed, count, "a"), "b": make_rows(seed, count // 2 + 1, "b")}
    folder = tmp_path_factory.mktemp("decide")
    assert decided(folder, rows, config, per_part) == expected([*rows["a"], *rows["b"]], config)


def test_parts_do_not_matter(tmp_path: Path) -> None:
    rows = {"a": make_rows(3, 60, "a"), "b": make_rows(3, 30, "b")}
    config = Decide(
        rules=(Rule(name="wide", keep="width >= 200"), Rule(name="best", top=0.5, by="clarity")),
        balance=Balance(keep_rates={"cats": 0.8}, temperature=2.0, cap=5),
    )
    one = decided(tmp_path / "one", rows, config, 1000)
    assert one == decided(tmp_path / "many", rows, config, 4)
    assert {row["status"] for row in one} == {"kept", "rejected", "failed"}


def test_all_equal_scores_are_cut_by_id(tmp_path: Path) -> None:
    rows = [
        row | {"clarity": 0.5, "failed": "", "width": 300, "topic": "cats", "beauty": 1.5}
        for row in make_rows(0, 40, "a")
    ]
    config = Decide(rules=(Rule(name="best", top=0.07, by="clarity"),))
    found = decided(tmp_path, {"a": rows}, config, 7)
    assert [row["status"] for row in found] == ["kept"] * 3 + ["rejected"] * 37


def test_a_quantile_of_nothing(tmp_path: Path) -> None:
    rules = (
        Rule(name="none", keep="width > 10000"),
        Rule(name="best", top=0.5, by="clarity"),
        Rule(name="more", top=0.5, by="beauty"),
    )
    rows = {"a": make_rows(0, 20, "a")}
    found = decided(tmp_path, rows, Decide(rules=rules, balance=Balance(cap=1)), 7)
    assert {row["status"] for row in found} <= {"rejected", "failed"}


def test_rows_on_which_a_rule_fails_are_missing_it(tmp_path: Path) -> None:
    """Overflow and casts depend on the row: they must not stop a run after days of scoring."""
    rows = {"a": make_rows(0, 40, "a")}
    rules = (
        Rule(name="area", keep="width * 100000000 > 0"),
        Rule(name="number", keep="topic::integer > 3"),
        Rule(name="best", top=0.5, by="width * 100000000"),
    )
    found = decided(tmp_path, rows, Decide(rules=rules), 7)
    told = {name for row in found for name in row["failed_rules"]}
    assert {"area:missing", "number:missing", "best:missing"} <= told
    assert {row["status"] for row in found} == {"rejected", "failed"}


def test_up_to_date_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"a": make_rows(1, 40, "a")}
    config = Decide(rules=(Rule(name="best", top=0.5, by="clarity"),))
    first = decided(tmp_path, rows, config, 7)
    storage = Storage(str(tmp_path))
    files = {path: storage.read(path) for path, *_ in storage.find("decisions")}
    capsys.readouterr()
    assert decided(tmp_path, rows, config, 7) == first
    assert "up to date" in capsys.readouterr().err
    # Killed before the record was written: what is there is kept, the rest is made.
    storage.remove("decisions/d/_table.json")
    storage.remove(next(path for path in files if path.endswith("part-00002.parquet")))
    assert decided(tmp_path, rows, config, 7) == first
    assert {path: storage.read(path) for path, *_ in storage.find("decisions")} == files


def test_on_s3(s3: str) -> None:
    rows = {"a": make_rows(1, 20, "a")}
    config = Decide(rules=(Rule(name="best", top=0.5, by="clarity"),), balance=Balance(cap=2))
    storage = Storage(s3 + "/ws")
    first, *others = store(storage, rows["a"], "a", 7)
    [*places] = dataset_parts((Source(name="a", kind="folder", path="x"),), (first,))
    scored = tuple(ScoredPart(place, tuple(others)) for place in places)
    record = decide(storage, Decision("d", scored, config))
    tables = [storage.read_table(record.path(part)) for part in range(3)]
    found = sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: row["sample_id"])
    assert found == expected(rows["a"], config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep_rates": {"a": 1.5}}, "keep_rates: a is 1.5"),
        ({"temperature": 0.5}, "temperature is 0.5"),
        ({"cap": 0}, "cap is 0"),
    ],
)
def test_impossible_balances(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Balance(**values)


def test_rule_names_are_unique() -> None:
    with pytest.raises(ValueError, match="`r` stands twice"):
        Decide(rules=(Rule(name="r", keep="true"), Rule(name="r", keep="false")))
