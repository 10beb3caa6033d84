"""What-if: changes of rules are read as they are meant, and counted as curating would count."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from infra import catalog
from infra.config import ConfigError
from pipelines import stats
from pipelines.balance import Balance
from pipelines.decide import Decide, Decision, decide
from pipelines.decided import decided
from pipelines.recipe import Recipe
from pipelines.rules import Rule
from pipelines.what_if import changed, outcome, outcome_now, print_what_if, what_if_lines

COLUMNS = pa.schema(
    [("width", pa.int32()), ("clarity", pa.float32()), ("aspect", pa.float64()), ("b", pa.string())]
)
CONFIG = Decide(
    rules=(
        Rule(name="it's small", keep="width >= 200"),
        Rule(name="both", keep="clarity > 0.5 AND aspect BETWEEN 0.2 AND 5"),
        Rule(name="best", top=0.5, by="clarity"),
    ),
    balance=Balance(by="b", cap=2),
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["width > 300"], ["it's small: width > 300", None, None]),
        (["Width > 300"], ["it's small: Width > 300", None, None]),
        (["300 < width"], ["it's small: 300 < width", None, None]),
        (["clarity > 0.7"], [None, "both: (clarity > 0.7) AND (aspect BETWEEN 0.2 AND 5)", None]),
        (
            ["clarity > 0.7 AND clarity < 0.9 AND aspect > 1"],
            [None, "both: (clarity > 0.7) AND (clarity < 0.9) AND (aspect > 1)", None],
        ),
        (["top 0.3 by clarity"], [None, None, "best: top 0.3 by clarity"]),
        (["TOP 0.3 by  width"], [None, None, None, "what_if: top 0.3 by width"]),
        (["best: top 0.3 by width"], [None, None, "best: top 0.3 by width"]),
        (["best: clarity > 0.9"], [None, None, "best: clarity > 0.9"]),
        (["both:"], [None, "", None]),
        (["it's small: width > 1"], ["it's small: width > 1", None, None]),
        (["new one: b = 'a:b'"], [None, None, None, "new one: b = 'a:b'"]),
        (["b = 'a:b'"], [None, None, None, "what_if: b = 'a:b'"]),
        (["clarity::DOUBLE > 0.5"], [None, None, None, "what_if: clarity::DOUBLE > 0.5"]),
        (["b = 'x'", "b = 'y'"], [None] * 3 + ["what_if: b = 'x'", "what_if_2: b = 'y'"]),
        (["width > 1 OR aspect > 1"], [None] * 3 + ["what_if: width > 1 OR aspect > 1"]),
        (["both:", "clarity > 0.1"], [None, "", None, "what_if: clarity > 0.1"]),
    ],
)
def test_changes(changes: list[str], expected: list[str | None]) -> None:
    """None is the rule as it was; nothing, no rule."""
    made = changed(CONFIG, changes, COLUMNS)
    made.check(COLUMNS)
    found = [
        f"{r.name}: {r.keep}" if r.top is None else f"{r.name}: top {r.top} by {r.by}"
        for r in made.rules
    ]
    old = ["it's small: width >= 200", f"both: {CONFIG.rules[1].keep}", "best: top 0.5 by clarity"]
    meant = [old[n] if text is None else text for n, text in enumerate(expected)]
    assert found == [text for text in meant if text]
    assert made.balance == CONFIG.balance


def test_without_balancing() -> None:
    assert changed(CONFIG, ["balance:"], COLUMNS) == replace(CONFIG, balance=None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("nope:", "no rule `nope`: there are it's small, both, best"),
        ("widht > 5", "unknown column `widht`: did you mean `width`"),
        ("both: widht > 5", "rule `both`: unknown column"),
        ("top 3 by clarity", "top is 3.0, expected a share"),
        ("top nan by clarity", "top is nan, expected a share"),
        ("top x by clarity", "could not convert"),
        ("", "no SQL expression"),
        ("balance: width > 1", "must not be empty, hold `:` or be `balance`"),
        ("width + 1", "expected a condition"),
        ("width > 1; SELECT 2", "more than one statement"),
        ("exists (SELECT 1)", "which rules may not"),
        ("'" * 5_000, "write several rules"),
    ],
)
def test_mistakes_are_one_line(change: str, told: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as error:
        changed(CONFIG, [change], COLUMNS)
    assert told in str(error.value)


CAP = Balance(by="format", cap=4)
RATES = Balance(by="format", keep_rates={"PNG": 0.5}, temperature=2.0)
TARGET = Balance(by="format", target={"JPEG": 0.8, "PNG": 0.1}, max_copies=3)


@pytest.mark.parametrize(
    ("balance", "changes"),
    [
        (CAP, []),
        (CAP, ["missing: nullif(width, 64) > 1", "best:"]),
        (CAP, ["balance:"]),
        (CAP, ["blurred: false"]),
        (RATES, ["small:", "top 0.4 by width"]),
        (TARGET, ["clarity > 0.8"]),
        (TARGET, ["format = 'PNG' OR clarity > 0.7"]),
    ],
)
def test_the_numbers_are_those_of_deciding(
    curated: Recipe, balance: Balance, changes: list[str]
) -> None:
    storage, dataset = curated.storage, curated.dataset
    made = decided(storage, dataset, curated.sources)
    before = sorted(Path(curated.workspace).rglob("*"))
    with catalog.connect(storage, views=False) as con:
        config = changed(replace(made.config, balance=balance), changes, made.columns(con))
        found = outcome(con, made, config)
    assert sorted(Path(curated.workspace).rglob("*")) == before
    record = decide(storage, Decision(dataset, made.parts, config))
    real = stats.funnel(storage, dataset)
    real = real[: [name for name, _ in real].index("kept") + 1]
    assert [step for step in found.steps(config.rules) if step[0] != "with copies"] == real
    there = decided(storage, dataset, curated.sources)
    assert not there.stale
    with catalog.connect(storage, views=False) as con:
        assert outcome_now(con, there) == found
        if config.balance is not None:
            topics = {t.topic: (t.passed, t.kept) for t in stats.topics(con, there)}
            assert topics == {t: (found.passed[t], found.kept[t]) for t in found.passed}
        scan = catalog.scan(storage, record)
        [(copies,)] = con.execute(f"SELECT sum(copies) FROM {scan}").fetchall()
    assert copies == found.copies.total()


def test_printed(curated: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    print_what_if(curated, ["clarity > 0.8", "late: width > 1", "small:"])
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "best" not in text.partition("step")[0]  # only rules that change
    assert "late - width > 1" in lines
    assert "rejected small 1 - -1" in lines
    assert any(line.startswith("JPEG ") for line in lines)
    names = [line.partition("  ")[0] for line in text.splitlines()]
    order = ["rejected small", "rejected blurred", "rejected best", "rejected late", "kept"]
    assert [name for name in names if name in order] == order


def test_copies_are_shown_where_there_are(curated: Recipe) -> None:
    balance = Balance(by="format", target={"WEBP": 0.5, "JPEG": 0.5}, max_copies=4)
    decide_here = replace(curated.decide, balance=balance)
    made = decided(curated.storage, curated.dataset, curated.sources)
    decide(curated.storage, Decision(curated.dataset, made.parts, decide_here))
    text = "\n".join(what_if_lines(curated, ["clarity > 0.2"]))
    assert "with copies now" in text


def test_changed_scores_are_told(curated: Recipe, score_here: Callable[[Recipe], None]) -> None:
    cheap = replace(curated.cheap, clarity=replace(curated.cheap.clarity, short_side=256))
    score_here(replace(curated, cheap=cheap))
    lines = list(what_if_lines(curated, ["clarity > 0.2"]))
    assert stats.STALE in lines


def test_without_topics(recipe: Recipe, curate_here: Callable[[Recipe], None]) -> None:
    recipe = replace(recipe, decide=Decide())
    curate_here(recipe)
    text = "\n".join(what_if_lines(recipe, ["width > 100"]))
    assert "passed now" not in text
    assert "rejected what_if" in text
