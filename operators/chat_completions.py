"""A client of the OpenAI chat completions protocol: many requests at once, each with its own fate.

vLLM, SGLang, `transformers serve` and the hosted services speak it.
"""

import asyncio
import dataclasses
import email.utils
import os
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from infra.config import ConfigError
from operators.response_cache import Answer

CONNECT_TIMEOUT_S = 10.0
MAX_WAIT_S = 60.0
"""Longest pause between two attempts, whatever the endpoint asks for."""
MAX_BODY_BYTES = 16_000_000
"""Longest response that is read: an endpoint gone wrong must not fill a worker's memory."""
_RETRY_STATUS = frozenset({408, 425, 429})
_EXCERPT_CHARACTERS = 300
_MAX_INT32 = 2**31 - 1
T = TypeVar("T")


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask; ``timeout_s`` bounds one whole attempt, trickling answers included.

    Raises ConfigError for impossible values.
    """

    base_url: str
    api_key_env: str | None = None
    timeout_s: float = 120.0
    max_retries: int = 5
    retry_wait_s: float = 1.0
    concurrency: int = 16

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("max_retries", 0), ("retry_wait_s", 0)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"endpoint: `{name}` is {getattr(self, name)}: at least {least}")
        if not self.timeout_s > 0:
            raise ConfigError(f"endpoint: `timeout_s` is {self.timeout_s}: must be above 0")
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(
                f"endpoint: `base_url` is {self.base_url!r}: expected one such as "
                "http://localhost:8000/v1"
            )
        if url.userinfo or url.query or url.fragment:
            # Addresses are printed and stored: no key belongs in one, nor into this message.
            raise ConfigError(
                "endpoint: `base_url` holds a user, password or query: pass a key by `api_key_env`"
            )


class EndpointError(Exception):
    """Why one request has no answer: ``type`` is http_<status>, timeout, connection or
    bad_response."""

    def __init__(self, type_: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.type = type_
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        if self.type in ("timeout", "connection"):
            return True
        status = int(self.type.removeprefix("http_")) if self.type.startswith("http_") else 0
        return status in _RETRY_STATUS or status >= 500


def api_key(variable: str | None) -> str | None:
    """The key in the environment variable, or None where no variable is named.

    Raises ConfigError where it is unset or cannot be a header.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"`api_key_env` names the environment variable {variable}, which is not set: "
            f"export {variable}=… on every machine that asks for captions"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"environment variable {variable} holds no key: not printable ASCII")
    return key


def ask_all(
    endpoint: Endpoint,
    requests: Sequence[Mapping[str, Any]],
    on_answer: Callable[[int, Answer], None] = lambda index, answer: None,
) -> list[Answer | EndpointError]:
    """Send all requests (bodies of chat completions), ``concurrency`` at a time.

    Gives one answer or error per request, in order. ``on_answer(index, answer)`` is called as each
    answer arrives. Statuses 408, 425, 429 and 5xx, connection errors and timeouts are tried again
    ``max_retries`` times, after a doubling wait with jitter or as the endpoint's Retry-After says;
    other failures are final. May be called with or without a running event loop.
    """
    key = api_key(endpoint.api_key_env)

    async def ask_them() -> list[Answer | EndpointError]:
        semaphore = asyncio.Semaphore(endpoint.concurrency)

        async def ask_one(index: int) -> Answer | EndpointError:
            # The place is kept while waiting to try again, which takes load off the endpoint.
            async with semaphore:
                result = await _ask(client, endpoint, requests[index], key)
            if isinstance(result, Answer):
                on_answer(index, result)
            return result

        limits = httpx.Limits(max_connections=endpoint.concurrency)
        timeout = httpx.Timeout(endpoint.timeout_s, connect=CONNECT_TIMEOUT_S, pool=None)
        async with httpx.AsyncClient(
            limits=limits, timeout=timeout, headers=headers(key)
        ) as client:
            tasks = [asyncio.create_task(ask_one(index)) for index in range(len(requests))]
            try:
                return await asyncio.gather(*tasks)
            finally:  # where one raised or we are cancelled, none may outlive the client
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    return _run(ask_them)


