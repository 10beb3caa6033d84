"""The chat client against endpoints that fail in every way."""

import asyncio
import email.utils
import socket
import time
from typing import Any

import pytest

from infra.config import ConfigError
from operators.chat_completions import Endpoint, EndpointError, ask_all
from operators.response_cache import Answer

REQUEST = {"model": "seer", "messages": [{"role": "user", "content": "What is it?"}]}
FINE = Answer("A quiet grey harbour.", 5, "stop", 7)


def ask(server: Any, count: int = 1, **settings: Any) -> list[Answer | EndpointError]:
    settings = {"timeout_s": 5.0, "retry_wait_s": 0.01, **settings}
    return ask_all(Endpoint(server.url, **settings), [REQUEST] * count)


def failure(server: Any, **settings: Any) -> EndpointError:
    [result] = ask(server, **settings)
    assert isinstance(result, EndpointError)
    return result


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_an_answer_comes_back(chat_server: Any) -> None:
    assert ask(chat_server) == [FINE]
    assert chat_server.paths == ["/v1/chat/completions"]
    assert chat_server.requests == [REQUEST]
    assert ask_all(Endpoint(chat_server.url), []) == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_transient_failures_are_tried_again(chat_server: Any, status: int) -> None:
    chat_server.replies = [(status, {}, b"busy"), (status, {}, b"busy")]
    assert ask(chat_server) == [FINE]
    assert len(chat_server.requests) == 3


def test_retries_end_and_tell_the_last_cause(chat_server: Any) -> None:
    chat_server.default = lambda body: (503, {}, b"<h1>over\ncapacity</h1>")
    error = failure(chat_server, max_retries=2)
    assert error.type == "http_503"
    assert error.message == "HTTP 503: <h1>over capacity</h1> (after 3 attempts)"
    assert len(chat_server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 307])
def test_refusals_are_final(chat_server: Any, status: int) -> None:
    chat_server.default = lambda body: (status, {}, b'{"error": "no such thing"}')
    error = failure(chat_server)
    assert (error.type, error.message) == (
        f"http_{status}",
        f'HTTP {status}: {{"error": "no such thing"}}',
    )
    assert len(chat_server.requests) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(chat_server: Any, form: str) -> None:
    # A date has whole seconds: two seconds ahead is at least one second of waiting.
    date = email.utils.formatdate(time.time() + 2, usegmt=True)
    value = "1" if form == "seconds" else date
    chat_server.replies = [(429, {"Retry-After": value}, b"")]
    start = time.monotonic()
    assert ask(chat_server) == [FINE]
    assert 0.9 < time.monotonic() - start < 4


@pytest.mark.parametrize("value", ["soon", "-5", "Mon, 99 Foo 2020", "1e9", ""])
def test_a_senseless_retry_after_is_not(chat_server: Any, value: str) -> None:
    chat_server.replies = [(429, {"Retry-After": value}, b"")]
    start = time.monotonic()
    assert ask(chat_server) == [FINE]
    assert time.monotonic() - start < 1


def test_a_hanging_endpoint_times_out(chat_server: Any) -> None:
    chat_server.default = lambda body: None
    start = time.monotonic()
    results = ask(chat_server, 4, timeout_s=0.3, max_retries=1)
    assert time.monotonic() - start < 4
    assert [result.type for result in results if isinstance(result, EndpointError)] == [
        "timeout"
    ] * 4
    chat_server.replies = [None]
    chat_server.default = lambda body: chat_server.answer("A quiet grey harbour.")
    assert ask(chat_server, timeout_s=0.3) == [FINE]


def test_nobody_there_is_a_connection_error() -> None:
    endpoint = Endpoint(f"http://127.0.0.1:{free_port()}/v1", max_retries=1, retry_wait_s=0.01)
    [error] = ask_all(endpoint, [REQUEST])
    assert isinstance(error, EndpointError)
    assert (error.type, error.is_transient) == ("connection", True)
    assert "2 attempts" in error.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>login</html>",
        b"[]",
        b"null",
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": 3}',
        b'{"choices": [{"message": {"content": {"a": 1}}}]}',
        b'{"choices": [{"message": {"content": "x"}}], "usage": [1]}',
        b"\xff\xfe\x00garbage",
        b"[" * 100_000,
    ],
)
def test_garbage_fails_the_row_only(chat_server: Any, body: bytes) -> None:
    chat_server.replies = [(200, {"Content-Type": "application/json; charset=wat"}, body)]
    error = failure(chat_server)
    assert error.type == "bad_response"
    assert len(error.message) < 400
    assert "\n" not in error.message


@pytest.mark.parametrize(
    "text",
    [
        "<b>\"Quotes\"</b> & 'more'\n\n\tlines \\ {braces} {caption} %s",
        "🐈‍⬛ ünïcode 猫 \u202e",
        "x" * 1_000_000,
        "nul \x00 inside",
    ],
)
def test_texts_come_back_whole(chat_server: Any, text: str) -> None:
    chat_server.replies = [chat_server.answer(text, "length", 7)]
    assert ask(chat_server) == [Answer(text, 7, "length", 7)]


