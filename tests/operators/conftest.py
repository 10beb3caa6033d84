"""A chat endpoint on localhost that does as a test tells it."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class ChatServer:
    """``replies`` are used up in order, then ``default``; None hangs until the test ends.

    A reply is (status, headers, body), or a function of the request's body.
    """

    url: str = ""
    models: Reply | None = (200, {}, b'{"data": [{"id": "seer"}]}')
    replies: list[Reply | None] = field(default_factory=list)
    default: Callable[[dict[str, Any]], Reply | None] = lambda body: answer("A quiet grey harbour.")
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most_at_once: int = 0
    open_now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    end: threading.Event = field(default_factory=threading.Event)

    @staticmethod
    def answer(text: object, finish_reason: str = "stop", num_tokens: object = 5) -> Reply:
        return answer(text, finish_reason, num_tokens)


def answer(text: object, finish_reason: str = "stop", num_tokens: object = 5) -> Reply:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    body = {"choices": [choice], "usage": {"completion_tokens": num_tokens, "prompt_tokens": 7}}
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up is part of the tests."""


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.paths.append(self.path)
            self.reply(state.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.paths.append(self.path)
                state.requests.append(body)
                state.headers.append(dict(self.headers))
                state.open_now += 1
                state.most_at_once = max(state.most_at_once, state.open_now)
                scripted = bool(state.replies)
                reply = state.replies.pop(0) if scripted else None
            if not scripted:
                reply = state.default(body)
            with state.lock:
                state.open_now -= 1
            self.reply(reply)

        def reply(self, reply: Reply | None) -> None:
            if reply is None:
                state.end.wait()
                self.close_connection = True
                return
            status, headers, body = reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = _Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    state.end.set()
    server.shutdown()
    server.server_close()
    thread.join()
