"""The caption operator: given captions, an endpoint's, the cache, and rows that fail alone."""

import asyncio
import base64
import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image

from infra.config import ConfigError, build
from infra.pixels import to_struct
from infra.runs import canonical
from infra.schema import CAPTIONS, ERROR_TYPE
from operators.caption import Caption
from operators.caption_answers import ANSWER
from operators.caption_prompt import PROMPTS
from operators.caption_request import SHORT_SIDE
from operators.caption_style import Style

FAILED = {"stage": "probe", "type": "truncated", "message": "earlier"}
COLUMNS = [name for name in CAPTIONS.names if name not in ("sample_id", "error")]


def picture(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def rows(
    pictures: list[np.ndarray | None],
    captions: list[str | None] | None = None,
    errors: list[dict[str, str] | None] | None = None,
) -> pa.Table:
    count = len(pictures)
    return pa.table(
        {
            "sample_id": pa.array([str(i) for i in range(count)], pa.string()),
            "image": to_struct(pictures),
            "caption": pa.array(captions or [None] * count, pa.string()),
            "error": pa.array(errors or [None] * count, ERROR_TYPE),
            "after": pa.array(range(count), pa.int32()),
        }
    )


def endpoint(server: Any, **settings: Any) -> Caption:
    settings = {"retry_wait_s": 0.01, "timeout_s": 5.0, "model": "seer", **settings}
    return Caption(engine="openai", base_url=server.url, **settings)


def error_types(table: pa.Table) -> list[str | None]:
    return [error and error["type"] for error in table["error"].to_pylist()]


def test_given_captions() -> None:
    batch = rows(
        [None] * 5,
        ["  A cat sits on a wall. ", None, " \n", "Cat.", "A dog in the rain."],
        [None, None, None, None, FAILED],
    )
    out = Caption()(batch)
    assert out["text"].to_pylist() == ["A cat sits on a wall.", None, None, "Cat.", None]
    assert out["engine"].to_pylist() == ["given", None, None, "given", None]
    assert out["checks"].to_pylist() == [[], None, None, ["too_short"], None]
    assert out["style"].to_pylist() == ["given", None, None, "given", None]
    for name in ("model", "prompt_hash", "num_tokens", "latency_s", "variants"):
        assert out[name].null_count == 5
    assert error_types(out) == [None, "no_caption", "no_caption", None, "truncated"]
    assert out["error"][1].as_py()["stage"] == "caption"
    assert out["error"][4].as_py() == FAILED


def test_the_table_keeps_its_columns_and_order(chat_server: Any) -> None:
    for operator in (Caption(), endpoint(chat_server)):
        for batch in (rows([picture(0)], ["A cat sits."]), rows([]), rows([picture(0)] * 2)[:0]):
            out = operator(batch)
            assert out.column_names == batch.column_names + COLUMNS
            assert out.drop_columns([*COLUMNS, "error"]) == batch.drop_columns(["error"])
            assert out.schema.field("error") == batch.schema.field("error")
            assert [out.schema.field(name) for name in COLUMNS] == list(operator.writes)
            assert len(out) == len(batch)


def test_what_the_endpoint_is_sent(chat_server: Any) -> None:
    chat_server.default = lambda body: chat_server.answer(" A red garden gate. ", "length", 9)
    caption = endpoint(chat_server, max_tokens=33, seed=7)
    out = caption(rows([picture(0, 600, 1200), picture(1, 20, 30)]))
    assert out["text"].to_pylist() == ["A red garden gate."] * 2
    assert out["engine"].to_pylist() == ["openai"] * 2
    assert out["model"].to_pylist() == ["seer"] * 2
    assert out["prompt_hash"].to_pylist() == [caption.prompt_hash(caption.all_styles[0])] * 2
    assert out["num_tokens"].to_pylist() == [9, 9]
    assert out["num_prompt_tokens"].to_pylist() == [7, 7]
    assert out["style"].to_pylist() == out["variants"].to_pylist() == [None, None]
    assert out["checks"].to_pylist() == [["truncated"]] * 2
    assert error_types(out) == [None, None]
    sizes = set()
    for request in chat_server.requests:
        message = request.pop("messages")[0]
        assert request == {"model": "seer", "max_tokens": 33, "temperature": 0.0, "seed": 7}
        image, text = message["content"]
        assert text == {"type": "text", "text": (PROMPTS / "describe.txt").read_text().strip()}
        head, _, data = image["image_url"]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        sent = Image.open(io.BytesIO(base64.b64decode(data)))
        sizes.add((sent.format, *sent.size))
    assert sizes == {("JPEG", 2 * SHORT_SIDE, SHORT_SIDE), ("JPEG", 30, 20)}


def test_no_seed_is_not_sent(chat_server: Any) -> None:
    endpoint(chat_server, seed=None)(rows([picture(0)]))
    assert "seed" not in chat_server.requests[0]


def test_one_rows_failure_stays_that_rows(chat_server: Any) -> None:
    def by_size(body: dict[str, Any]) -> Any:
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        width = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).width
        return {
            31: (400, {}, b"too odd"),
            32: (500, {}, b"down"),
            33: (200, {}, b"garbage"),
            34: None,
            35: chat_server.answer(""),
        }.get(width, chat_server.answer("A room full of noise."))

    chat_server.default = by_size
    pictures = [picture(0), *(picture(0, 20, width) for width in range(31, 36)), None, picture(1)]
    batch = rows(pictures, errors=[None] * 7 + [FAILED])
    out = endpoint(chat_server, max_retries=1, timeout_s=0.5)(batch)
    assert error_types(out) == [
        None,
        "http_400",
        "http_500",
        "bad_response",
        "timeout",
        None,
        "no_image",
        "truncated",
    ]
    assert out["text"].to_pylist() == ["A room full of noise.", *[None] * 4, "", None, None]
    assert out["checks"].to_pylist() == [[], *[None] * 4, ["empty"], None, None]
    assert out["error"][1].as_py() == {
        "stage": "caption",
        "type": "http_400",
        "message": "HTTP 400: too odd",
    }


