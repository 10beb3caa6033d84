"""The report: one file, true to the tables, and harmless whatever the data say."""

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from infra import catalog
from infra.config import ConfigError
from infra.runs import TableRecord, load_record, save_record
from pipelines import report as reporting
from pipelines import stats
from pipelines.decide import Decide
from pipelines.decided import decided
from pipelines.duplicates import Duplicates
from pipelines.recipe import Recipe
from pipelines.report import funnel_bars, write_report
from pipelines.rules import Rule
from pipelines.sections import Captions

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags, attributes and texts of a page; raises where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(" ".join(data.split()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_what_people_wrote_is_text(curated: Recipe) -> None:
    text = Path(write_report(curated)).read_text(encoding="utf-8")
    page = Page(text)
    assert page.all("script") == []
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script" not in text
    assert "\u202e" not in text
    assert len(text) < 3_000_000  # the caption alone has a million characters
    [policy] = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    loads = {attributes.get(name) for _, attributes in page.tags for name in ("src", "href")}
    loads -= {None, "report-what-if.html"}
    assert all(uri.startswith(("data:image/jpeg;base64,", "#")) for uri in loads if uri)
    assert "url(" not in text
    assert "@import" not in text


def test_pictures_are_small_and_of_every_kind(curated: Recipe) -> None:
    page = Page(Path(write_report(curated)).read_text(encoding="utf-8"))
    shown = page.all("img")
    assert len(shown) >= 10
    for picture in shown:
        uri = picture["src"]
        assert uri is not None
        data = base64.b64decode(uri.partition(",")[2])
        assert max(Image.open(io.BytesIO(data)).size) <= 160
    for heading in (
        "kept",
        "rejected: small",
        "rejected: best",
        "rejected later: documents:too_small_for_level",
    ):
        assert heading in page.texts
    for heading in ("Nearest to 128, passing", "Nearest to 128, failing"):
        assert heading in page.texts
    assert "A cup of coffee on a saucer with a spoon." in page.texts
    assert "</figcaption><script>alert(3)</script>, CC0" in page.texts


def test_cuts_failures_and_topics_are_told(curated: Recipe) -> None:
    page = Page(Path(write_report(curated)).read_text(encoding="utf-8"))
    assert "least(width, height) >= 128" in page.texts
    assert "the best 0.8 by clarity" in page.texts
    cuts = [a for name, a in page.tags if name == "line" and a.get("class") == "cut"]
    assert len(cuts) == 5  # small, blurred: clarity and aspect twice, best
    for word in ("bad_sidecar", "truncated", "unknown_format", "no_caption", "PNG", "JPEG"):
        assert word in page.texts
    assert not any("changed since" in text for text in page.texts)


def test_the_same_tables_give_the_same_page(curated: Recipe, tmp_path: Path) -> None:
    first, second = (write_report(curated, str(tmp_path / n / "a.html")) for n in ("one", "two"))
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_reports_in_one_folder_keep_their_pages(
    curated: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write(recipe: Recipe, made: object, path: str) -> None:
        Path(path).write_text("sliders")

    monkeypatch.setattr(reporting, "write_what_if", write)
    for name in ("a.html", "b", "100% #1?.html"):
        page = Page(Path(write_report(curated, str(tmp_path / name))).read_text(encoding="utf-8"))
        [link] = [a["href"] for a in page.all("a") if "what-if" in (a["href"] or "")]
        assert link is not None
        assert (tmp_path / unquote(link)).exists()
        assert not {"#", "?"} & set(link)
    pages = sorted(path.name for path in tmp_path.glob("*-what-if.html"))
    assert pages == ["100% #1?-what-if.html", "a-what-if.html", "b-what-if.html"]


def test_rules_on_captions_and_duplicates_are_shown(
    recipe: Recipe, curate_here: Callable[[Recipe], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Rule(name="short", keep="length(text) < 26")
    recipe = replace(
        recipe,
        decide=Decide(),
        captions=Captions(rules=(short,)),
        duplicates=Duplicates(memory_gb=0.5, perceptual=None),
    )
    curate_here(recipe)
    storage = recipe.storage
    with catalog.connect(storage) as con:
        ends = dict(con.execute("SELECT key, reason FROM ledger").fetchall())
        made = decided(storage, recipe.dataset, recipe.sources)
        sections = reporting._sections(con, recipe, made, None)
    shown = {
        sheet.name: (sheet.total, [picture.key for picture in sheet.pictures])
        for sheet in sections["sheets"]
    }
    long = {key for key, reason in ends.items() if reason == "short"}
    assert "coffee.png" in long
    total, keys = shown["rejected later: short"]
    assert (total, set(keys)) == (len(long), long)
    small = shown["rejected later: documents:too_small_for_level"][1]
    assert not {*long, *small} & set(shown["kept"][1])
    assert shown["kept"][0] == len(shown["kept"][1])

    [exact] = sections["duplicates"]
    record = load_record(storage, "duplicates/mixed/exact")
    assert record is not None
    assert (exact.kind, exact.rows, exact.copies) == ("exact", record.num_rows, exact.groups)
    pairs = [{picture.key for picture in group.pictures} for group in exact.largest]
    assert {"coffee.png", "no caption.png"} in pairs
    save_record(storage, replace(record, facts=record.facts | {"crowded": 17}))
    page = Page(Path(write_report(recipe)).read_text(encoding="utf-8"))
    assert "Duplicates" in page.texts
    assert f"{exact.rows} compared, {exact.groups} groups" in " ".join(page.texts)
    assert any(text.startswith("17 times") for text in page.texts)


def test_tokens_packs_and_training(
    curated: Recipe, write_tokens: Callable[[Recipe], None], tmp_path: Path
) -> None:
    write_tokens(curated)
    log = tmp_path / "log.jsonl"
    steps = [
        {
            "step": i + 1,
            "loss": 9 - i / 10,
            "text_loss": None,
            "vision_loss": 8 - i / 10,
            "scale_losses": [3.0 - i / 100, None, 5.0],
        }
        for i in range(20)
    ]
    torn = '{"step": 21, "lo'
    log.write_text("".join(json.dumps(step) + "\n" for step in steps) + torn, encoding="utf-8")
    page = Page(Path(write_report(curated, log=str(log))).read_text(encoding="utf-8"))
    for word in ("tokens/mixed-256", "positions per document", "text_too_long", "Packs"):
        assert word in page.texts
    for word in ("1 over_token_cap", "80.0%", "fixed_compute", "cost per pack, of the budget"):
        assert word in page.texts
    assert "20 steps" in page.texts
    lines = page.all("polyline")
    assert len(lines) == 4  # all, vision; scales 1 and 3
    assert "text" not in page.texts


def test_a_log_that_is_not_there(curated: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist: check the path"):
        write_report(curated, log=str(tmp_path / "log.jsonl"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text("no json\n")
    with pytest.raises(ConfigError, match="holds a line that is no JSON"):
        write_report(curated, log=str(broken))


def test_changed_scores_are_told(curated: Recipe, score_here: Callable[[Recipe], None]) -> None:
    cheap = replace(curated.cheap, clarity=replace(curated.cheap.clarity, short_side=256))
    score_here(replace(curated, cheap=cheap))
    page = Path(write_report(curated)).read_text(encoding="utf-8")
    assert "have changed since these decisions" in page


def test_without_rules_and_without_a_source(
    recipe: Recipe, curate_here: Callable[[Recipe], None]
) -> None:
    recipe = replace(recipe, decide=Decide())
    curate_here(recipe)
    text = Path(write_report(recipe)).read_text(encoding="utf-8")
    assert "Rules and their cuts" not in text
    other = replace(recipe, sources=(replace(recipe.sources[0], name="else"),))
    with pytest.raises(ConfigError, match="none of them a source"):
        write_report(other)


def test_a_picture_that_is_gone_leaves_its_place(
    recipe: Recipe, curate_here: Callable[[Recipe], None], photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("chelsea.png", "coffee.png"):
        (folder / name).write_bytes((photos / name).read_bytes())
    recipe = replace(recipe, sources=(replace(recipe.sources[0], path=str(folder)),))
    curate_here(recipe)
    (folder / "coffee.png").unlink()
    page = Page(Path(write_report(recipe)).read_text(encoding="utf-8"))
    assert "load:missing" in page.texts


@pytest.mark.slow
def test_a_workspace_on_s3(curated: Recipe, s3: str) -> None:
    away = replace(curated, workspace=f"{s3}/workspace")
    away.storage.fs.put(curated.workspace, away.workspace, recursive=True)
    assert write_report(away) == f"{s3}/workspace/report.html"
    there = Page(away.storage.read("report.html").decode())
    here = Page(Path(write_report(curated)).read_text(encoding="utf-8"))
    assert there.all("img") == here.all("img")


def test_funnel_bars_lie_where_they_are_taken_off() -> None:
    steps = [("seen", 10), ("failed a:b", 1), ("rejected x", 4), ("kept", 5), ("documents", 5)]
    steps += [("tokens t", 1_000), ("packs t", 2)]
    bars = funnel_bars(steps)
    assert [(bar.kind, bar.name, bar.start, bar.width) for bar in bars] == [
        ("seen", "", 0, 100),
        ("failed", "a:b", 90, 10),
        ("rejected", "x", 50, 40),
        ("kept", "", 0, 50),
        ("documents", "", 0, 50),
    ]


def test_an_empty_dataset_has_a_funnel() -> None:
    assert funnel_bars([("seen", 0), ("kept", 0)])[0].width == 0


def test_the_page_counts_what_the_funnel_counts(curated: Recipe) -> None:
    text = Path(write_report(curated)).read_text(encoding="utf-8")
    seen = dict(stats.funnel(curated.storage, curated.dataset))["seen"]
    assert re.search(rf"<b>{seen}</b><span class=\"soft\">samples seen", text)


def test_clips_have_a_page_of_filmstrips(
    curated: Recipe, write_frames: Callable[..., TableRecord]
) -> None:
    plain = Path(write_report(curated)).read_text(encoding="utf-8")
    assert "Filmstrips" not in plain
    assert not (Path(curated.workspace) / "report-filmstrip.html").exists()
    [(kept,)] = (
        catalog.connect(curated.storage)
        .sql("SELECT min(sample_id) FROM decisions WHERE status = 'kept'")
        .fetchall()
    )
    few = {"stage": "frames", "type": "too_few_frames", "message": "none qualifies"}
    bad = {"stage": "probe", "type": "endless", "message": "it has no end"}
    write_frames(curated, ["object", "static"], {kept: bad})
    page = Page(Path(write_report(curated)).read_text(encoding="utf-8"))
    assert {"report-filmstrip.html"} <= {link.get("href") for link in page.all("a")}
    assert "endless" in page.texts
    strips = (Path(curated.workspace) / "report-filmstrip.html").read_text(encoding="utf-8")
    assert "<script" not in strips
    assert "endless" in strips
    # Without documents, frames say what was rejected later.
    curated.storage.remove("documents/mixed")
    write_frames(curated, ["object", "static"], {kept: few})
    page = Page(Path(write_report(curated)).read_text(encoding="utf-8"))
    assert "rejected later: frames:too_few_frames" in page.texts
