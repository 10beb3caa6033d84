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
from infra.schema import CAPTIONS, ERROR_TYPE
from operators.caption import SHORT_SIDE, Caption
from operators.caption_prompt import PROMPTS

FAILED = {"stage": "probe", "type": "truncated", "message": "earlier"}
COLUMNS = ["text", "engine", "model", "prompt_hash", "num_tokens", "checks"]


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
    for name in ("model", "prompt_hash", "num_tokens"):
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
            assert {*COLUMNS, "sample_id", "error"} == set(CAPTIONS.names)
            assert len(out) == len(batch)


def test_what_the_endpoint_is_sent(chat_server: Any) -> None:
    chat_server.default = lambda body: chat_server.answer(" A red garden gate. ", "length", 9)
    caption = endpoint(chat_server, max_tokens=33, seed=7)
    out = caption(rows([picture(0, 600, 1200), picture(1, 20, 30)]))
    assert out["text"].to_pylist() == ["A red garden gate."] * 2
    assert out["engine"].to_pylist() == ["openai"] * 2
    assert out["model"].to_pylist() == ["seer"] * 2
    assert out["prompt_hash"].to_pylist() == [caption.prompt_hash] * 2
    assert out["num_tokens"].to_pylist() == [9, 9]
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
    assert changed.prompt_hash != caption.prompt_hash
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


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"engine": "openai", "model": "m"}, "`base_url` is ''"),
        ({"engine": "openai", "base_url": "http://host/v1"}, "`model` is empty"),
        ({"max_tokens": 0}, "`max_tokens` is 0: at least 1"),
        ({"temperature": float("nan")}, "`temperature` is nan"),
        ({"cache": "s3://bucket/cache"}, "`cache` is s3://bucket/cache: a file on a local disk"),
        ({"engine": "vllm"}, "`engine` is 'vllm': choose one of given, openai"),
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