def test_encoded_bytes_are_read_too(chat_server: Any) -> None:
    encoded = io.BytesIO()
    Image.fromarray(picture(0, 40, 50)).save(encoded, "PNG")
    batch = pa.table(
        {
            "bytes": pa.array([encoded.getvalue(), b"not a picture", b"", None], pa.large_binary()),
            "error": pa.nulls(4, ERROR_TYPE),
        }
    )
    caption = endpoint(chat_server, picture="bytes")
    assert caption.reads == ("bytes",)
    assert error_types(caption(batch)) == [None, "unknown_format", "empty", "empty"]
    assert len(chat_server.requests) == 1


def test_a_prompt_with_the_given_caption(chat_server: Any) -> None:
    caption = endpoint(chat_server, prompt='Improve {caption} as JSON: {"text": "..."}')
    assert caption.reads == ("image", "caption")
    hostile = 'a {caption}\n"quoted" \\ <b>'
    out = caption(rows([picture(0), picture(1), picture(2)], [hostile, None, " "]))
    assert error_types(out) == [None, "no_caption", "no_caption"]
    text = chat_server.requests[0]["messages"][0]["content"][1]["text"]
    assert text == f'Improve {hostile} as JSON: {{"text": "..."}}'


def test_a_rerun_never_pays_twice(chat_server: Any, tmp_path: Path) -> None:
    cache = str(tmp_path / "answers.sqlite")
    caption = endpoint(chat_server, cache=cache)
    chat_server.replies = [(400, {}, b"once")]
    batch = rows([picture(i) for i in range(6)] + [picture(5)], errors=[None] * 7)
    first = endpoint(chat_server, cache=cache, concurrency=1)(batch)
    assert error_types(first) == ["http_400"] + [None] * 6
    assert len(chat_server.requests) == 6  # the picture that comes twice is asked for once
    second = caption(batch)
    assert error_types(second) == [None] * 7
    assert len(chat_server.requests) == 7  # only what failed
    assert caption(batch).equals(second)
    # Neither how it is fetched, nor the row's neighbours, nor its place change a request.
    other = endpoint(chat_server, cache=cache, max_retries=0, concurrency=2, timeout_s=9.0)
    assert other(batch[3:5])["text"].to_pylist() == second["text"].to_pylist()[3:5]
    assert len(chat_server.requests) == 7


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"prompt": "What is it?"},
        {"max_tokens": 5},
        {"temperature": 0.5},
        {"seed": 1},
        {"seed": None},
    ],
)
def test_another_request_is_asked_anew(
    chat_server: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    caption = endpoint(chat_server, cache=str(tmp_path / "answers.sqlite"))
    changed = dataclasses.replace(caption, **change)
    [style], [old] = changed.all_styles, caption.all_styles
    assert changed.prompt_hash(style) != caption.prompt_hash(old)
    caption(rows([picture(0)]))
    changed(rows([picture(0)]))
    assert len(chat_server.requests) == 2


def test_pictures_of_equal_bytes_and_other_shape_differ(chat_server: Any, tmp_path: Path) -> None:
    flat = picture(0, 10, 40)
    batch = rows([flat, flat.reshape(40, 10, 3)])
    endpoint(chat_server, cache=str(tmp_path / "answers.sqlite"))(batch)
    assert len(chat_server.requests) == 2


def test_answers_are_kept_though_a_later_row_breaks_the_run(
    chat_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption = endpoint(chat_server, cache=str(tmp_path / "answers.sqlite"), concurrency=1)
    answered = 0

    def reply(body: dict[str, Any]) -> Any:
        nonlocal answered
        answered += 1
        if answered == 3:
            monkeypatch.setattr("operators.chat_completions.parse", lambda response: 1 / 0)
        return chat_server.answer("A quiet grey harbour.")

    chat_server.default = reply
    batch = rows([picture(i) for i in range(5)])
    with pytest.raises(ZeroDivisionError):
        caption(batch)
    monkeypatch.undo()
    assert error_types(caption(batch)) == [None] * 5
    assert len(chat_server.requests) <= 5 + 3  # two answers were kept, the third was lost


def test_inside_a_running_loop(chat_server: Any, tmp_path: Path) -> None:
    caption = endpoint(chat_server, cache=str(tmp_path / "answers.sqlite"))

    async def actor() -> pa.Table:
        return caption(rows([picture(0), picture(1)]))

    assert error_types(asyncio.run(actor())) == [None, None]


def test_it_travels_to_workers(chat_server: Any) -> None:
    caption = endpoint(chat_server)
    caption(rows([picture(0)]))
    copy = pickle.loads(pickle.dumps(caption))
    assert copy == caption
    assert error_types(copy(rows([picture(0)]))) == [None]


def test_the_prompt_is_read_when_the_operator_is_made(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Tell me of {caption}.\n")
    caption = Caption(prompt=str(path))
    path.unlink()
    assert caption.prompt == "Tell me of {caption}."
    assert dataclasses.replace(caption) == caption


STYLES = (
    Style(name="short", prompt="Say it in one line.", max_tokens=30, weight=2.0),
    Style(name="world", prompt="Use {metadata.title}.", max_tokens=90),
    Style(name="given", weight=0.5),
)


def asked(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][1]["text"]


def styled(count: int, captions: list[str | None], metadata: list[str | None]) -> pa.Table:
    batch = rows([picture(i) for i in range(count)], captions)
    return batch.append_column("metadata", pa.array(metadata, pa.string()))


def test_each_sample_gets_styles_of_its_own(chat_server: Any, tmp_path: Path) -> None:
    chat_server.default = lambda body: chat_server.answer(f"Asked: {asked(body)}", "stop", 4)
    caption = endpoint(chat_server, styles=STYLES, per_image=2)
    assert set(caption.reads) == {"image", "caption", "metadata", "sample_id"}
    titles = [f'{{"title": "No. {i} of \\"{{caption}}\\""}}' for i in range(30)]
    batch = styled(30, [f"Given words of {i}." for i in range(30)], titles)
    out = caption(batch)
    assert error_types(out) == [None] * 30
    expected = {"short": "Asked: Say it in one line."}
    orders = set()
    for row in out.to_pylist():
        i = row["sample_id"]
        said = expected | {
            "given": f"Given words of {i}.",
            "world": f'Asked: Use No. {i} of "{{caption}}".',
        }
        names = [variant["style"] for variant in row["variants"]]
        orders.add(tuple(names))
        assert len(set(names)) == 2
        assert [variant["text"] for variant in row["variants"]] == [said[name] for name in names]
        assert all(v["checks"] == [] and v["error"] is None for v in row["variants"])
        assert (row["style"], row["text"]) == (names[0], said[names[0]])
        given = row["style"] == "given"
        assert row["engine"] == ("given" if given else "openai")
        assert (row["model"], row["num_tokens"]) == ((None, None) if given else ("seer", 4))
        assert (row["prompt_hash"] is None) == given
    assert len(orders) > 3
    for request in chat_server.requests:
        assert request["max_tokens"] == (30 if asked(request).startswith("Say") else 90)
    # Neighbours, order of the styles and their number of workers change nothing.
    turned = dataclasses.replace(caption, styles=STYLES[::-1])
    assert turned(batch[7:19]).equals(out[7:19])
    other = dataclasses.replace(caption, style_seed=1)(batch)
    assert other["style"] != out["style"]


def test_a_recipe_names_styles() -> None:
    tree = {
        "engine": "vllm",
        "model": "qwen",
        "engine_kwargs": {"max_model_len": 8192, "mm_processor_kwargs": {"max_pixels": 262_144}},
        "per_image": 2,
        "styles": [
            {"name": "short", "prompt": "describe_short.txt", "weight": 3, "max_tokens": 40},
            {"name": "tags", "prompt": "tags.txt", "min_characters": 4},
            {"name": "given", "weight": 0.1},
        ],
    }
    caption = build(Caption, tree)
    assert [style.weight for style in caption.styles] == [3.0, 1.0, 0.1]
    assert caption.styles[1].prompt == (PROMPTS / "tags.txt").read_text().strip()
    assert set(caption.reads) == {"image", "caption", "sample_id", "answers"}
    twice = {**tree, "styles": [tree["styles"][0]] * 2}
    with pytest.raises(ConfigError, match="style name `short`: give every style its own"):
        build(Caption, twice)


def test_the_first_that_passes_its_checks_is_taken(chat_server: Any) -> None:
    replies = {"Say it in one line.": "No.", "Use A.": "A room full of noise."}
    chat_server.default = lambda body: chat_server.answer(replies[asked(body)])
    caption = endpoint(chat_server, styles=STYLES[:2], per_image=2)
    batch = styled(12, [None] * 12, ['{"title": "A"}'] * 12)
    out = caption(batch)
    assert set(out["style"].to_pylist()) == {"world"}
    assert {v[0]["style"] for v in out["variants"].to_pylist()} == {"short", "world"}
    replies["Use A."] = "Nor this."
    out = caption(batch)
    first = [variants[0] for variants in out["variants"].to_pylist()]
    assert out["style"].to_pylist() == [variant["style"] for variant in first]
    assert set(map(tuple, out["checks"].to_pylist())) == {("too_short",)}


def test_one_failed_style_does_not_fail_the_row(chat_server: Any) -> None:
    down = (400, {}, b"too odd")
    fine = chat_server.answer("A quiet grey harbour.")
    chat_server.default = lambda body: down if asked(body).startswith("Use") else fine
    caption = endpoint(chat_server, styles=STYLES[:2], per_image=2)
    out = caption(styled(12, [None] * 12, ['{"title": "A"}'] * 11 + [None]))
    assert error_types(out) == [None] * 12
    assert set(out["style"].to_pylist()) == {"short"}
    for variants in out["variants"].to_pylist()[:11]:
        [failed] = [variant for variant in variants if variant["error"]]
        assert (failed["style"], failed["text"], failed["checks"]) == ("world", None, None)
        assert failed["error"]["type"] == "http_400"
    assert out["variants"][11].as_py() is None  # one style could be asked
    chat_server.default = lambda body: down
    out = caption(styled(2, [None] * 2, ['{"title": "A"}', None]))
    assert error_types(out) == ["http_400"] * 2
    assert len(out["variants"][0].as_py()) == 2


def test_a_style_that_failed_for_a_moment_is_waited_for(chat_server: Any, tmp_path: Path) -> None:
    """Another would stand for good: the row fails, so that a retry asks for what is missing."""
    cache = str(tmp_path / "answers.sqlite")
    caption = endpoint(chat_server, styles=STYLES[:2], per_image=2, max_retries=0, cache=cache)
    batch = styled(12, [None] * 12, ['{"title": "A"}'] * 12)
    said = {"Say it in one line.": "A room full of noise.", "Use A.": "A wall of coloured dots."}

    def reply(body: dict[str, Any]) -> Any:
        text = said[asked(body)]
        return (503, {}, b"busy") if text == "busy" else chat_server.answer(text)

    chat_server.default = reply
    whole = dataclasses.replace(caption, cache=None)(batch)
    said["Use A."] = "busy"
    out = caption(batch)
    first = whole["style"].to_pylist()
    assert set(first) == {"short", "world"}
    assert error_types(out) == ["http_503" if style == "world" else None for style in first]
    for variants in out["variants"].to_pylist():
        assert {v["style"]: v["text"] for v in variants}["short"] == said["Say it in one line."]
    said["Use A."] = "A wall of coloured dots."
    chat_server.requests.clear()
    retried = caption(batch)
    assert {asked(request) for request in chat_server.requests} == {"Use A."}
    assert retried["text"].equals(whole["text"])
    # What comes later in drawn order counts where what there is does not pass its checks.
    said |= {"Say it in one line.": "No.", "Use A.": "busy"}
    assert error_types(dataclasses.replace(caption, cache=None)(batch)) == ["http_503"] * 12


def test_a_style_whose_values_are_missing_is_not_drawn(chat_server: Any) -> None:
    caption = endpoint(chat_server, styles=STYLES[1:])
    metadata = ['{"title": "A"}', "{}", None, "no JSON", '{"title": 7}']
    out = caption(styled(5, [None, "A given caption.", None, None, None], metadata))
    assert out["style"].to_pylist() == ["world", "given", None, None, "world"]
    assert error_types(out) == [None, None, "missing_variable", "missing_variable", None]
    message = "the sample has no {caption}, {metadata.title}"
    assert out["error"][2].as_py()["message"] == message
    assert {asked(request) for request in chat_server.requests} == {"Use A.", "Use 7."}


def test_a_million_characters_of_metadata_are_cut_and_noted(chat_server: Any) -> None:
    prompt = "Facts: {metadata}. Describe it."
    caption = endpoint(chat_server, prompt=prompt, max_value_characters=500)
    long = '{"x": "' + "</facts> \\ud800 \\u0000 " * 50_000 + '"}'
    batch = styled(2, [None] * 2, [long, '{"x": "short"}'])
    out = caption(batch)
    assert out["checks"].to_pylist() == [["value_cut"], []]
    sizes = sorted(len(asked(body)) for body in chat_server.requests)
    assert sizes == [len('Facts: {"x": "short"}. Describe it.'), 500 + len(prompt) - 10]


def test_latency_is_that_of_the_first_time(chat_server: Any, tmp_path: Path) -> None:
    chat_server.replies = [None]
    batch = rows([picture(i) for i in range(3)])
    kept = endpoint(chat_server, cache=str(tmp_path / "a.sqlite"), timeout_s=0.3, max_retries=0)
    first = kept(batch)
    assert error_types(first).count("timeout") == 1
    assert first["latency_s"].null_count == 1
    second = kept(batch)
    assert second["latency_s"].null_count == 0
    known = pa.compute.is_valid(first["latency_s"])
    assert second.filter(known).equals(first.filter(known))
    assert kept(batch).equals(second)
    # Without a cache no rerun could repeat it.
    assert endpoint(chat_server)(batch)["latency_s"].null_count == 3


def test_two_that_ask_at_once_say_the_same(chat_server: Any, tmp_path: Path) -> None:
    cache = str(tmp_path / "answers.sqlite")
    slower = endpoint(chat_server, cache=cache)

    def meanwhile(body: dict[str, Any]) -> Any:
        chat_server.default = lambda body: chat_server.answer("What the faster one was told.")
        faster = endpoint(chat_server, cache=cache)(rows([picture(0)]))
        assert faster["text"].to_pylist() == ["What the faster one was told."]
        return chat_server.answer("What the slower one was told.")

    chat_server.default = meanwhile
    out = slower(rows([picture(0)]))
    assert out["text"].to_pylist() == ["What the faster one was told."]


def test_the_cache_is_one_file_wherever_a_worker_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    caption = Caption(cache="answers.sqlite")
    assert caption.cache == str(tmp_path / "answers.sqlite")
    assert dataclasses.replace(caption) == caption
    assert Caption().cache is None


def test_without_asking_only_known_answers_are_taken(chat_server: Any, tmp_path: Path) -> None:
    cache = str(tmp_path / "answers.sqlite")
    batch = rows([picture(0), picture(1)])
    known = endpoint(chat_server, cache=cache)(batch[:1])
    closed = Caption(
        engine="openai", base_url="http://127.0.0.1:9", model="seer", cache=cache, ask=False
    )
    out = closed(batch)
    assert out[:1].equals(known)
    assert error_types(out) == [None, "not_answered"]


def test_the_language_is_checked(chat_server: Any) -> None:
    chat_server.replies = [chat_server.answer("Ein stiller grauer Hafen am frühen Morgen.")]
    caption = endpoint(chat_server, language="en", concurrency=1)
    assert caption(rows([picture(0), picture(1)]))["checks"].to_pylist() == [["language"], []]


def test_vllm_takes_what_was_fetched_before() -> None:
    caption = Caption(engine="vllm", model="qwen", styles=STYLES[:2], per_image=2)
    assert "answers" in caption.reads
    batch = styled(3, [None] * 3, ['{"title": "A"}'] * 3)
    questions = caption.questions(batch)
    assert [row for row, *_ in questions] == [0, 0, 1, 1, 2, 2]
    assert {question.text for *_, question in questions} == {"Say it in one line.", "Use A."}
    known = {
        key: {"key": key, "text": f"{question.text} Yes.", "num_tokens": 3, "latency_s": 0.25}
        for row, key, question in questions
        if row == 0 or (row == 1 and question.text == "Use A.")
    }
    answers = [[known[k] for r, k, _ in questions if r == row and k in known] for row in range(3)]
    out = caption(batch.append_column("answers", pa.array(answers, pa.list_(ANSWER))))
    assert error_types(out) == [None, None, "not_answered"]
    assert out["style"].to_pylist()[1:] == ["world", None]
    assert out["engine"].to_pylist() == ["vllm", "vllm", None]
    assert out["latency_s"].to_pylist() == [0.25, 0.25, None]
    # A row's answers are its own: its neighbours, as many as a batch has, change nothing.
    twins = pa.concat_tables([batch[:1], batch[:1]])
    mine = pa.array([list(known.values()), []], pa.list_(ANSWER))
    assert error_types(caption(twins.append_column("answers", mine))) == [None, "not_answered"]
    # The engine is part of the question, but not how fast it is made to run.
    keys = {key for _, key, _ in questions}

    def keys_of(**settings: Any) -> set[str]:
        return {key for _, key, _ in dataclasses.replace(caption, **settings).questions(batch)}

    assert keys_of(engine_kwargs={"gpu_memory_utilization": 0.8}) == keys
    assert keys_of(engine_kwargs={"quantization": "fp8"}).isdisjoint(keys)
    openai = {"engine": "openai", "base_url": "http://127.0.0.1:9"}
    assert keys_of(**openai).isdisjoint(keys)


def test_the_fingerprint_holds_what_answers_depend_on() -> None:
    def described(**settings: Any) -> str:
        return canonical(Caption(engine="vllm", model="qwen", **settings))

    assert described() == described(engine_kwargs={"max_num_seqs": 4})
    different = [
        {"engine_kwargs": {"dtype": "half"}},
        {"styles": STYLES[:1]},
        {"styles": (dataclasses.replace(STYLES[0], weight=3.0),)},
        {"language": "en"},
        {"prompt": "tags.txt"},
    ]
    assert len({described(), *(described(**settings) for settings in different)}) == 6


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"engine": "openai", "model": "m"}, "`base_url` is ''"),
        ({"engine": "openai", "base_url": "http://host/v1"}, "`model` is empty"),
        ({"max_tokens": 0}, "`max_tokens` is 0: at least 1"),
        ({"temperature": float("nan")}, "`temperature` is nan"),
        ({"cache": "s3://bucket/cache"}, "`cache` is s3://bucket/cache: a file on a local disk"),
        ({"engine": "sglang"}, "`engine` is 'sglang': choose one of given, openai, vllm"),
        ({"engine": "vllm"}, "`model` is empty: engine vllm needs a model's name"),
        ({"per_image": 0}, "`per_image` is 0: at least 1"),
        ({"per_image": 2}, "`per_image` is 2, there are 0 styles"),
        ({"max_value_characters": 0}, "`max_value_characters` is 0: at least 1"),
        ({"styles": [{"name": "given"}]}, "`styles` need an engine that writes: openai or vllm"),
        ({"ask": False}, "`ask` is false: name the `cache`"),
        ({"language": "klingon"}, "`language` is 'klingon': choose one of af, am,"),
        ({"engine_kwargs": {"dtype": "half"}}, "`engine_kwargs` are those of engine vllm"),
    ],
)
def test_mistakes_are_told_in_one_line(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Caption, parameters)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threaded", "async"])
def test_inside_a_ray_actor(chat_server: Any, tmp_path: Path, kind: str, ray_session: None) -> None:
    caption = endpoint(chat_server, cache=str(tmp_path / "answers.sqlite"))
    batch = rows([picture(i) for i in range(4)])

    class Threaded:
        def run(self, batch: pa.Table) -> pa.Table:
            return caption(batch)

    class Async:
        async def run(self, batch: pa.Table) -> pa.Table:
            return caption(batch)

    actor = ray.remote(Threaded if kind == "threaded" else Async).remote()
    out = ray.get(actor.run.remote(batch), timeout=60)
    ray.kill(actor)
    assert out.equals(caption(batch))
    assert error_types(out) == [None] * 4
    assert len(chat_server.requests) == 4
