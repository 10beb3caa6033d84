"""Captions by a hostile endpoint, and the second judgement, from sources to ledger and report."""

import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from infra import catalog
from infra.runs import TableRecord
from infra.schema import column
from infra.storage import Storage
from operators.caption import Caption
from operators.caption_style import Style
from pipelines.caption_phase import caption_decision, caption_phase, caption_schema
from pipelines.curate_images import document_phase, score
from pipelines.decide import Decide, Decision, decide
from pipelines.inputs import dataset_parts
from pipelines.phase import Phase
from pipelines.recipe import Recipe
from pipelines.report import write_report
from pipelines.rules import Rule
from pipelines.scored import ScoredPart, rule_columns
from pipelines.sections import Pool
from pipelines.sources import index_phase

Run = Callable[[Storage, Phase], TableRecord]
SCRIPT = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>"
HOSTILE = [
    SCRIPT,
    '\'; DROP TABLE captions; --\n\n\t"quoted" \\ {caption} {metadata} %s {{ 7 * 7 }} {% x %}',
    "nul \x00 bell \x07 \x1b[31m in the middle of a harbour",
    "half \ud83d a pair, and \udfff another, over a harbour",
    "\u202eturned round\u202c, \ufeff\u2028\u2029 \U0001f469‍\U0001f680 over a harbour",
    "]]></caption><!-- " + "a very long harbour, " * 50_000,
    "",
    "x" * 1_000_000,
]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[Any]]]:
    """The address of a real server, and what it says: texts in turn, or (status, body)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    says: list[Any] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                text = says.pop(0)
                says.append(text)
            status, body = text if isinstance(text, tuple) else (200, completion(text))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", says
    server.shutdown()
    server.server_close()
    thread.join()


def completion(text: str) -> bytes:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    usage = {"completion_tokens": 9, "prompt_tokens": 700}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


@dataclasses.dataclass(frozen=True)
class TextSimilarity:
    """Stands in for a model: how much of the picture's brightness the text's length makes up."""

    reads: ClassVar[tuple[str, ...]] = ("image", "text", "error")
    writes: ClassVar[pa.Schema] = pa.schema(
        [column("text_similarity", pa.float32(), "0..1", "a score of the new text")]
    )

    def __call__(self, batch: pa.Table) -> pa.Table:
        pairs = zip(batch["image"].to_pylist(), batch["text"].to_pylist(), strict=True)
        scores = [None if i is None or t is None else len(t) % 97 / 97 for i, t in pairs]
        return batch.append_column(self.writes.field(0), pa.array(scores, pa.float32()))


@dataclasses.dataclass
class Made:
    samples: tuple[TableRecord, ...]
    scored: tuple[ScoredPart, ...]
    decisions: TableRecord
    captions: TableRecord


def caption_all(recipe: Recipe, run: Run, caption: Caption, *scorers: Any) -> Made:
    storage = recipe.storage
    [source] = recipe.sources
    samples = run(storage, index_phase(source))
    groups = tuple(score(recipe, source, samples, run))
    parts = dataset_parts(recipe.sources, (samples,))
    scored = tuple(ScoredPart(place, groups) for place in parts)
    fine = Decide(rules=(Rule(name="small", keep="least(width, height) >= 128"),))
    decisions = decide(storage, Decision(recipe.dataset, scored, fine))
    phase = caption_phase(
        recipe.dataset,
        parts,
        decisions,
        caption,
        probe=recipe.cheap.probe,
        pool=Pool(),
        scorers=scorers,
    )
    return Made((samples,), scored, decisions, run(storage, phase))


def openai(url: str, **settings: Any) -> Caption:
    values = {"model": "seer", "retry_wait_s": 0.01, "concurrency": 1, **settings}
    return Caption(engine="openai", base_url=url, **values)


def test_hostile_answers_break_no_table_and_run_nowhere(
    recipe: Recipe, run_alone: Run, endpoint: tuple[str, list[Any]], tmp_path: Path
) -> None:
    url, says = endpoint
    says += [*HOSTILE, (400, SCRIPT.encode()), (200, b'{"choices": ' + b"[" * 100_000)]
    caption = openai(url, cache=str(tmp_path / "cache.sqlite"), max_retries=0)
    made = caption_all(recipe, run_alone, caption)
    con = catalog.connect(recipe.storage)
    texts = con.execute("SELECT text FROM captions WHERE error IS NULL").fetchall()
    expected = {text.encode("utf-8", "replace").decode().strip() for text in HOSTILE}
    assert {text for (text,) in texts} == expected
    checks = dict(con.execute("SELECT text, checks FROM captions WHERE error IS NULL").fetchall())
    assert checks[""] == ["empty"]
    assert "markup" in checks[SCRIPT]
    assert "too_long" in checks["x" * 1_000_000]
    errors = Counter(
        con.execute("SELECT error.type FROM captions WHERE error IS NOT NULL").fetchall()
    )
    assert errors.keys() >= {("http_400",), ("bad_response",)}
    # What was said once is said again, byte for byte, and is not asked for.
    before = recipe.storage.read(made.captions.path(0))
    recipe.storage.remove("captions")
    fine = [text for text in says if not isinstance(text, tuple)]
    says[:] = [text for text in says if isinstance(text, tuple)]
    assert fine
    again = caption_all(recipe, run_alone, caption)
    assert recipe.storage.read(again.captions.path(0)) == before
    # The documents' own text is what was said, and the report shows it as text.
    storage = recipe.storage
    run_alone(storage, document_phase(recipe, made.samples, made.decisions, made.captions))
    said = con.execute("SELECT count(*) FROM captions WHERE error IS NULL AND text <> ''")
    segments = catalog.connect(storage).execute(
        "SELECT list_filter(segments, lambda s: s.kind = 'text')[1].text FROM documents "
        "WHERE error IS NULL"
    )
    assert {text for (text,) in segments.fetchall()} <= expected
    assert said.fetchall() > [(0,)]
    page = Path(write_report(recipe)).read_text(encoding="utf-8")
    assert "&lt;script&gt;document.title" in page
    assert "<script>document" not in page
    assert "onerror=alert(1)>" not in page
    assert "\x00" not in page
    assert "\u202e" not in page
    assert len(page) < 4_000_000


RULES = (
    Rule(name="checked", keep="len(checks) = 0"),
    Rule(name="fits", keep="text_similarity >= 0.25"),
    Rule(name="best", top=0.5, by="text_similarity"),
)


def test_rules_on_captions_judge_once_more(
    recipe: Recipe, run_alone: Run, endpoint: tuple[str, list[Any]]
) -> None:
    url, says = endpoint
    says += [f"A quiet grey harbour{' by night' * n}." for n in range(4)]
    says += ["I'm sorry, but I can't help with that.", (400, b"no")]
    made = caption_all(recipe, run_alone, openai(url), TextSimilarity())
    storage = recipe.storage
    Decide(rules=RULES).check(rule_columns(caption_schema((TextSimilarity(),))))
    judged = decide(storage, caption_decision(recipe.dataset, made.scored, made.captions, RULES))
    assert judged.table == "caption_decisions/mixed"
    run_alone(storage, document_phase(recipe, made.samples, judged, made.captions))

    con = catalog.connect(storage)
    rows = con.execute(
        "SELECT sample_id, c.checks, c.text_similarity, c.error IS NOT NULL, cd.status, cd.reason "
        "FROM captions AS c JOIN caption_decisions AS cd USING (sample_id)"
    ).fetchall()
    passed = sorted(
        (
            (score, id_)
            for id_, checks, score, failed, *_ in rows
            if not failed and not checks and score >= 0.25
        ),
        key=lambda pair: (-pair[0], pair[1]),
    )
    best = {id_ for _, id_ in passed[: -(-len(passed) // 2)]}
    for id_, checks, value, failed, status, reason in rows:
        if failed:
            expected = ("failed", "caption:http_400")
        elif checks:
            expected = ("rejected", "checked")
        elif value < 0.25:
            expected = ("rejected", "fits")
        else:
            expected = ("kept", None) if id_ in best else ("rejected", "best")
        assert (status, reason) == expected
    reasons = {None, "checked", "fits", "best", "caption:http_400"}
    assert {reason for *_, reason in rows} == reasons
    [(kept,)] = con.execute("SELECT count(*) FROM decisions WHERE status = 'kept'").fetchall()
    assert len(rows) == kept

    # Every sample ends once: in the ledger as in the documents.
    ledger = con.execute("SELECT sample_id, status, reason FROM ledger").fetchall()
    [(samples,)] = con.execute("SELECT count(*) FROM samples").fetchall()
    assert len(ledger) == len({id_ for id_, *_ in ledger}) == samples
    ends = {id_: (status, reason) for id_, status, reason in ledger}
    for id_, *_, status, reason in rows:
        if status != "kept":
            assert ends[id_] == (status, reason)
    documents = con.execute("SELECT unnest(sample_ids) FROM documents").fetchall()
    assert {id_ for (id_,) in documents} == best


def test_given_captions_need_no_pixels_unless_they_are_scored(recipe: Recipe) -> None:
    parts = dataset_parts(recipe.sources, (TableRecord("samples/some", "f", "r", "sample_id", ()),))
    decisions = TableRecord("decisions/mixed", "f", "r", "sample_id", ())

    def phase(caption: Caption, *scorers: Any) -> Phase:
        return caption_phase(
            "mixed",
            parts,
            decisions,
            caption,
            probe=recipe.cheap.probe,
            pool=Pool(),
            scorers=scorers,
        )

    bare, scored = phase(Caption()), phase(Caption(), TextSimilarity())
    assert "bytes" not in bare.input.columns
    assert [type(operator).__name__ for operator in bare.operators] == ["Caption"]
    assert "bytes" in scored.input.columns
    assert scored.schema.names[-2:] == ["text_similarity", "error"]
    styles = (Style(name="given"), Style(name="plain", prompt="Say it."))
    asked = Caption(engine="vllm", model="m", styles=styles)
    assert "answers" in phase(asked).input.columns
