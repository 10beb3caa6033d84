"""The check of an endpoint, against servers that fail in every way and `transformers serve`."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.config import ConfigError
from infra.schema import ERROR_TYPE
from operators.caption import Caption
from operators.caption_endpoint import check_endpoint


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_check_passes_where_the_model_is_listed(chat_server: Any) -> None:
    check_endpoint(chat_server.url + "/", "seer")
    assert chat_server.paths == ["/v1/models"]


@pytest.mark.parametrize("listing", [b'{"data": [{"id": "other"}]}', b"<html>", b'{"data": 3}'])
def test_check_asks_where_it_is_not(chat_server: Any, listing: bytes) -> None:
    chat_server.models = (200, {}, listing)
    check_endpoint(chat_server.url, "seer")
    assert chat_server.requests[0]["max_tokens"] == 1
    chat_server.replies = [(429, {}, b"")]
    check_endpoint(chat_server.url, "seer")  # busy, but there


def test_check_names_an_unknown_model(chat_server: Any) -> None:
    chat_server.models = (200, {}, b'{"data": [{"id": "other"}, {"id": "another"}]}')
    chat_server.default = lambda body: (404, {}, b'{"error": "model not found"}')
    with pytest.raises(
        ConfigError,
        match=r"^caption endpoint http://127.* does not serve model `seer` \(HTTP 404: .*not found"
        r".*\): it lists other, another$",
    ):
        check_endpoint(chat_server.url, "seer")


@pytest.mark.parametrize("status", [401, 403])
def test_check_names_the_key(
    chat_server: Any, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_server.models = (status, {}, b"no")
    with pytest.raises(ConfigError, match=rf"refuses the API key \(HTTP {status}\): name one by"):
        check_endpoint(chat_server.url, "seer")
    assert chat_server.requests == []
    monkeypatch.setenv("SEER_KEY", "wrong")
    with pytest.raises(ConfigError, match="check the key in SEER_KEY"):
        check_endpoint(chat_server.url, "seer", "SEER_KEY")
    monkeypatch.delenv("SEER_KEY")
    with pytest.raises(ConfigError, match="SEER_KEY, which is not set"):
        check_endpoint(chat_server.url, "seer", "SEER_KEY")


def test_check_tells_a_faulty_server(chat_server: Any) -> None:
    chat_server.models = (500, {}, b"")
    chat_server.default = lambda body: (503, {}, b"out of memory")
    with pytest.raises(ConfigError, match=r"fails .* \(HTTP 503: out of memory\): see the server"):
        check_endpoint(chat_server.url, "seer")


def test_check_tells_a_web_site_from_an_endpoint(chat_server: Any) -> None:
    chat_server.models = (200, {}, b"<html>Welcome</html>")
    chat_server.default = lambda body: (200, {}, b"<html>Welcome</html>")
    with pytest.raises(ConfigError, match=r"no chat endpoint .* usually ends in /v1"):
        check_endpoint(chat_server.url, "seer")


@pytest.mark.parametrize("where", ["models", "chat"])
def test_check_does_not_hang_with_the_server(chat_server: Any, where: str) -> None:
    chat_server.models = None if where == "models" else (404, {}, b"")
    chat_server.default = lambda body: None
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"did not answer within 0.5 s: is it still loading"):
        check_endpoint(chat_server.url, "seer", timeout_s=0.5)
    assert time.monotonic() - start < 2


def test_check_does_not_wait_for_trickling_bytes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import socket, sys, time\n"
                "s = socket.socket(fileno=int(sys.argv[1])).accept()[0]\n"
                "s.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 99999\\r\\n\\r\\n')\n"
                "while True: s.sendall(b' '); time.sleep(0.1)\n",
                str(listener.fileno()),
            ],
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
        start = time.monotonic()
        with pytest.raises(ConfigError, match="did not answer within 1 s"):
            check_endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}", "seer", timeout_s=1)
        assert time.monotonic() - start < 3
        process.kill()
        process.wait()


def test_check_names_an_unreachable_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"cannot be reached \(.*refused\): start the server"):
        check_endpoint(f"http://127.0.0.1:{free_port()}/v1", "seer")
    with pytest.raises(ConfigError, match=r"http://seer.invalid/v1 cannot be reached"):
        check_endpoint("http://seer.invalid/v1", "seer")
    with pytest.raises(ConfigError, match="correct `base_url`"):
        check_endpoint(f"http://{'a' * 70}.example/v1", "seer")

    # A resolver that does not answer cannot be interrupted: it is left behind.
    def resolve(*args: Any, **kwargs: Any) -> None:
        time.sleep(2)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"did not answer within 0\.3 s"):
        check_endpoint("http://slow.example/v1", "seer", timeout_s=0.3)
    assert time.monotonic() - start < 1


# --- the real peer -----------------------------------------------------------------------------


@pytest.mark.slow
def test_transformers_serve_captions_photographs(qwen: tuple[str, str], tmp_path: Path) -> None:
    base_url, model = qwen
    check_endpoint(base_url, model)
    with pytest.raises(ConfigError, match=r"does not serve model `another` \(HTTP 400: .*pinned"):
        check_endpoint(base_url, "another")

    data = pytest.importorskip("skimage.data")
    photographs = [Path(data.data_dir) / name for name in ("astronaut.png", "coffee.png")]
    batch = pa.table(
        {
            "bytes": pa.array([p.read_bytes() for p in photographs] + [b"no"], pa.large_binary()),
            "error": pa.nulls(3, ERROR_TYPE),
        }
    )
    caption = Caption(
        engine="openai", picture="bytes", base_url=base_url, model=model, max_tokens=16
    )
    first = caption(batch)
    assert [error and error["type"] for error in first["error"].to_pylist()] == [
        None,
        None,
        "unknown_format",
    ]
    texts = first["text"].to_pylist()
    assert texts[0]
    assert texts[1]
    assert texts[0] != texts[1]  # the pictures were looked at
    assert first["num_tokens"].to_pylist() == [16, 16, None]
    asked = first["num_prompt_tokens"].to_pylist()
    assert min(asked[:2]) > 64  # the picture's tokens are counted, too
    assert all("truncated" in checks for checks in first["checks"].to_pylist()[:2])
    assert caption(batch).equals(first)  # temperature 0: the same words again
