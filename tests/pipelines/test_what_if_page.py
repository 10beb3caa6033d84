"""The what-if page: what its script counts is what DuckDB counts, and no text of the data runs."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pytest

from infra import catalog
from pipelines import what_if_page
from pipelines.decide import Decide
from pipelines.decided import decided
from pipelines.recipe import Recipe
from pipelines.rules import Rule
from pipelines.what_if import changed, outcome
from pipelines.what_if_page import page_data, write_what_if

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --virtual-time-budget=5000"
).split()
EXTRA = (
    Rule(name="odd", keep="NOT (format = 'WEBP') AND nullif(width, 64) <= 5000 AND 0.1 < clarity"),
    Rule(name='it\'s <b>"100%"&</b>', top=0.7, by="width * height"),
)


class Dom(HTMLParser):
    """Counts of the steps and topics of a page, and its texts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.steps: dict[str, int] = {}
        self.topics: dict[str, int] = {}
        self.texts: dict[str, str] = {}
        self.at = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.at = found.get("id") or ""
        for kind, into in (("data-step", self.steps), ("data-topic", self.topics)):
            name = found.get(kind)
            if name is not None:
                into[name] = int(found["data-count"] or "")

    def handle_endtag(self, tag: str) -> None:
        self.at = ""

    def handle_data(self, data: str) -> None:
        if self.at:
            self.texts[self.at] = self.texts.get(self.at, "") + data


def opened(page: str, place: str, folder: Path) -> Dom:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "--dump-dom", f"file://{page}{place}"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return Dom(done.stdout.decode())


def expected(recipe: Recipe, changes: list[str]) -> tuple[dict[str, int], dict[str | None, int]]:
    """Steps (failures as one) and topics that pass all rules, by DuckDB."""
    made = decided(recipe.storage, recipe.dataset, recipe.sources)
    with catalog.connect(recipe.storage, views=False) as con:
        config = replace(changed(made.config, changes, made.columns(con)), balance=None)
        by_format = replace(config, balance=made.config.balance)
        topics = outcome(con, made, by_format).passed
        found = outcome(con, made, config)
    steps = dict(found.steps(config.rules))
    failures = [name for name in steps if name.startswith("failed ")]
    steps["failed"] = sum(steps.pop(name) for name in failures)
    steps["pass all rules"] = steps.pop("kept")
    return steps, {topic: n for topic, n in topics.items() if n}


@pytest.fixture
def extended(recipe: Recipe, curate_here: Callable[[Recipe], None]) -> Recipe:
    """Decided by rules of every kind."""
    rules = (*recipe.decide.rules, *EXTRA)
    recipe = replace(recipe, decide=replace(recipe.decide, rules=rules))
    curate_here(recipe)
    return recipe


@needs_browser
def test_the_browser_counts_what_duckdb_counts(extended: Recipe, tmp_path: Path) -> None:
    made = decided(extended.storage, extended.dataset, extended.sources)
    page = write_what_if(extended, made, str(tmp_path / "what_if.html"))
    name = EXTRA[1].name
    for place, changes in (
        ("", []),
        (
            "#best=0.35&small=200",
            ["small: least(width, height) >= 200", "best: top 0.35 by clarity"],
        ),
        (
            f"#blurred.1=0.8&blurred.3=1.4&odd.1=600&small=off&{quote(name)}=0.07",
            [
                "blurred: clarity > 0.8 AND aspect BETWEEN 0.2 AND 1.4",
                "odd: NOT (format = 'WEBP') AND nullif(width, 64) <= 600 AND 0.1 < clarity",
                "small:",
                f"{name}: top 0.07 by width * height",
            ],
        ),
        ("#best=7&blurred.2=x&nothing&%E0=1", []),  # nothing that could be set
    ):
        dom = opened(page, place, tmp_path / "profile")
        steps, topics = expected(extended, changes)
        shown = {k: n for k, n in dom.steps.items() if n or k in steps}
        # A rule out of force keeps its line, without rejections.
        assert {k: n for k, n in shown.items() if n} == {k: n for k, n in steps.items() if n}
        assert {k: n for k, n in dom.topics.items() if n} == topics
        assert dom.texts["kept"] == str(steps["pass all rules"])
        # The commands on the page mean what it shows.
        taken = re.findall(r"--what-if '((?:[^']|'\\'')*)'", dom.texts["command"])
        assert expected(extended, [text.replace("'\\''", "'") for text in taken]) == (steps, topics)
        assert len(taken) == len(changes)


