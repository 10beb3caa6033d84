"""Captions: the one that came with the picture, or one from a vision-language endpoint."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from infra.config import ConfigError
from infra.pixels import DecodeError, Pixels, decode, encode_jpeg, pictures_of, resize_crop
from infra.schema import CAPTIONS, digest
from operators.caption_checks import check
from operators.caption_prompt import read_prompt
from operators.response_cache import Answer, open_cache

if TYPE_CHECKING:  # httpx is needed by one engine only
    from operators.chat_completions import Endpoint

SHORT_SIDE = 512
JPEG_QUALITY = 90
_PICTURE_FORM = f"jpeg q{JPEG_QUALITY}, short side <= {SHORT_SIDE}"


@dataclass(frozen=True)
class Caption:
    """Writes the columns of CAPTIONS.

    Engine ``given`` takes the caption that came with the sample. Engine ``openai`` sends the
    picture (JPEG, short side at most 512 pixels) and the prompt to an OpenAI-compatible chat
    endpoint, `operators.chat_completions`; ``model`` and ``base_url`` are required then. Call
    `caption_endpoint.check_endpoint` once before the work. ``picture`` is the column to read:
    decoded ``image`` or encoded ``bytes``.

    ``prompt`` is the text itself, or the name of a ``.txt`` file (a path, or one of ours:
    describe.txt, refine.txt). It is read when the operator is made, so that workers on other
    machines need no file and a changed file is a changed parameter. ``{caption}`` in it stands for
    the given caption.

    A row without what it needs, or whose request fails, gets an error of this stage: no_caption,
    no_image, or the type of a `DecodeError` or `EndpointError`. Raises ConfigError for impossible
    parameters.
    """

    writes: ClassVar[pa.Schema] = pa.schema(
        [CAPTIONS.field(n) for n in CAPTIONS.names if n not in ("sample_id", "error")]
    )
    version: ClassVar[int] = 1
    not_in_output: ClassVar[tuple[str, ...]] = (
        "base_url",
        "api_key_env",
        "timeout_s",
        "max_retries",
        "retry_wait_s",
        "concurrency",
        "cache",
    )
    """Parameters that decide how an answer is fetched, not what it is."""

    engine: Literal["given", "openai"] = "given"
    picture: Literal["image", "bytes"] = "image"
    base_url: str = ""
    model: str = ""
    prompt: str = "describe.txt"
    max_tokens: int = 200
    temperature: float = 0.0
    seed: int | None = 0
    api_key_env: str | None = None
    timeout_s: float = 120.0
    max_retries: int = 5
    retry_wait_s: float = 1.0
    concurrency: int = 16
    cache: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", read_prompt(self.prompt))
        if self.max_tokens < 1:
            raise ConfigError(f"caption: `max_tokens` is {self.max_tokens}: at least 1")
        if not self.temperature >= 0:
            raise ConfigError(f"caption: `temperature` is {self.temperature}: at least 0")
        if self.cache is not None and "://" in self.cache:
            raise ConfigError(f"caption: `cache` is {self.cache}: a file on a local disk only")
        if self.engine == "openai":
            self._endpoint()
            if not self.model:
                raise ConfigError("caption: `model` is empty: engine openai needs a model's name")

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that this engine needs."""
        if self.engine == "given":
            return ("caption",)
        return (self.picture, "caption") if "{caption}" in self.prompt else (self.picture,)

    @property
    def prompt_hash(self) -> str:
        """Hash of all that a request says besides the picture and the given caption."""
        return digest(json.dumps(self._request("{caption}"), sort_keys=True), _PICTURE_FORM)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Append `writes`, fill `error`; rows whose error is set already are left alone."""
        errors = batch["error"].to_pylist()

        def fail(row: int, type_: str, message: str) -> None:
            errors[row] = {"stage": "caption", "type": type_, "message": message}

        if self.engine == "openai":
            return self._write(batch, self._ask(batch, fail), errors)
        answers = {}
        for row, caption in enumerate(batch["caption"].to_pylist()):
            text = (caption or "").strip()
            if text:
                answers[row] = Answer(text, None, None)
            elif errors[row] is None:
                fail(row, "no_caption", "the sample came without a caption")
        answers = {row: answer for row, answer in answers.items() if errors[row] is None}
        return self._write(batch, answers, errors)

    def _ask(self, batch: pa.Table, fail: Callable[[int, str, str], None]) -> dict[int, Answer]:
        """Answers by row: from the cache, or from the endpoint, which sees each request once."""
        from operators.chat_completions import ask_all

        requests: dict[str, tuple[Pixels, str]] = {}
        rows: dict[str, list[int]] = {}  # by request: exact duplicates are paid for once
        for row, picture, caption in self._inputs(batch, fail):
            text = json.dumps(self._request(caption), sort_keys=True)
            key = digest(text, _PICTURE_FORM, _hash(picture))
            requests[key] = (picture, caption)
            rows.setdefault(key, []).append(row)
        with open_cache(self.cache) if self.cache else nullcontext() as cache:
            known = cache.find(requests) if cache else {}
            new = [key for key in requests if key not in known]

            def keep(index: int, answer: Answer) -> None:
                known[new[index]] = answer
                if cache:
                    cache.store(new[index], answer)

            bodies = []
            for key in new:
                picture, caption = requests[key]
                bodies.append(self._request(caption, _data_url(picture)))
            for key, result in zip(new, ask_all(self._endpoint(), bodies, keep), strict=True):
                if not isinstance(result, Answer):
                    for row in rows[key]:
                        fail(row, result.type, result.message)
        return {row: known[key] for key in rows if key in known for row in rows[key]}

    def _inputs(
        self, batch: pa.Table, fail: Callable[[int, str, str], None]
    ) -> Iterator[tuple[int, Pixels, str]]:
        """(row, picture, given caption or "") of every row that can be asked for."""
        failed = batch["error"].is_valid().to_pylist()
        decoded = pictures_of(batch) if self.picture == "image" else [None] * len(batch)
        for row, picture in enumerate(decoded):
            if failed[row]:
                continue
            if self.picture == "bytes":
                try:
                    picture = decode(batch["bytes"][row].as_py() or b"", SHORT_SIDE).rgb
                except DecodeError as error:
                    fail(row, error.type, str(error))
                    continue
            caption = batch["caption"][row].as_py() if "caption" in self.reads else None
            caption = (caption or "").strip()
            if picture is None:
                fail(row, "no_image", "no picture to describe")
            elif "caption" in self.reads and not caption:
                fail(row, "no_caption", "the prompt needs {caption}, the sample came without one")
            else:
                yield row, picture, caption

    def _endpoint(self) -> "Endpoint":
        try:
            from operators.chat_completions import Endpoint
        except ImportError:
            raise ConfigError(
                "captions of engine `openai` need httpx: pip install 'nextscale[vlm]'"
            ) from None
        return Endpoint(
            self.base_url,
            self.api_key_env,
            self.timeout_s,
            self.max_retries,
            self.retry_wait_s,
            self.concurrency,
        )

    def _request(self, caption: str, picture_url: str | None = None) -> dict[str, Any]:
        text = self.prompt.replace("{caption}", caption)
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if picture_url is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": picture_url}})
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        return request if self.seed is None else {**request, "seed": self.seed}

    def _write(
        self, batch: pa.Table, answers: dict[int, Answer], errors: list[dict[str, str] | None]
    ) -> pa.Table:
        asked = self.engine == "openai"
        model, prompt_hash = (self.model, self.prompt_hash) if asked else (None, None)
        values: dict[str, Callable[[Answer], Any]] = {
            "text": lambda answer: answer.text.strip(),
            "engine": lambda answer: self.engine,
            "model": lambda answer: model,
            "prompt_hash": lambda answer: prompt_hash,
            "num_tokens": lambda answer: answer.num_tokens,
            "checks": lambda answer: check(answer.text, answer.finish_reason),
        }
        for field in self.writes:
            value = values[field.name]
            column = [value(answers[row]) if row in answers else None for row in range(len(batch))]
            batch = batch.append_column(field, pa.array(column, field.type))
        place = batch.column_names.index("error")
        error = batch.schema.field(place)
        return batch.set_column(place, error, pa.array(errors, error.type))


def _hash(picture: Pixels) -> str:
    # Of the pixels, not of the JPEG made of them: an answer that is known costs no encoding.
    hashed = hashlib.blake2b(f"{picture.shape}:".encode(), digest_size=16)
    hashed.update(np.ascontiguousarray(picture).data)
    return hashed.hexdigest()


def _data_url(picture: Pixels) -> str:
    height, width = picture.shape[:2]
    scale = SHORT_SIDE / min(height, width)
    if scale < 1.0:
        picture, _ = resize_crop(picture, round(height * scale), round(width * scale))
    encoded = encode_jpeg(picture, JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"
