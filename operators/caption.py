"""Captions: those that came with the pictures, or what a vision-language model says of them."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pyarrow as pa

from infra.config import ConfigError
from infra.pixels import DecodeError, Pixels, decode, pictures_of
from infra.schema import CAPTIONS
from operators.caption_answers import (
    Failure,
    ask,
    endpoint,
    failure,
    fetched,
    is_of_a_moment,
    variant,
)
from operators.caption_checks import check_language
from operators.caption_prompt import read_prompt
from operators.caption_request import SHORT_SIDE, Question, hash_of, request_hash
from operators.caption_style import (
    GIVEN,
    Draft,
    NoStyleError,
    Style,
    check_styles,
    draft,
    draw,
)
from operators.response_cache import Answer

HOW_IT_RUNS = frozenset(
    "tensor_parallel_size pipeline_parallel_size data_parallel_size gpu_memory_utilization "
    "max_num_seqs max_num_batched_tokens enable_prefix_caching enable_chunked_prefill "
    "cpu_offload_gb distributed_executor_backend download_dir load_format enforce_eager "
    "disable_log_stats".split()
)
"""vLLM's settings that decide how fast it answers, not what."""
NO_VALUES = ("image", "bytes", "answers")  # columns that no prompt speaks of


@dataclass(frozen=True)
class Caption:
    """Writes the columns of CAPTIONS.

    Engine ``given`` takes the caption that came with the sample. Engine ``openai`` sends the
    picture (JPEG, short side at most 512 pixels) and a prompt to an OpenAI-compatible chat
    endpoint, `operators.chat_completions`; ``model`` and ``base_url`` are required then. Call
    `caption_endpoint.check_endpoint` once before the work. Engine ``vllm`` reads the answers that
    `pipelines.vllm_captions` has fetched before from the column ``answers``; its ``engine_kwargs``
    are vLLM's. ``picture`` is the column to read: decoded ``image`` or encoded ``bytes``.

    One caption a picture: ``prompt`` (a text, or a file, see `caption_prompt.read_prompt`) and
    ``max_tokens``. Several kinds: ``styles``, of which each sample gets ``per_image``, drawn by
    weight and ``style_seed`` (`caption_style.draw`) among those whose variables it has values for.
    All that is said stands in ``variants``; ``text`` is the first drawn that passes its checks,
    else the first drawn that there is. Where one that might come before it failed for a moment only
    (timeout, connection, HTTP 429 or 5xx), the row fails with its error. Prompts are read when the
    operator is made, so that workers on other machines need no file and a changed file is a changed
    parameter.

    A value in a prompt is cut after ``max_value_characters``, with the check ``value_cut``.
    ``language`` (ISO 639-1) is what captions should be in. With ``cache``, a file on a local disk
    of each machine (made absolute; see `response_cache.check_cache`), a request that was answered
    once is never sent again; with ``ask = False`` none is sent at all.

    A row fails with an error of this stage: no_caption or missing_variable (no style can be asked
    for), no_image, the type of a `DecodeError`, or, where no style has an answer, the type of an
    `EndpointError` or not_answered. Raises ConfigError for impossible parameters.
    """

    writes: ClassVar[pa.Schema] = pa.schema(
        [CAPTIONS.field(n) for n in CAPTIONS.names if n not in ("sample_id", "error")]
    )
    version: ClassVar[int] = 2
    not_in_output: ClassVar[tuple[str, ...]] = (
        "base_url",
        "api_key_env",
        "timeout_s",
        "max_retries",
        "retry_wait_s",
        "concurrency",
        "cache",
        "ask",
        "engine_kwargs",
    )
    """Parameters that decide how an answer is fetched, not what it is (but see `identity`)."""

    engine: Literal["given", "openai", "vllm"] = "given"
    picture: Literal["image", "bytes"] = "image"
    base_url: str = ""
    model: str = ""
    prompt: str = "describe.txt"
    max_tokens: int = 200
    styles: tuple[Style, ...] = ()
    per_image: int = 1
    style_seed: int = 0
    language: str | None = None
    max_value_characters: int = 2_000
    temperature: float = 0.0
    seed: int | None = 0
    api_key_env: str | None = None
    timeout_s: float = 120.0
    max_retries: int = 5
    retry_wait_s: float = 1.0
    concurrency: int = 16
    cache: str | None = None
    ask: bool = True
    engine_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", read_prompt(self.prompt))
        for name in ("max_tokens", "per_image", "max_value_characters"):
            if getattr(self, name) < 1:
                raise ConfigError(f"caption: `{name}` is {getattr(self, name)}: at least 1")
        if not self.temperature >= 0:
            raise ConfigError(f"caption: `temperature` is {self.temperature}: at least 0")
        if self.cache is not None and "://" in self.cache:
            raise ConfigError(f"caption: `cache` is {self.cache}: a file on a local disk only")
        if self.cache:  # workers have working directories of their own
            object.__setattr__(self, "cache", os.path.abspath(self.cache))
        if not self.ask and not self.cache:
            raise ConfigError("caption: `ask` is false: name the `cache` that has the answers")
        if self.styles and self.engine == "given":
            raise ConfigError("caption: `styles` need an engine that writes: openai or vllm")
        check_styles(self.styles, self.per_image)
        if self.engine_kwargs and self.engine != "vllm":
            raise ConfigError("caption: `engine_kwargs` are those of engine vllm")
        if self.language is not None:
            check_language(self.language)
        if self.engine == "openai":
            endpoint(self)
        if self.engine != "given" and not self.model:
            raise ConfigError(
                f"caption: `model` is empty: engine {self.engine} needs a model's name"
            )

    @property
    def identity(self) -> str:
        """vLLM's settings that its answers depend on, as JSON."""
        depends = {k: v for k, v in self.engine_kwargs.items() if k not in HOW_IT_RUNS}
        return json.dumps(depends, sort_keys=True)

    @property
    def all_styles(self) -> tuple[Style, ...]:
        """The styles; a single prompt is one without a name, given captions are one as well."""
        if self.engine == "given":
            return (Style(name=GIVEN),)
        return self.styles or (Style(name="", prompt=self.prompt, max_tokens=self.max_tokens),)

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that this engine needs."""
        values = tuple(dict.fromkeys(name for style in self.all_styles for name in style.reads))
        if self.engine == "given":
            return values
        ids = ("sample_id",) if len(self.all_styles) > 1 else ()
        answers = ("answers",) if self.engine == "vllm" else ()
        return (self.picture, *values, *ids, *answers)

    def prompt_hash(self, style: Style) -> str:
        """Hash of all that a request says besides the picture and the row's values."""
        return request_hash(style.prompt, self.parameters(style), *self._asked_of)

    def parameters(self, style: Style) -> dict[str, Any]:
        """What a request of this style says beside its content."""
        parameters = {
            "model": self.model,
            "max_tokens": style.max_tokens,
            "temperature": self.temperature,
        }
        return parameters if self.seed is None else {**parameters, "seed": self.seed}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Append `writes`, fill `error`; rows whose error is set already are left alone."""
        errors: list[Failure | None] = batch["error"].to_pylist()
        plans, questions = self._plan(batch, errors)
        answers: list[dict[str, Answer | Failure]] = [{}] * len(batch)
        if self.engine == "openai":
            answers = [ask(endpoint(self), questions, self.cache, self.ask)] * len(batch)
        elif self.engine == "vllm":
            answers = fetched(batch["answers"])
        columns: dict[str, list[Any]] = {name: [None] * len(batch) for name in self.writes.names}
        for row, plan in plans.items():
            variants = [
                variant(one, answers[row].get(key or ""), self.language) for one, key in plan
            ]
            if len(variants) > 1:
                columns["variants"][row] = variants
            best = self._best(variants)
            if variants[best]["error"] is not None:
                errors[row] = variants[best]["error"]
                continue
            values = variants[best] | self._maker(plan[best][0].style)
            for name in set(columns) - {"variants"}:
                columns[name][row] = values[name]
        for column in self.writes:
            batch = batch.append_column(column, pa.array(columns[column.name], column.type))
        place = batch.column_names.index("error")
        error = batch.schema.field(place)
        return batch.set_column(place, error, pa.array(errors, error.type))

    def questions(self, batch: pa.Table) -> list[tuple[int, str, Question]]:
        """(row, key, question) of all that a model is to be asked."""
        plans, questions = self._plan(batch, batch["error"].to_pylist())
        return [
            (row, key, questions[key])
            for row, plan in plans.items()
            for _, key in plan
            if key is not None
        ]

    def _plan(
        self, batch: pa.Table, errors: list[Failure | None]
    ) -> tuple[dict[int, list[tuple[Draft, str | None]]], dict[str, Question]]:
        """Each row's drafts with the keys of their questions; equal questions stand once."""
        plans: dict[int, list[tuple[Draft, str | None]]] = {}
        questions: dict[str, Question] = {}
        styles = self.all_styles
        values = batch.select([n for n in self.reads if n not in NO_VALUES]).to_pylist()
        asks = self.engine != "given"
        pictures = _pictures(batch, self.picture, errors) if asks else [None] * len(batch)
        for row, picture in enumerate(pictures):
            if errors[row] is not None:
                continue
            try:
                drafts = draft(styles, values[row], self.max_value_characters)
            except NoStyleError as error:
                errors[row] = failure(error.type, str(error))
                continue
            if len(styles) > 1:
                id_ = values[row]["sample_id"]
                drafts = draw(drafts, id_, self.style_seed, self.per_image)
            if not asks:
                plans[row] = [(one, None) for one in drafts]
            elif picture is None:
                errors[row] = failure("no_image", "no picture to describe")
            else:
                picture_hash = hash_of(picture)
                plans[row] = []
                for one in drafts:
                    key = None
                    if not one.style.is_given:
                        parameters = self.parameters(one.style)
                        question = Question(one.text, (picture,), parameters, self._asked_of)
                        key = question.key(picture_hash)
                        questions[key] = question
                    plans[row].append((one, key))
        return plans, questions

    def _best(self, variants: list[dict[str, Any]]) -> int:
        """Which variant is the row's: the first that passes its checks, else the first there is.

        One that may still come, and might be taken then, is the row's failure: another would stand
        for good, while a retry with the cache asks for this one alone.
        """
        said = [place for place, v in enumerate(variants) if v["error"] is None]
        fine = [place for place in said if not variants[place]["checks"]]
        best = (*fine, *said, 0)[0]
        for place, one in enumerate(variants[:best] if fine else variants):
            if self.engine == "openai" and one["error"] and is_of_a_moment(one["error"]):
                return place
        return best

    def _maker(self, style: Style) -> dict[str, str | None]:
        if style.is_given:
            return {"engine": GIVEN, "model": None, "prompt_hash": None}
        return {
            "engine": self.engine,
            "model": self.model,
            "prompt_hash": self.prompt_hash(style),
        }

    @property
    def _asked_of(self) -> tuple[str, ...]:
        return ("vllm", self.identity) if self.engine == "vllm" else ()


def _pictures(
    batch: pa.Table, column: str, errors: list[Failure | None]
) -> Iterator[Pixels | None]:
    """The picture of each row, or None; fills in the errors of those that cannot be decoded."""
    if column == "image":
        yield from pictures_of(batch)
        return
    for row, data in enumerate(batch[column]):
        picture = None
        if errors[row] is None:
            try:
                picture = decode(data.as_py() or b"", SHORT_SIDE).rgb
            except DecodeError as error:
                errors[row] = failure(error.type, str(error))
        yield picture
