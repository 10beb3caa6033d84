"""Answers fetched through `ray.data.llm`: configuration, processors, resume and failures."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from infra import catalog
from infra.config import ConfigError
from infra.runs import TableRecord
from infra.storage import Storage
from operators.caption import Caption
from operators.caption_style import Style
from pipelines import vllm_captions
from pipelines.caption_phase import caption_phase
from pipelines.curate_images import score
from pipelines.decide import Decide, Decision, decide
from pipelines.inputs import dataset_parts
from pipelines.job import Retry
from pipelines.phase import Phase
from pipelines.recipe import Recipe
from pipelines.responses import RESPONSES, keep_answers
from pipelines.rules import Rule
from pipelines.scored import ScoredPart
from pipelines.sections import Pool, Vllm
from pipelines.sources import index_phase
from pipelines.vllm_captions import (
    AnsweredInput,
    Questions,
    answer_with_vllm,
    fetch_answers,
)
from pipelines.vllm_engine import ray_llm, vllm_processor

Run = Callable[[Storage, Phase], TableRecord]
STYLES = (
    Style(name="short", prompt="Say it in one line.", max_tokens=20),
    Style(name="long", prompt="Say all of it.", max_tokens=90),
)
VLLM = Vllm(batch_rows=4, batches=1)


def make_phase(recipe: Recipe, run: Run, caption: Caption, vllm: Vllm = VLLM) -> Phase:
    storage = recipe.storage
    [source] = recipe.sources
    samples = run(storage, index_phase(source))
    groups = tuple(score(recipe, source, samples, run))
    parts = dataset_parts(recipe.sources, (samples,))
    scored = tuple(ScoredPart(place, groups) for place in parts)
    rules = Decide(rules=(Rule(name="small", keep="least(width, height) >= 300"),))
    decisions = decide(storage, Decision(recipe.dataset, scored, rules))
    return caption_phase(
        recipe.dataset,
        parts,
        decisions,
        caption,
        probe=recipe.cheap.probe,
        pool=Pool(),
        vllm=vllm,
    )


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a real server, which says what it is asked, and what it was asked."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            [image, text] = body["messages"][0]["content"]
            data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
            width, height = Image.open(io.BytesIO(data)).size
            said = f"{text['text']} It is {width} x {height} <b>\ud83d\x00"
            choice = {"message": {"content": said}, "finish_reason": "stop"}
            answer = {"choices": [choice], "usage": {"completion_tokens": 7, "prompt_tokens": 300}}
            if width == height:
                answer = {"error": {"message": "no squares"}}
            encoded = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions", asked
    server.shutdown()
    server.server_close()
    thread.join()


def http_processor(url: str) -> Any:
    """Ray's own processor for endpoints: the same way as vLLM's, without a GPU."""

    def to_http(row: dict[str, Any]) -> dict[str, Any]:
        return {"payload": json.loads(row["request"]), "request": ""}

    def from_http(row: dict[str, Any]) -> dict[str, Any]:
        from operators.chat_completions import EndpointError, answer_in

        kept = {name: row[name] for name in ("folder", "sample_id", "key")}
        try:
            answer = answer_in(row["http_response"])
        except EndpointError as error:
            return {**kept, "__inference_error__": error.message}
        told = {n: getattr(answer, n) for n in RESPONSES.names if hasattr(answer, n)}
        return {**kept, **told, "latency_s": 0.5, "__inference_error__": ""}

    with ray_llm() as llm:
        config = llm.HttpRequestProcessorConfig(url=url, batch_size=4)
        return llm.build_processor(config, preprocess=to_http, postprocess=from_http)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_rays_http_processor_all_the_way(
    recipe: Recipe, run_alone: Run, endpoint: tuple[str, list[dict[str, Any]]]
) -> None:
    url, asked = endpoint
    caption = Caption(engine="vllm", model="seer", styles=STYLES, per_image=2)
    phase = make_phase(recipe, run_alone, caption)
    fetch_answers(recipe.storage, phase, http_processor(url))
    run_alone(recipe.storage, phase)
    con = catalog.connect(recipe.storage)
    captions = con.execute("SELECT text, style, num_tokens, variants, error FROM captions")
    rows = captions.fetchall()
    assert 3 < len(rows) == len(asked) / 2
    told = {"short": "Say it in one line. It is ", "long": "Say all of it. It is "}
    for text, style, num_tokens, variants, error in rows:
        assert {variant["style"] for variant in variants} == {"short", "long"}
        if error is not None:
            assert error["type"] == "not_answered"
            continue
        assert text.startswith(told[style])
        assert text.endswith(" <b>?\x00")
        assert num_tokens == 7
        assert all(variant["latency_s"] == 0.5 for variant in variants)
    failed = [row for row in rows if row[-1] is not None]
    assert 0 < len(failed) < len(rows)  # squares
    # Each part is one file at rest; a rerun asks only what has no answer.
    assert isinstance(phase.input, AnsweredInput)
    for part in range(phase.num_parts):
        assert len(recipe.storage.names(phase.input.folder(part))) <= 1
    asked.clear()
    fetch_answers(recipe.storage, phase, http_processor(url))
    assert asked == []  # the phase is done
    fetch_answers(recipe.storage, phase, http_processor(url), Retry(type="missing"))
    assert asked == []  # no row failed like that
    fetch_answers(recipe.storage, phase, http_processor(url), Retry(stage="caption"))
    assert len(asked) == 2 * len(failed)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_vllms_processor_but_for_its_engine(recipe: Recipe, run_alone: Run, tmp_path: Path) -> None:
    with ray_llm():
        from ray.llm._internal.batch.stages.base import StatefulStage, StatefulStageUDF

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen2_5_vl", "architectures": ["Q"]}')
    caption = Caption(engine="vllm", model=str(model), styles=STYLES, per_image=2)
    phase = make_phase(recipe, run_alone, caption)
    processor = vllm_processor(caption, VLLM)
    stages = ["PrepareMultimodalStage", "ChatTemplateStage", "TokenizeStage", "vLLMEngineStage"]
    assert processor.list_stage_names() == stages
    engine = processor.stages["vLLMEngineStage"].fn_constructor_kwargs
    assert engine["model"] == str(model)
    assert engine["should_continue_on_error"]
    assert engine["engine_kwargs"]["limit_mm_per_prompt"] == {"image": 1}

    class Engine(StatefulStageUDF):
        """Reads and writes the columns of vLLM's stage; fails on squares as it does."""

        def __init__(self, data_column: str, expected_input_keys: list[str], **rest: Any) -> None:
            super().__init__(data_column, expected_input_keys)

        async def udf(self, batch: list[dict[str, Any]]) -> Any:
            for row in batch:
                image, text = row["messages"][0]["content"]
                data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
                width, height = Image.open(io.BytesIO(data)).size
                most = row["sampling_params"]["max_tokens"]
                yield {
                    self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN],
                    "generated_text": f"{text['text']} It is {width} x {height}.",
                    "num_generated_tokens": 20,
                    "num_input_tokens": 300,
                    "time_taken_llm": 0.25,
                    "__inference_error__": "" if width != height else f"no squares: {most}",
                }

    # All but the engine load the model's files or vLLM; it wants a GPU.
    processor.stages.clear()
    processor.stages["Engine"] = StatefulStage(fn=Engine)
    fetch_answers(recipe.storage, phase, processor)
    run_alone(recipe.storage, phase)
    con = catalog.connect(recipe.storage)
    rows = con.execute(
        "SELECT style, text, checks, num_tokens, num_prompt_tokens, latency_s, error.type, "
        "variants FROM captions"
    ).fetchall()
    answered = [row for row in rows if row[-2] is None]
    assert {row[-2] for row in rows} == {None, "not_answered"}
    assert len(answered) > 3
    for style, text, checks, *counts, _, variants in answered:
        # `short` stops at its 20 tokens, so that `long` is taken.
        assert (style, checks, counts) == ("long", [], [20, 300, 0.25])
        assert text.startswith("Say all of it. It is ")
        assert {v["style"]: v["checks"] for v in variants} == {"long": [], "short": ["truncated"]}