def test_odd_answers_fit_the_columns(chat_server: Any) -> None:
    chat_server.replies = [
        chat_server.answer("half \ud83d a pair", "stop", 3),
        chat_server.answer(None, "stop", -1),
        chat_server.answer("many", "stop", 2**40),
        chat_server.answer("true", "stop", True),
        (200, {}, b'{"choices": [{"message": {"content": "bare"}}]}'),
        chat_server.answer("odd end", "\ud83d" * 999, 3),
    ]
    assert ask(chat_server, 6, concurrency=1) == [
        Answer("half ? a pair", 3, "stop", 7),
        Answer("", None, "stop", 7),
        Answer("many", None, "stop", 7),
        Answer("true", None, "stop", 7),
        Answer("bare", None, None),
        Answer("odd end", 3, "?" * 300, 7),
    ]


def test_an_endless_answer_is_not_read_to_its_end(chat_server: Any) -> None:
    chat_server.replies = [(200, {}, b" " * 40_000_000), chat_server.answer("x" * 15_000_000)]
    first, second = ask(chat_server, 2, concurrency=1)
    assert isinstance(first, EndpointError)
    assert (first.type, first.message) == ("bad_response", "longer than 16,000,000 bytes")
    assert isinstance(second, Answer)
    assert len(second.text) == 15_000_000


def test_latency_is_that_of_the_answer_alone(chat_server: Any) -> None:
    def slow(body: dict[str, Any]) -> Any:
        time.sleep(0.1)
        return chat_server.answer("A quiet grey harbour.")

    chat_server.replies = [(500, {}, b""), (500, {}, b"")]
    chat_server.default = slow
    [answer] = ask(chat_server, retry_wait_s=0.3)
    assert isinstance(answer, Answer)
    assert answer.latency_s is not None
    assert 0.1 <= answer.latency_s < 0.3


def test_at_most_so_many_at_once_and_in_order(chat_server: Any) -> None:
    def slow(body: dict[str, Any]) -> Any:
        time.sleep(0.05)
        return chat_server.answer(body["messages"][0]["content"])

    chat_server.default = slow
    requests = [{"messages": [{"content": f"number {i}"}]} for i in range(20)]
    seen: list[int] = []
    results = ask_all(
        Endpoint(chat_server.url, concurrency=3), requests, lambda index, answer: seen.append(index)
    )
    texts = [result.text for result in results if isinstance(result, Answer)]
    assert texts == [f"number {i}" for i in range(20)]
    assert chat_server.most_at_once == 3
    assert sorted(seen) == list(range(20))


def test_inside_a_running_loop(chat_server: Any) -> None:
    async def caller() -> list[Answer | EndpointError]:
        return ask(chat_server, 3)

    assert asyncio.run(caller()) == [FINE] * 3

    async def failing() -> None:
        def full(index: int, answer: Answer) -> None:
            raise OSError("disk full")

        ask_all(Endpoint(chat_server.url), [REQUEST], full)

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(failing())


def test_the_key_is_sent_and_never_told(chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEER_KEY", "sk-secret\n")
    assert ask(chat_server, api_key_env="SEER_KEY") == [FINE]
    assert chat_server.headers[0]["Authorization"] == "Bearer sk-secret"
    chat_server.replies = [(403, {}, b"wrong key: sk-secret")]
    assert failure(chat_server, api_key_env="SEER_KEY").message == "HTTP 403: wrong key: ***"
    for value in ("", "schlüssel", "a\nb"):
        monkeypatch.setenv("SEER_KEY", value)
        with pytest.raises(ConfigError, match="SEER_KEY"):
            ask(chat_server, api_key_env="SEER_KEY")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": ""}, "`base_url` is ''"),
        ({"base_url": "localhost:8000"}, "`base_url` is 'localhost:8000': expected one such as"),
        ({"base_url": "ftp://host/v1"}, "`base_url` is 'ftp://host/v1'"),
        ({"base_url": "http:///v1"}, "`base_url` is 'http:///v1'"),
        ({"base_url": "http://host:port/v1"}, "`base_url` is 'http://host:port/v1'"),
        ({"concurrency": 0}, "`concurrency` is 0: at least 1"),
        ({"max_retries": -1}, "`max_retries` is -1: at least 0"),
        ({"retry_wait_s": float("nan")}, "`retry_wait_s` is nan: at least 0"),
        ({"timeout_s": 0.0}, "`timeout_s` is 0.0: must be above 0"),
    ],
)
def test_mistakes_are_told_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint(**{"base_url": "http://host/v1", **settings})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_in_the_address_is_refused_and_not_repeated() -> None:
    for url in ("http://user:sk-secret@host/v1", "http://host/v1?key=sk-secret"):
        with pytest.raises(ConfigError, match="api_key_env") as caught:
            Endpoint(url)
        assert "sk-secret" not in str(caught.value)
