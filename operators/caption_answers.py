"""Answers to questions about pictures: from the cache, from an endpoint, or fetched before."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from infra.config import ConfigError
from infra.schema import CAPTION_VARIANT
from operators.caption_request import Question
from operators.caption_style import Draft
from operators.response_cache import Answer, open_cache

if TYPE_CHECKING:  # httpx is needed by one engine only
    from operators.chat_completions import Endpoint

ANSWER = pa.struct(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("num_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("num_prompt_tokens", pa.int32()),
        ("latency_s", pa.float64()),
    ]
)
"""An answer with the key of its question. A column ``answers`` is a list of them per row."""

Failure = dict[str, str]  # stage, type, message


def failure(type_: str, message: str) -> Failure:
    return {"stage": "caption", "type": type_, "message": message}


class Reached(Protocol):
    """What `chat_completions.Endpoint` needs to know."""

    @property
    def base_url(self) -> str: ...
    @property
    def api_key_env(self) -> str | None: ...
    @property
    def timeout_s(self) -> float: ...
    @property
    def max_retries(self) -> int: ...
    @property
    def retry_wait_s(self) -> float: ...
    @property
    def concurrency(self) -> int: ...


def endpoint(of: Reached) -> "Endpoint":
    """The endpoint of an operator; raises ConfigError for impossible values."""
    try:
        from operators.chat_completions import Endpoint
    except ImportError:
        raise ConfigError(
            "captions of engine `openai` need httpx: pip install 'nextscale[vlm]'"
        ) from None
    return Endpoint(
        of.base_url,
        of.api_key_env,
        of.timeout_s,
        of.max_retries,
        of.retry_wait_s,
        of.concurrency,
    )


def ask(
    endpoint: "Endpoint", questions: Mapping[str, Question], cache_path: str | None, send: bool
) -> dict[str, Answer | Failure]:
    """Answers by key: from the cache, else (if ``send``) from the endpoint.

    The endpoint sees each question once. Raises ConfigError for a cache that cannot be opened.
    """
    from operators.chat_completions import ask_all

    with open_cache(cache_path) if cache_path else nullcontext() as cache:
        results: dict[str, Answer | Failure] = dict(cache.find(questions) if cache else {})
        new = [key for key in questions if key not in results] if send else []

        def keep(index: int, answer: Answer) -> None:
            key = new[index]
            # Without a cache no rerun could repeat the time that it took.
            results[key] = cache.store(key, answer) if cache else replace(answer, latency_s=None)

        bodies = [questions[key].body() for key in new]
        for key, result in zip(new, ask_all(endpoint, bodies, keep), strict=True):
            if not isinstance(result, Answer):
                results[key] = failure(result.type, result.message)
    return results


def fetched(column: pa.ChunkedArray) -> list[dict[str, Answer | Failure]]:
    """Each row's answers by key, of a column ``answers``; of several to a question the first."""
    return [
        {answer.pop("key"): Answer(**answer) for answer in reversed(answers or [])}
        for answers in column.to_pylist()
    ]


def is_of_a_moment(error: Failure) -> bool:
    """Whether an endpoint that failed like this may answer the same request later."""
    from operators.chat_completions import EndpointError

    return EndpointError(error["type"], error["message"]).is_transient


def variant(draft: Draft, answer: Answer | Failure | None, language: str | None) -> dict[str, Any]:
    """What came of a draft, as CAPTION_VARIANT; a given caption is its own answer."""
    values: dict[str, Any] = dict.fromkeys(CAPTION_VARIANT.names)
    values["style"] = draft.style.name or None
    if draft.style.is_given:
        answer = Answer(draft.text, None, None)
    if answer is None:
        answer = failure("not_answered", "no answer is known, and none was asked for here")
    if not isinstance(answer, Answer):
        return values | {"error": answer}
    return values | {
        "text": answer.text.strip(),
        "num_tokens": answer.num_tokens,
        "num_prompt_tokens": answer.num_prompt_tokens,
        "latency_s": answer.latency_s,
        "checks": draft.checks(answer.text, answer.finish_reason, language),
    }
