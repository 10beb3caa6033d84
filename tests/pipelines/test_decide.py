"""Decisions against a plain Python reading of the rules, on random tables."""

import hashlib
import itertools
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
from pipelines.balance import Balance
from pipelines.decide import Decide, Decision, decide
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
    copies = dict.fromkeys((row["sample_id"] for row in kept), 1)
    if config.balance:
        copies |= balanced(kept, config.balance)
    told = []
    for row in rows:
        id_, failed = row["sample_id"], row not in fine
        reason = failures[id_][0] if failures[id_] else None
        if failed:
            reason = f"{row['failed']}:bad"
        elif not failures[id_] and not copies[id_]:
            reason = f"balance:{row['topic']}"
        status = "failed" if failed else "rejected" if reason else "kept"
        told.append(
            {
                "sample_id": id_,
                "status": status,
                "reason": reason,
                "failed_rules": [] if failed else failures[id_],
                "topic": row["topic"] if config.balance else None,
                "copies": copies[id_] if status == "kept" else 0,
            }
        )
    return sorted(told, key=lambda row: row["sample_id"])


def balanced(kept: list[Row], balance: Balance) -> dict[str, int]:
    """Copies of every row that passed and has a topic, read off the definition."""
    by_topic: dict[str, list[str]] = {}
    for row in kept:
        if row["topic"] is not None:
            by_topic.setdefault(row["topic"], []).append(row["sample_id"])
    drawn = {id_: uniform(id_, balance.seed) for ids in by_topic.values() for id_ in ids}
    by_topic = {t: sorted(ids, key=lambda id_: (drawn[id_], id_)) for t, ids in by_topic.items()}
    if balance.target:
        return targeted(by_topic, balance)
    rate = {topic: balance.keep_rates.get(topic, 1.0) for topic in by_topic}
    if balance.temperature is not None:
        left = {t: len(by_topic[t]) * rate[t] for t in by_topic if rate[t] > 0}
        share = {topic: n ** (1 / balance.temperature) / n for topic, n in left.items()}
        for topic in share:
            rate[topic] *= share[topic] / max(share.values())
    stay = []
    for topic, ids in by_topic.items():
        stay += [id_ for id_ in ids if drawn[id_] < rate[topic]][: balance.cap]
    return {id_: int(id_ in stay) for id_ in drawn}


def targeted(by_topic: dict[str, list[str]], balance: Balance) -> dict[str, int]:
    """The largest result is searched for, one size after the other."""
    others = sum(len(ids) for topic, ids in by_topic.items() if topic not in balance.target)
    rest = 1 - sum(Fraction(str(share)) for share in balance.target.values())
    weight = {
        topic: Fraction(str(balance.target[topic]))
        if topic in balance.target
        else rest * len(ids) / others
        for topic, ids in by_topic.items()
    }
    whole = sum(weight.values())
    total = 0
    while whole and (balance.total is None or total < balance.total):
        grown = {topic: share / whole * (total + 1) for topic, share in weight.items()}
        if any(grown[t] > balance.max_copies * len(by_topic[t]) for t in by_topic):
            break
        total += 1
    exact = {
        topic: share / whole * total if whole else Fraction(0) for topic, share in weight.items()
    }
    wanted = {topic: math.floor(number) for topic, number in exact.items()}
    for topic in sorted(exact, key=lambda topic: (-(exact[topic] % 1), topic)):
        wanted[topic] += sum(wanted.values()) < total
    copies: dict[str, int] = {}
    for topic, ids in by_topic.items():
        again_and_again = itertools.islice(itertools.cycle(ids), wanted[topic])
        copies |= dict.fromkeys(ids, 0) | Counter(again_and_again)
    return copies


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
TOPICS = st.sampled_from(["cats", "dogs", "o'hare", "x"])
SEEDS = st.integers(0, 3)
THINNED = st.builds(
    Balance,
    by=st.just("topic"),
    keep_rates=st.dictionaries(TOPICS, st.floats(0, 1)),
    temperature=st.none() | st.floats(1, 5),
    cap=st.none() | st.integers(1, 12),
    seed=SEEDS,
)
TARGETED = st.builds(
    Balance,
    target=st.dictionaries(TOPICS, st.sampled_from([0.0, 0.1, 0.25]), min_size=1),
    max_copies=st.integers(1, 4),
    total=st.none() | st.integers(1, 50),
    seed=SEEDS,
)
BALANCES = st.none() | THINNED | TARGETED


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


@pytest.mark.parametrize(
    "balance",
    [
        Balance(keep_rates={"cats": 0.8}, temperature=2.0, cap=5),
        Balance(target={"cats": 0.2, "dogs": 0.5}, max_copies=3),
    ],
)
def test_parts_do_not_matter(tmp_path: Path, balance: Balance) -> None:
    rows = {"a": make_rows(3, 60, "a"), "b": make_rows(3, 30, "b")}
    rules = (Rule(name="wide", keep="width >= 200"), Rule(name="best", top=0.8, by="clarity"))
    config = Decide(rules=rules, balance=balance)
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


def test_rule_names_are_unique() -> None:
    with pytest.raises(ValueError, match="`r` stands twice"):
        Decide(rules=(Rule(name="r", keep="true"), Rule(name="r", keep="false")))


def test_a_topic_that_no_row_has_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"a": make_rows(1, 40, "a")}
    decided(tmp_path, rows, Decide(balance=Balance(keep_rates={"cats": 0.5, "cars": 0.5})), 7)
    told = capsys.readouterr().err
    assert "balance names `cars`: no row that passed the rules of decisions/d has it" in told
    assert "`cats`" not in told