@needs_browser
def test_texts_of_the_data_do_not_run(extended: Recipe, tmp_path: Path) -> None:
    made = decided(extended.storage, extended.dataset, extended.sources)
    page = write_what_if(extended, made, str(tmp_path / "what_if.html"))
    dom = opened(page, "", tmp_path / "profile")
    assert "mixed" in Path(page).read_text(encoding="utf-8").partition("</title>")[0]
    assert "owned" not in dom.texts.get("title", "")
    assert [tag for tag, _ in dom.tags].count("script") == 2
    pictures = [found for tag, found in dom.tags if tag == "img"]
    assert pictures
    assert all((found["src"] or "").startswith("data:image/jpeg;base64,") for found in pictures)
    assert not any(name.startswith("on") for _, found in dom.tags for name in found)


def test_the_page_carries_nothing_that_runs(extended: Recipe, tmp_path: Path) -> None:
    made = decided(extended.storage, extended.dataset, extended.sources)
    text = Path(write_what_if(extended, made, str(tmp_path / "p.html"))).read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    assert "<!--" not in text
    assert "\u2028" not in text
    assert "onerror" not in text.partition('id="data"')[0]
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert not set(data) & set("<>&'")
    assert any("alert(3)" in picture["credit"] for picture in json.loads(data)["pictures"])
    policy = unescape(text.partition('content="')[2].partition('"')[0])
    assert re.fullmatch(r"default-src 'none'; .*; script-src 'sha256-[\w+/=]{44}'", policy)
    second = write_what_if(extended, made, str(tmp_path / "q.html"))
    assert Path(second).read_text(encoding="utf-8") == text


def test_a_seeded_share_where_there_are_many(
    curated: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = decided(curated.storage, curated.dataset, curated.sources)
    whole = page_data(catalog.connect(curated.storage), curated, made)
    assert whole["num_rows"] == whole["total"]
    monkeypatch.setattr(what_if_page, "MAX_ROWS", 8)
    monkeypatch.setattr(what_if_page, "MAX_PICTURES", 3)
    some = page_data(catalog.connect(curated.storage), curated, made)
    assert some == page_data(catalog.connect(curated.storage), curated, made)
    assert 0 < some["num_rows"] < some["total"] == whole["total"]
    assert len(some["pictures"]) == 3
    assert all(picture["row"] < some["num_rows"] for picture in some["pictures"])
    monkeypatch.setattr(what_if_page, "PICTURE_CHARACTERS", 1)
    assert page_data(catalog.connect(curated.storage), curated, made)["pictures"] == []


def test_without_rules(
    recipe: Recipe, curate_here: Callable[[Recipe], None], tmp_path: Path
) -> None:
    recipe = replace(recipe, decide=Decide())
    curate_here(recipe)
    made = decided(recipe.storage, recipe.dataset, recipe.sources)
    write_what_if(recipe, made, str(tmp_path / "what_if.html"))
    data = page_data(catalog.connect(recipe.storage), recipe, made)
    assert data["rules"] == data["columns"] == data["pictures"] == []


def test_values_survive_their_coding() -> None:
    for column, code in (
        (pa.array([True, None, False]), "u1"),
        (pa.array([0.1, None, float("nan")], pa.float32()), "f4"),
        (pa.array([1, None, -5], pa.int32()), "i4"),
        (pa.array([2**40, None, 3]), "f8"),
    ):
        found = what_if_page._encoded(pa.chunked_array([column]))
        assert found["type"] == code
        assert found["missing"] == "AAEA"
    assert what_if_page._encoded(pa.chunked_array([[1.5]]))["missing"] is None
    assert [what_if_page._plain(v) for v in (256.0, 1e-7, 0.55, 1e22)] == [
        "256",
        "0.0000001",
        "0.55",
        "10000000000000000000000",
    ]
