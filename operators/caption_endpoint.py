"""Whether a caption endpoint is there and has the model: asked once, before any work starts."""

import queue
import threading
import time

import httpx

from infra.config import ConfigError
from operators.chat_completions import (
    EndpointError,
    api_key,
    cause,
    chat_url,
    excerpt,
    headers,
    parse,
)


def check_endpoint(
    base_url: str, model: str, api_key_env: str | None = None, timeout_s: float = 20.0
) -> None:
    """Make sure that the endpoint answers and has the model, within ``timeout_s`` in all cases.

    The list of models decides where it names the model; else one request for a single token does,
    since some servers list nothing or serve names that they do not list. Raises ConfigError with
    one line that names the address, the cause and the remedy.
    """
    key = api_key(api_key_env)
    outcome: queue.Queue[Exception | None] = queue.Queue()

    def check() -> None:
        try:
            _check(base_url, model, api_key_env, key, time.monotonic() + timeout_s)
        except (ConfigError, UnicodeError, httpx.HTTPError, httpx.InvalidURL) as error:
            outcome.put(error)
        else:
            outcome.put(None)

    # A thread that may be left behind: a lookup of a host's name cannot be interrupted, and a
    # server that sends a byte now and then never runs into a read timeout.
    threading.Thread(target=check, daemon=True).start()
    try:
        error = outcome.get(timeout=timeout_s)
    except queue.Empty:
        error = httpx.ReadTimeout("")
    if isinstance(error, httpx.TimeoutException):
        raise ConfigError(
            f"caption endpoint {base_url} did not answer within {timeout_s:g} s: is it still "
            "loading its model, or is `base_url` another server's?"
        ) from None
    if isinstance(error, httpx.HTTPError):
        raise ConfigError(
            f"caption endpoint {base_url} cannot be reached ({cause(error)}): start the server "
            "or correct `base_url`"
        ) from None
    if isinstance(error, ConfigError):
        raise error
    if error is not None:  # an address that no resolver takes, such as a label of 64 characters
        raise ConfigError(f"caption endpoint {base_url}: {error}: correct `base_url`") from None


def _check(
    base_url: str, model: str, api_key_env: str | None, key: str | None, deadline: float
) -> None:
    # A connection each: servers close theirs after a fault of their own, in a race with our next.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(headers=headers(key), limits=limits) as client:

        def left() -> float:
            return max(deadline - time.monotonic(), 0.1)

        listing = client.get(f"{base_url.rstrip('/')}/models", timeout=left())
        models = _model_ids(listing)
        if model in models:
            return
        if listing.status_code not in (401, 403):
            request = {
                "model": model,
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": 1,
            }
            reply = client.post(chat_url(base_url), json=request, timeout=left())
        else:
            reply = listing
    if reply.status_code in (401, 403):
        remedy = f"check the key in {api_key_env}" if api_key_env else "name one by `api_key_env`"
        raise ConfigError(
            f"caption endpoint {base_url} refuses the API key (HTTP {reply.status_code}): {remedy}"
        )
    if reply.status_code == 429:
        return  # it is there and busy: the requests themselves wait as it asks
    if reply.status_code == 200:
        try:
            parse(reply)
        except EndpointError as error:
            raise ConfigError(
                f"caption endpoint {base_url} is no chat endpoint ({error.message}): `base_url` "
                "usually ends in /v1"
            ) from None
        return
    if reply.status_code >= 500:
        raise ConfigError(
            f"caption endpoint {base_url} fails for model `{model}` ({excerpt(reply, key)}): "
            "see the server's log"
        )
    known = f"it lists {', '.join(models[:8])}" if models else "does `base_url` end in /v1?"
    raise ConfigError(
        f"caption endpoint {base_url} does not serve model `{model}` "
        f"({excerpt(reply, key)}): {known}"
    )


def _model_ids(response: httpx.Response) -> list[str]:
    try:
        return [str(model["id"]) for model in response.json()["data"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []  # some servers have no such list