@pytest.mark.usefixtures("ray_session")
def test_too_few_gpus_stop_at_once(recipe: Recipe, run_alone: Run) -> None:
    caption = Caption(engine="vllm", model="m", engine_kwargs={"tensor_parallel_size": 4})
    phase = make_phase(recipe, run_alone, caption, Vllm(engines=2))
    with pytest.raises(ConfigError, match="captions by vLLM needs 8 GPUs, the session has 0"):
        answer_with_vllm(recipe.storage, phase)


def test_each_sample_of_one_picture_has_answers_of_its_own(recipe: Recipe, run_alone: Run) -> None:
    recipe = replace(recipe, sources=(replace(recipe.sources[0], part_rows=100),))
    caption = Caption(engine="vllm", model="seer", prompt="Say it.")
    phase = make_phase(recipe, run_alone, caption)
    assert isinstance(phase.input, AnsweredInput)

    def questions() -> list[dict[str, Any]]:
        asking = Questions(recipe.storage, phase)
        parts = range(phase.num_parts)
        tasks = [pa.table({"part": [p], "share": [0], "shares": [1]}) for p in parts]
        asked = [table for task in tasks for table in asking(task)]
        return pa.concat_tables(asked).to_pylist()

    # `coffee.png` and `astronaut.png` are there under other names as well, in the same part.
    asked = questions()
    assert len({(q["folder"], q["key"]) for q in asked}) < len(asked)
    told = [q | {"text": f"It is {q['sample_id']}."} for q in asked]
    # The others of a picture are asked for still where one has an answer already.
    first = list({q["key"]: q for q in told}.values())
    keep_answers(pa.Table.from_pylist(first), recipe.storage)
    rest = {q["sample_id"] for q in asked} - {q["sample_id"] for q in first}
    assert {q["sample_id"] for q in questions()} == rest != set()

    def captions(batch_rows: int) -> list[dict[str, Any]]:
        found = []
        for part in range(phase.num_parts):
            rows = phase.input.rows(recipe.storage, part)
            for start in range(0, len(rows), batch_rows):
                batch = phase.input.load(recipe.storage, rows.slice(start, batch_rows))
                for operator in phase.operators:
                    batch = operator(batch)
                found += batch.select(["sample_id", "text", "error"]).to_pylist()
        return found

    alone = captions(1)
    assert {row["sample_id"] for row in alone if row["error"]} == rest
    assert captions(64) == alone
    keep_answers(pa.Table.from_pylist(told), recipe.storage)
    assert questions() == []
    assert {row["text"] for row in captions(64)} == {q["text"] for q in told}


