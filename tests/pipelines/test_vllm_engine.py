"""What is known of the vLLM engine before it starts."""

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from infra.config import ConfigError, build
from operators.caption import Caption
from operators.caption_style import Style
from pipelines.sections import Vllm
from pipelines.vllm_engine import check_vllm, engine_config

STYLES = (
    Style(name="short", prompt="Say it in one line.", max_tokens=20),
    Style(name="long", prompt="Say all of it.", max_tokens=90),
)
VLLM = Vllm(batch_rows=4, batches=1)


def test_the_configuration_is_that_of_ray() -> None:
    caption = Caption(
        engine="vllm",
        model="Qwen/Qwen2.5-VL-7B-Instruct",
        engine_kwargs={"tensor_parallel_size": 2, "max_model_len": 8192},
    )
    vllm = build(
        Vllm, {"engines": 3, "batch_rows": 16, "cpu_workers": 4, "accelerator_type": "H100"}
    )
    config = engine_config(caption, vllm)
    assert type(config).__name__ == "vLLMEngineProcessorConfig"
    assert config.model_source == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert config.engine_kwargs == {
        "tensor_parallel_size": 2,
        "max_model_len": 8192,
        "limit_mm_per_prompt": {"image": 1},
        "task_type": "generate",
    }
    assert (config.concurrency, config.batch_size, config.max_concurrent_batches) == (3, 16, 8)
    assert config.accelerator_type == "H100"
    assert config.should_continue_on_error
    stage = {"enabled": True, "concurrency": 4, "num_cpus": 1.0}
    assert config.prepare_multimodal_stage == stage
    assert config.tokenize_stage == config.chat_template_stage == {**stage, "num_cpus": 0.5}
    assert not config.detokenize_stage
    assert caption.engine_kwargs == {"tensor_parallel_size": 2, "max_model_len": 8192}  # untouched


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="engines is 0: at least 1"):
        build(Vllm, {"engines": 0})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'ray\[llm\]'"):
        check_vllm(Caption(engine="vllm", model="m"), VLLM)


def test_impossible_settings_are_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class AsyncEngineArgs:
        """Stands in for vLLM's, which takes its settings by name."""

        max_model_len: int = 0
        tensor_parallel_size: int = 1
        pipeline_parallel_size: int = 1

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(AsyncEngineArgs=AsyncEngineArgs))

    def check(settings: dict[Any, Any]) -> None:
        check_vllm(Caption(engine="vllm", model="m", engine_kwargs=settings), VLLM)

    check({"tensor_parallel_size": 2, "max_model_len": 8192})
    for settings, message in (
        ({"tensor_parallel_size": "two"}, "`engine_kwargs.tensor_parallel_size` is 'two'"),
        ({"pipeline_parallel_size": 0}, "`engine_kwargs.pipeline_parallel_size` is 0: at least 1"),
        ({"max_model_length": 8192}, "`engine_kwargs.max_model_length`: did you mean `max_model_"),
    ):
        with pytest.raises(ConfigError, match=message) as raised:
            check(settings)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr("inspect.signature", lambda of: SimpleNamespace(parameters={1: None}))
    with pytest.raises(ConfigError, match="valid string") as raised:
        check({1: 2})  # what Ray's own configuration does not take
    assert "\n" not in str(raised.value)