async def _ask(
    client: httpx.AsyncClient, endpoint: Endpoint, request: Mapping[str, Any], key: str | None
) -> Answer | EndpointError:
    attempt = 0
    while True:
        try:
            started = time.monotonic()
            async with asyncio.timeout(endpoint.timeout_s):
                response = await _post(client, chat_url(endpoint.base_url), request)
            latency_s = time.monotonic() - started
            if response.status_code != 200:
                raise EndpointError(
                    f"http_{response.status_code}",
                    excerpt(response, key),
                    _retry_after_s(response.headers.get("retry-after")),
                )
            return dataclasses.replace(parse(response), latency_s=latency_s)
        except EndpointError as error:
            failure = error
        except (TimeoutError, httpx.TimeoutException):
            failure = EndpointError("timeout", f"no answer within {endpoint.timeout_s:g} s")
        except httpx.HTTPError as error:
            failure = EndpointError("connection", cause(error))
        if attempt >= endpoint.max_retries or not failure.is_transient:
            times = f" (after {attempt + 1} attempts)" if attempt else ""
            return EndpointError(failure.type, failure.message + times)
        wait_s = failure.retry_after_s
        if wait_s is None:
            # Half to all of the doubling wait: clients that failed together do not return together.
            wait_s = endpoint.retry_wait_s * 2**attempt * random.uniform(0.5, 1.0)
        await asyncio.sleep(min(wait_s, MAX_WAIT_S))
        attempt += 1


async def _post(client: httpx.AsyncClient, url: str, request: Mapping[str, Any]) -> httpx.Response:
    """The whole response; raises EndpointError where it is longer than any answer."""
    async with client.stream("POST", url, json=request) as response:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise EndpointError("bad_response", f"longer than {MAX_BODY_BYTES:,} bytes")
        # Its bytes are decompressed by now, so of its headers only what is asked for stays.
        kept = {k: v for k, v in response.headers.items() if k.lower() == "retry-after"}
        return httpx.Response(response.status_code, headers=kept, content=bytes(body))


def parse(response: httpx.Response) -> Answer:
    """The answer in a response; raises EndpointError where it is no chat completion."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    try:
        return answer_in(body)
    except EndpointError as error:
        message = error.message if body is not None else "not a chat completion"
        raise EndpointError("bad_response", f"{message}: {excerpt(response)}") from None


def answer_in(body: Any) -> Answer:
    """The answer in the body of a chat completion; raises EndpointError where there is none."""
    try:
        choice = body["choices"][0]
        content = choice["message"]["content"]
        usage = body.get("usage") or {}
        answered, asked = usage.get("completion_tokens"), usage.get("prompt_tokens")
        reason = choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        raise EndpointError("bad_response", "not a chat completion") from None
    if content is not None and not isinstance(content, str):
        raise EndpointError("bad_response", f"content is {type(content).__name__}, not text")
    return Answer(
        text=_storable(content or ""),
        num_tokens=_count(answered),
        finish_reason=_storable(reason)[:_EXCERPT_CHARACTERS] if isinstance(reason, str) else None,
        num_prompt_tokens=_count(asked),
    )


def _storable(text: str) -> str:
    # JSON can carry halves of surrogate pairs, which no UTF-8 column holds.
    return text.encode("utf-8", "replace").decode("utf-8")


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_INT32 else None


def _retry_after_s(value: str | None) -> float | None:
    """Seconds, or an HTTP date, as the header allows; None where it says neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return max(0.0, moment.timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def excerpt(response: httpx.Response, key: str | None = None) -> str:
    text = " ".join(response.text.split())
    if key is not None:  # some endpoints repeat the key that they refuse
        text = text.replace(key, "***")
    return f"HTTP {response.status_code}: {text[:_EXCERPT_CHARACTERS]}"


def cause(error: httpx.HTTPError) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def chat_url(base_url: str) -> str:
    return f"{base_url.rstrip('/')}/chat/completions"


def headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _run(ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(ask())
    # Called from a coroutine (an async Ray actor, a notebook): a loop of its own, in a thread.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(ask())).result()