def test_only_failed_rows_of_the_retry_start_the_engine(
    recipe: Recipe, run_alone: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Caption] = []
    monkeypatch.setattr(vllm_captions, "require_vllm", lambda caption, vllm: None)
    monkeypatch.setattr(vllm_captions, "vllm_processor", lambda c, vllm: started.append(c))
    monkeypatch.setattr(vllm_captions, "fetch_answers", lambda *rest: None)
    phase = make_phase(recipe, run_alone, Caption(engine="vllm", model="seer"))
    answer_with_vllm(recipe.storage, phase, Retry(stage="load"))
    assert len(started) == 1  # it was never made
    record = run_alone(recipe.storage, phase)
    assert record.num_failed  # not_answered
    for retry in (None, Retry(stage="load"), Retry(type="timeout")):
        answer_with_vllm(recipe.storage, phase, retry)
    assert len(started) == 1
    for retry in (Retry(), Retry(stage="caption"), Retry(type="not_answered")):
        answer_with_vllm(recipe.storage, phase, retry)
    assert len(started) == 4
    changed = replace(phase, row_filter="others")
    answer_with_vllm(recipe.storage, changed, Retry(stage="load"))
    assert len(started) == 5


def test_an_input_without_answers_yet(recipe: Recipe, run_alone: Run) -> None:
    caption = Caption(engine="vllm", model="seer", styles=STYLES)
    phase = make_phase(recipe, run_alone, caption)
    assert isinstance(phase.input, AnsweredInput)
    rows = phase.input.rows(recipe.storage, 0)
    loaded = phase.input.load(recipe.storage, rows)
    assert loaded["answers"].to_pylist() == [[]] * len(rows)
    assert phase.input.load(recipe.storage, rows[:0]).num_rows == 0
    record = run_alone(recipe.storage, phase)
    assert record.num_failed == record.num_rows > 0
