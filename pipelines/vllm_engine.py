"""The vLLM engine of `pipelines.vllm_captions`: what is checked before it starts, and its rows.

Engine arguments are those of ``vllm.AsyncEngineArgs``; rows go in and come out in the columns that
Ray 2.60's vLLM stages read and write.
"""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import json
import warnings
from collections.abc import Iterator
from typing import Any

from infra.cluster import require
from infra.config import ConfigError
from operators.caption import Caption
from pipelines.sections import Vllm


def check_vllm(caption: Caption, vllm: Vllm) -> None:
    """Raises ConfigError, before any work, unless vLLM is there and its settings are possible."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "captions of engine `vllm` need vLLM on every node with a GPU: pip install 'ray[llm]'"
        )
    engine_gpus(caption)
    known = inspect.signature(importlib.import_module("vllm").AsyncEngineArgs).parameters
    for name in caption.engine_kwargs:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "see vLLM's engine arguments"
            raise ConfigError(f"caption: vLLM has no setting `engine_kwargs.{name}`: {hint}")
    try:
        engine_config(caption, vllm)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"captions by vLLM: {reason}: correct `engine_kwargs`") from None


def engine_gpus(caption: Caption) -> int:
    """GPUs of one engine; raises ConfigError unless its settings are whole numbers."""
    gpus = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = caption.engine_kwargs.get(name, 1)
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"caption: `engine_kwargs.{name}` is {size!r}: at least 1, whole")
        gpus *= size
    return gpus


def require_vllm(caption: Caption, vllm: Vllm) -> None:
    """Raises ConfigError unless the Ray session has the CPUs and GPUs of all engines."""
    gpus = engine_gpus(caption)
    # Processes that find no place would be waited for without end. Three stages stand before the
    # engine's, behind the one that makes questions; what is between them are tasks, one at a time.
    require(3 * vllm.cpu_workers + 1, vllm.engines * gpus, "captions by vLLM", (1, gpus))


def engine_config(caption: Caption, vllm: Vllm) -> Any:
    """The `ray.data.llm.vLLMEngineProcessorConfig` of these settings."""
    stage = {"enabled": True, "concurrency": vllm.cpu_workers, "num_cpus": 1.0}
    light = {**stage, "num_cpus": 0.5}
    with ray_llm() as llm:
        return llm.vLLMEngineProcessorConfig(
            model_source=caption.model,
            # One picture a question: vLLM need not keep memory free for more.
            engine_kwargs={"limit_mm_per_prompt": {"image": 1}, **caption.engine_kwargs},
            concurrency=vllm.engines,
            batch_size=vllm.batch_rows,
            max_concurrent_batches=vllm.batches,
            accelerator_type=vllm.accelerator_type,
            should_continue_on_error=True,  # a question that fails is its row's failure
            prepare_multimodal_stage=stage,
            chat_template_stage=light,
            tokenize_stage=light,
            detokenize_stage=False,  # the engine gives text
        )


def vllm_processor(caption: Caption, vllm: Vllm) -> Any:
    """A `ray.data.llm` processor from rows of `Questions` to rows of RESPONSES, with ``folder``."""
    config = engine_config(caption, vllm)
    with ray_llm() as llm:
        return llm.build_processor(config, preprocess=to_vllm, postprocess=from_vllm)


@contextlib.contextmanager
def ray_llm() -> Iterator[Any]:
    """`ray.data.llm`, imported where it is used only: it takes a second."""
    with warnings.catch_warnings():
        # Ray 2.60 declares its settings in ways that pydantic means to drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield importlib.import_module("ray.data.llm")


def to_vllm(row: dict[str, Any]) -> dict[str, Any]:
    """Columns that the engine's stages read. The request itself goes no further."""
    request = json.loads(row["request"])
    sampling = {k: request[k] for k in ("max_tokens", "temperature", "seed") if k in request}
    return {"messages": request["messages"], "sampling_params": sampling, "request": ""}


def from_vllm(row: dict[str, Any]) -> dict[str, Any]:
    """A row of RESPONSES, with its folder, from the engine's columns."""
    generated = int(row["num_generated_tokens"])
    return {
        "folder": row["folder"],
        "sample_id": row["sample_id"],
        "key": row["key"],
        "text": row["generated_text"],
        "num_tokens": generated,
        # Ray does not hand on why the engine stopped.
        "finish_reason": "length" if generated >= row["max_tokens"] else "stop",
        "num_prompt_tokens": int(row["num_input_tokens"]),
        "latency_s": float(row["time_taken_llm"]),
    }
