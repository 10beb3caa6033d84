"""A chat endpoint on localhost that does as a test tells it, and one that holds a real model."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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


SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor -%}
<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def save_tiny_qwen(folder: Path) -> None:
    """A Qwen2.5-VL of 0.1 M random weights with a byte tokenizer of its own, ready to be served."""
    import tokenizers
    import torch
    import transformers

    byte_pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_pairs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    byte_pairs.train_from_iterator(["describe this photograph"], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_pairs,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
    )
    ids = dict(zip(SPECIAL_TOKENS, range(len(SPECIAL_TOKENS)), strict=True))
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [1, 1, 2],
            },
            "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():  # fresh weights are so small that every picture gives the same words
        for weight in model.parameters():
            weight.mul_(5 if weight.ndim > 1 else 1)
    model.save_pretrained(folder)
    transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(
            min_pixels=4 * 28 * 28, max_pixels=64 * 28 * 28
        ),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and model name of a `transformers serve` process, offline, on the CPU."""
    for package in ("transformers", "torchvision", "fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    httpx = pytest.importorskip("httpx")
    folder = tmp_path_factory.mktemp("tiny-qwen")
    save_tiny_qwen(folder)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    command = Path(sys.executable).with_name("transformers")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "serve.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [command, "serve", folder, "--device=cpu", "--host=127.0.0.1", f"--port={port}"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        server.kill()
        server.wait()
