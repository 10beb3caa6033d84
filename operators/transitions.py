"""Transition texts: the clip's given caption, and what a vision-language model says happens between
two neighbouring frames (paper, 5.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import pyarrow as pa

from infra.config import ConfigError
from infra.pixels import DecodeError, decode
from infra.schema import CAPTION_VARIANT, CAPTIONS, column
from operators.caption import Caption
from operators.caption_answers import Failure, ask, endpoint, failure, variant
from operators.caption_prompt import columns_of, read_prompt
from operators.caption_request import SHORT_SIDE, Question, hash_of
from operators.caption_style import GIVEN, Draft, NoStyleError, Style, draft
from operators.kept_frames import KeptFrame, kept_frames
from operators.response_cache import Answer

TRANSITION = pa.struct([field for field in CAPTION_VARIANT if field.name != "style"])
TRANSITIONS = column(
    "transitions",
    pa.list_(TRANSITION),
    "",
    "texts between neighbouring kept frames, in time order, with their answers' numbers as above, "
    "or why there is none; empty where none are written",
)
NUMBERS = ("num_tokens", "num_prompt_tokens", "latency_s")
IN_PROMPTS = ("caption", "key", "source", "metadata")
"""Columns that a prompt may name."""


@dataclass(frozen=True)
class Transitions:
    """Writes the columns of CAPTIONS and ``transitions``, one for each two neighbouring kept
    frames.

    Engine ``none`` writes nothing between frames and needs no caption: one that came with the clip
    stands in ``text``. With ``given`` every clip must have come with one. With ``openai`` an
    OpenAI-compatible endpoint, which must take two pictures in a request, is shown every two
    neighbouring frames (JPEG, short side at most 512 pixels) with their times in the clip, and is
    asked by ``prompt``, which may name the given caption. Fields are those of
    `operators.caption.Caption`, and so are the retries, the response cache and the checks; call
    `caption_endpoint.check_endpoint` once before the work.

    ``text`` is the given caption. Where the endpoint was asked, ``engine``, ``model`` and
    ``prompt_hash`` say what wrote the transitions, and the numbers are sums over them. ``checks``
    are those that the caption or a transition did not pass, each once.

    A row fails with an error of the stage caption: no_caption or missing_variable, the type of a
    `DecodeError`, or, where a transition has no answer, the type of its `EndpointError` or
    not_answered; ``transitions`` holds those that were answered all the same. A refusal in words is
    an answer that fails a check. Raises ConfigError for impossible parameters.
    """

    writes: ClassVar[pa.Schema] = pa.schema(
        [
            *(CAPTIONS.field(n) for n in CAPTIONS.names if n not in ("sample_id", "error")),
            TRANSITIONS,
        ]
    )
    version: ClassVar[int] = 1
    not_in_output: ClassVar[tuple[str, ...]] = Caption.not_in_output

    engine: Literal["none", "given", "openai", "vllm"] = "none"
    base_url: str = ""
    model: str = ""
    prompt: str = "transition.txt"
    max_tokens: int = 120
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

    def __post_init__(self) -> None:
        if self.engine == "vllm":
            raise ConfigError(
                "transitions: engine vllm does not write them: start `vllm serve` and take engine "
                "openai with its `base_url`"
            )
        object.__setattr__(self, "prompt", read_prompt(self.prompt))
        for name in columns_of(self.prompt):
            if name not in IN_PROMPTS:
                known = ", ".join(f"{{{one}}}" for one in IN_PROMPTS)
                raise ConfigError(
                    f"transitions: the prompt holds {{{name}}}: variables are {known}"
                )
        object.__setattr__(self, "cache", self.asks_as.cache)

    @property
    def asks_as(self) -> Caption:
        """The caption operator that asks as this one does; raises ConfigError."""
        return Caption(
            engine="openai" if self.engine == "openai" else "given",
            base_url=self.base_url,
            model=self.model,
            prompt=self.prompt,
            max_tokens=self.max_tokens,
            language=self.language,
            max_value_characters=self.max_value_characters,
            temperature=self.temperature,
            seed=self.seed,
            api_key_env=self.api_key_env,
            timeout_s=self.timeout_s,
            max_retries=self.max_retries,
            retry_wait_s=self.retry_wait_s,
            concurrency=self.concurrency,
            cache=self.cache,
            ask=self.ask,
        )

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that this engine needs."""
        frames = ("candidates", "start_s") if self.engine == "openai" else ()
        return (*frames, *self._values, "error")

    @property
    def _values(self) -> tuple[str, ...]:
        named = columns_of(self.prompt) if self.engine == "openai" else ()
        return tuple(dict.fromkeys(("caption", *named)))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Append `writes`, fill `error`; rows whose error is set already are left alone."""
        errors: list[Failure | None] = batch["error"].to_pylist()
        values = batch.select(list(self._values)).to_pylist()
        captions = [self._given(row, errors, told) for row, told in enumerate(values)]
        plans: dict[int, list[tuple[Draft, str]]] = {}
        answers: dict[str, Answer | Failure] = {}
        if self.engine == "openai":
            plans, questions = self._plan(batch, values, errors)
            answers = ask(endpoint(self), questions, self.cache, self.ask)
        maker = self._maker
        columns: dict[str, list[Any]] = {name: [None] * len(batch) for name in self.writes.names}
        for row, caption in enumerate(captions):
            if errors[row] is not None:
                continue
            said = [
                variant(one, answers.get(key), self.language) for one, key in plans.get(row, ())
            ]
            columns["transitions"][row] = said
            failures = [one["error"] for one in said if one["error"] is not None]
            if failures:
                errors[row] = failures[0]
                continue
            for name, value in self._told(caption, said, maker).items():
                columns[name][row] = value
        for field in self.writes:
            batch = batch.append_column(field, pa.array(columns[field.name], field.type))
        place = batch.column_names.index("error")
        error = batch.schema.field(place)
        return batch.set_column(place, error, pa.array(errors, error.type))

    def _given(
        self, row: int, errors: list[Failure | None], told: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The caption that came with the clip, checked, as CAPTION_VARIANT; None without one."""
        if errors[row] is not None:
            return None
        try:
            [one] = draft((Style(name=GIVEN),), told, self.max_value_characters)
        except NoStyleError as error:
            if self.engine == "given":
                errors[row] = failure(error.type, str(error))
            return None
        return variant(one, None, self.language)

    def _plan(
        self, batch: pa.Table, values: Sequence[Mapping[str, Any]], errors: list[Failure | None]
    ) -> tuple[dict[int, list[tuple[Draft, str]]], dict[str, Question]]:
        """Each row's drafts with the keys of their questions; equal questions stand once."""
        plans: dict[int, list[tuple[Draft, str]]] = {}
        questions: dict[str, Question] = {}
        starts = batch["start_s"].to_pylist()
        asks = self.asks_as
        [style] = asks.all_styles
        parameters = asks.parameters(style)
        for row, frames in enumerate(kept_frames(batch)):
            if frames is None or len(frames) < 2:
                continue
            try:
                [one] = draft((style,), values[row], self.max_value_characters)
                pictures = [decode(frame.image or b"", SHORT_SIDE).rgb for frame in frames]
            except (DecodeError, NoStyleError) as error:
                errors[row] = failure(error.type, str(error))
                continue
            hashes = [hash_of(picture) for picture in pictures]
            plans[row] = []
            for first, second in pairwise(range(len(frames))):
                labels = _labels(frames[first], frames[second], starts[row] or 0.0)
                both = (pictures[first], pictures[second])
                question = Question(one.text, both, parameters, labels=labels)
                key = question.key(hashes[first], hashes[second])
                questions[key] = question
                plans[row].append((one, key))
        return plans, questions

    def _told(
        self,
        caption: Mapping[str, Any] | None,
        said: Sequence[Mapping[str, Any]],
        maker: Mapping[str, str | None],
    ) -> dict[str, Any]:
        """A row's columns of CAPTIONS."""
        told: dict[str, Any] = {**(caption or {"checks": []}), "engine": GIVEN if caption else None}
        told["checks"] = list(
            dict.fromkeys(name for one in (told, *said) for name in one["checks"])
        )
        if said:
            told.update(maker)
            told.update({name: _sum([one[name] for one in said]) for name in NUMBERS})
        return {name: told.get(name) for name in self.writes.names if name != "transitions"}

    @property
    def _maker(self) -> dict[str, str | None]:
        asks = self.asks_as
        [style] = asks.all_styles
        return {
            "style": None,
            "engine": self.engine,
            "model": self.model,
            "prompt_hash": asks.prompt_hash(style),
        }


def _labels(first: KeptFrame, second: KeptFrame, start_s: float) -> tuple[str, str]:
    """What stands in front of the two pictures; times are from the start of the clip."""
    # A frame that is shown when the clip starts may have come just before.
    times = [max(frame.timestamp_s - start_s, 0.0) for frame in (first, second)]
    return (
        f"First frame, {times[0]:.1f} s into the clip:",
        f"Second frame, {times[1]:.1f} s into the clip:",
    )


def _sum(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
