"""The check of an endpoint, against servers that fail in every way and `transformers serve`."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
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


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and model name of a `transformers serve` process, offline, on the CPU."""
    for package in ("transformers", "torchvision", "fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("tiny-qwen")
    save_tiny_qwen(folder)
    port = free_port()
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
