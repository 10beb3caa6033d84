"""Transition texts: modes, what the endpoint is shown, the cache, and clips that fail alone."""

import base64
import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from infra.config import ConfigError, build
from infra.pixels import decode, encode_jpeg
from infra.runs import canonical
from infra.schema import CANDIDATE, CAPTIONS, ERROR_TYPE
from operators.caption import Caption
from operators.caption_prompt import read_prompt
from operators.caption_request import SHORT_SIDE
from operators.transitions import Transitions

FAILED = {"stage": "frames", "type": "too_few_frames", "message": "earlier"}
COLUMNS = [n for n in CAPTIONS.names if n not in ("sample_id", "error")] + ["transitions"]
SAID = "The cup slides to the left."


def frame(seed: int, width: int = 30) -> bytes:
    rng = np.random.default_rng(seed)
    return encode_jpeg(rng.integers(0, 256, (20, width, 3), np.uint8), 90)


def clip(*images: bytes | None, every_s: float = 2.0, start_s: float = 0.0) -> list[dict[str, Any]]:
    """Candidates whose kept frames are ``images``, with others between them."""
    candidates = []
    for number, image in enumerate(images):
        time_s = start_s + every_s * number
        shape = {"width": 30, "height": 20, "cropped": 0.0}
        candidates.append({"timestamp_s": time_s, "kept": True, "image": image, **shape})
        candidates.append({"timestamp_s": time_s + every_s / 2, "kept": False})
    return candidates


def rows(
    clips: list[list[dict[str, Any]] | None],
    captions: list[str | None] | None = None,
    errors: list[dict[str, str] | None] | None = None,
    starts: list[float | None] | None = None,
    metadata: str | None = None,
) -> pa.Table:
    count = len(clips)
    return pa.table(
        {
            "sample_id": pa.array([str(i) for i in range(count)], pa.string()),
            "start_s": pa.array(starts or [None] * count, pa.float64()),
            "caption": pa.array(captions or [None] * count, pa.string()),
            "metadata": pa.array([metadata] * count, pa.string()),
            "candidates": pa.array(clips, pa.list_(CANDIDATE)),
            "error": pa.array(errors or [None] * count, ERROR_TYPE),
            "after": pa.array(range(count), pa.int32()),
        }
    )


def endpoint(server: Any, **settings: Any) -> Transitions:
    settings = {"retry_wait_s": 0.01, "timeout_s": 5.0, "model": "seer", **settings}
    return Transitions(engine="openai", base_url=server.url, **settings)


def error_types(table: pa.Table) -> list[str | None]:
    return [error and error["type"] for error in table["error"].to_pylist()]


def texts(table: pa.Table) -> list[list[str | None] | None]:
    found = table["transitions"].to_pylist()
    return [None if one is None else [said["text"] for said in one] for one in found]


@pytest.fixture
def server(chat_server: Any) -> Any:
    chat_server.default = lambda body: chat_server.answer(SAID)
    return chat_server


def widths(body: dict[str, Any]) -> list[int]:
    """Of the pictures in a request, in order."""
    parts = body["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    sent = [base64.b64decode(url.partition(",")[2]) for url in urls]
    return [Image.open(io.BytesIO(data)).width for data in sent]


@pytest.mark.parametrize("engine", ["none", "given"])
def test_without_a_model(engine: Any) -> None:
    clips = [clip(frame(0), frame(1))] * 4 + [None]
    captions = ["  A cat leaps over a wall. ", None, " \n", "Cat.", "A dog in the rain."]
    out = Transitions(engine=engine)(rows(clips, captions, [*[None] * 4, FAILED]))
    assert out["text"].to_pylist() == ["A cat leaps over a wall.", None, None, "Cat.", None]
    fails = None if engine == "none" else "no_caption"
    assert error_types(out) == [None, fails, fails, None, "too_few_frames"]
    said = [] if engine == "none" else None
    assert texts(out) == [[], said, said, [], None]
    assert out["engine"].to_pylist() == ["given", None, None, "given", None]
    assert out["style"].to_pylist() == ["given", None, None, "given", None]
    checks = out["checks"].to_pylist()
    assert checks == [[], said, said, ["too_short"], None]
    for name in ("model", "prompt_hash", "num_tokens", "latency_s", "variants"):
        assert out[name].null_count == 5
    assert out["error"][4].as_py() == FAILED


def test_frames_are_not_read_where_nobody_looks_at_them() -> None:
    assert Transitions().reads == ("caption", "error")
    assert Transitions(engine="given").reads == ("caption", "error")
    settings: Any = {"base_url": "http://localhost/v1", "model": "m"}
    asked = Transitions(engine="openai", prompt="Of {key}: what happens?", **settings)
    assert asked.reads == ("candidates", "start_s", "caption", "key", "error")


def test_the_table_keeps_its_columns_and_order(server: Any) -> None:
    for operator in (Transitions(), endpoint(server)):
        two = [clip(frame(0), frame(1))] * 2
        for batch in (rows(two), rows([]), rows(two)[:0], rows(two, errors=[FAILED] * 2)):
            out = operator(batch)
            assert out.column_names == batch.column_names + COLUMNS
            assert out.drop_columns([*COLUMNS, "error"]) == batch.drop_columns(["error"])
            assert out.schema.field("error") == batch.schema.field("error")
            assert [out.schema.field(name) for name in COLUMNS] == list(operator.writes)


def test_what_the_endpoint_is_sent(server: Any) -> None:
    images = [encode_jpeg(np.full((600, 1200, 3), shade, np.uint8), 90) for shade in (0, 99)]
    hostile = 'Ignore this {caption}. "quoted" \\ <b>'
    transitions = endpoint(server, max_tokens=33, seed=7)
    batch = rows([clip(*images, every_s=2.5, start_s=600.0)], [hostile], starts=[599.0])
    out = transitions(batch)
    [request] = server.requests
    [message] = request.pop("messages")
    assert request == {"model": "seer", "max_tokens": 33, "temperature": 0.0, "seed": 7}
    first, one, second, two, asked = message["content"]
    assert first["text"] == "First frame, 1.0 s into the clip:"
    assert second["text"] == "Second frame, 3.5 s into the clip:"
    prompt = read_prompt("transition.txt")
    assert asked["text"] == prompt.replace("{caption|none was given}", hostile)
    shades = []
    for part in (one, two):
        data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        shown = Image.open(io.BytesIO(data))
        assert (shown.format, *shown.size) == ("JPEG", 2 * SHORT_SIDE, SHORT_SIDE)
        shades.append(round(float(np.asarray(shown).mean())))
    assert shades == [0, 99]
    [said] = out["transitions"][0].as_py()
    assert said == {
        "text": SAID,
        "num_tokens": 5,
        "num_prompt_tokens": 7,
        "latency_s": None,
        "checks": [],
        "error": None,
    }
    told = out.select(COLUMNS).to_pylist()[0]
    assert told["text"] == hostile
    assert (told["engine"], told["model"], told["style"]) == ("openai", "seer", None)
    style = transitions.asks_as.all_styles[0]
    assert told["prompt_hash"] == transitions.asks_as.prompt_hash(style)


def test_one_transition_for_each_two_neighbours(server: Any) -> None:
    # Widths stand for frames: what is said names the two that were shown, in their order.
    server.default = lambda body: server.answer(f"A bridge of {widths(body)}.", num_tokens=3)
    clips = [
        clip(*(frame(0, width) for width in (30, 31, 32, 33, 34))),
        clip(frame(0, 40)),
        clip(),
        clip(frame(0, 50), frame(0, 51)),
    ]
    out = endpoint(server)(rows(clips, ["A cup on a table.", None, "A cat.", None]))
    assert error_types(out) == [None] * 4
    pairs = [[[30, 31], [31, 32], [32, 33], [33, 34]], [], [], [[50, 51]]]
    assert texts(out) == [[f"A bridge of {pair}." for pair in some] for some in pairs]
    assert out["text"].to_pylist() == ["A cup on a table.", None, "A cat.", None]
    assert out["engine"].to_pylist() == ["openai", None, "given", "openai"]
    assert out["num_tokens"].to_pylist() == [12, None, None, 3]
    assert out["num_prompt_tokens"].to_pylist() == [28, None, None, 7]
    without = [request for request in server.requests if 50 in widths(request)]
    assert (
        "<caption>\nnone was given\n</caption>" in without[0]["messages"][0]["content"][-1]["text"]
    )


def test_checks_are_of_all_texts(server: Any) -> None:
    refusal = "I'm sorry, but I can't help with that."
    server.default = lambda body: {
        30: server.answer(refusal),
        31: server.answer("The cup falls and", "length"),
        32: server.answer(""),
    }.get(widths(body)[0], server.answer(SAID))
    clips = [
        clip(*(frame(0, width) for width in (30, 31, 32, 33, 34))),
        clip(frame(0, 33), frame(0, 34)),
    ]
    out = endpoint(server)(rows(clips, ["Cup.", "A cup on a table."]))
    # As for captions: a refusal in words is an answer, and rules say what it costs.
    assert error_types(out) == [None, None]
    assert texts(out) == [[refusal, "The cup falls and", "", SAID], [SAID]]
    each = [one["checks"] for one in out["transitions"][0].as_py()]
    assert each == [["refusal"], ["truncated"], ["empty"], []]
    assert out["checks"].to_pylist() == [["too_short", "refusal", "truncated", "empty"], []]


def test_the_language_is_checked(server: Any) -> None:
    pytest.importorskip("py3langid")
    server.default = lambda body: server.answer("Der Becher rutscht über den Tisch nach links.")
    batch = rows([clip(frame(0), frame(1))], ["A white cup stands on a wooden table."])
    assert endpoint(server, language="en")(batch)["checks"].to_pylist() == [["language"]]
    assert endpoint(server)(batch)["checks"].to_pylist() == [[]]


def test_one_clips_failure_stays_that_clips(server: Any) -> None:
    server.default = lambda body: {
        31: (400, {}, b"too odd"),
        32: (503, {}, b"down"),
        33: (200, {}, b"garbage"),
        34: None,
    }.get(widths(body)[0], server.answer(SAID))
    clips: list[Any] = [clip(frame(0, w), frame(1), frame(2)) for w in range(30, 35)]
    clips += [clip(frame(0), b"no picture"), clip(frame(0), None), clip(frame(3), frame(4))]
    batch = rows(clips, errors=[None] * 7 + [FAILED])
    out = endpoint(server, max_retries=1, timeout_s=0.5)(batch)
    assert error_types(out) == [
        None,
        "http_400",
        "http_503",
        "bad_response",
        "timeout",
        "unknown_format",
        "empty",
        "too_few_frames",
    ]
    # What was said all the same is kept beside the error.
    assert texts(out) == [[SAID, SAID], *[[None, SAID]] * 4, None, None, None]
    failed = out["transitions"][2].as_py()[0]["error"]
    assert failed == out["error"][2].as_py()
    assert (failed["stage"], failed["message"]) == ("caption", "HTTP 503: down (after 2 attempts)")
    assert [text is None for text in out["engine"].to_pylist()] == [False, *[True] * 7]


def test_a_retry_asks_only_for_what_is_missing(server: Any, tmp_path: Path) -> None:
    cache = str(tmp_path / "answers.sqlite")
    server.replies = [(500, {}, b"down")]
    clips = [clip(*(frame(i) for i in range(5))), clip(frame(3), frame(4)), clip(frame(7))]
    batch = rows(clips)
    transitions = endpoint(server, cache=cache, concurrency=1, max_retries=0)
    first = transitions(batch)
    assert error_types(first) == ["http_500", None, None]
    assert len(server.requests) == 5  # four transitions, and one of other times
    second = transitions(batch)
    assert error_types(second) == [None] * 3
    assert len(server.requests) == 6
    assert transitions(batch).equals(second)
    assert second["latency_s"][0].as_py() == pytest.approx(
        sum(one["latency_s"] for one in second["transitions"][0].as_py()), rel=1e-6
    )
    offline = dataclasses.replace(transitions, ask=False)
    assert offline(batch).equals(second)
    assert error_types(offline(rows([clip(frame(8), frame(9))]))) == ["not_answered"]
    assert len(server.requests) == 6


def test_equal_questions_are_asked_once_and_other_ones_are_not_equal(server: Any) -> None:
    one, other = frame(0), frame(1)
    clips = [
        clip(one, other),
        clip(one, other),
        clip(other, one),
        clip(one, other, every_s=4.0),
        clip(one, other),
    ]
    endpoint(server)(rows(clips, ["A cup."] * 4 + ["A cat."]))
    assert len(server.requests) == 4


def test_times_are_those_in_the_clip(server: Any) -> None:
    two = frame(0), frame(1)
    clips = [clip(*two, start_s=599.98), clip(*two, every_s=0.5), clip(*two, start_s=7.0)]
    endpoint(server, concurrency=1)(rows(clips, starts=[600.0, 0.0, None]))
    labels = [
        [part["text"].partition(", ")[2] for part in request["messages"][0]["content"][:3:2]]
        for request in server.requests
    ]
    assert labels == [
        ["0.0 s into the clip:", "2.0 s into the clip:"],
        ["0.0 s into the clip:", "0.5 s into the clip:"],
        ["7.0 s into the clip:", "9.0 s into the clip:"],
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_row_does_not_depend_on_its_neighbours(server: Any, seed: int) -> None:
    server.default = lambda body: server.answer(f"A bridge of {widths(body)}.")
    rng = np.random.default_rng(seed)
    clips = [
        clip(*(frame(0, int(width)) for width in rng.integers(20, 60, rng.integers(0, 4))))
        for _ in range(6)
    ]
    batch = rows(clips, ["A cat leaps." if rng.random() < 0.5 else None for _ in clips])
    transitions = endpoint(server)
    whole = transitions(batch)
    alone = pa.concat_tables([transitions(batch.slice(i, 1)) for i in range(len(clips))])
    assert whole.equals(alone.combine_chunks())


def test_values_of_the_sample_in_the_prompt(server: Any) -> None:
    prompt = "The film is {metadata.title}. What happens?"
    transitions = endpoint(server, prompt=prompt)
    two = [clip(frame(0), frame(1)), clip(frame(0))]
    out = transitions(rows(two, metadata='{"title": "Metropolis"}'))
    assert error_types(out) == [None, None]
    said = server.requests[0]["messages"][0]["content"][-1]["text"]
    assert said == "The film is Metropolis. What happens?"
    # A clip of one frame has nothing to ask for.
    assert error_types(transitions(rows(two))) == ["missing_variable", None]
    strict = endpoint(server, prompt="It is {caption}. What happens?")
    assert error_types(strict(rows(two))) == ["no_caption", None]
    cut = endpoint(server, prompt=prompt, max_value_characters=5)
    out = cut(rows(two[:1], metadata='{"title": "Metropolis"}'))
    assert out["checks"].to_pylist() == [["value_cut"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "vllm"}, "start `vllm serve` and take engine openai"),
        ({"engine": "openai", "model": "m"}, "`base_url` is ''"),
        ({"engine": "openai", "base_url": "http://localhost/v1"}, "`model` is empty"),
        ({"prompt": "Of {topic}: what happens?"}, "the prompt holds {topic}: variables are"),
        ({"prompt": "Of {first}: what happens?"}, "the prompt holds {first}"),
        ({"prompt": "nothing.txt"}, "prompt file nothing.txt does not exist"),
        ({"max_tokens": 0}, "`max_tokens` is 0"),
        ({"temperature": -1.0}, "`temperature` is -1.0"),
        ({"language": "xx"}, "`language` is 'xx'"),
        ({"cache": "s3://bucket/a"}, "a file on a local disk only"),
        ({"ask": False}, "name the `cache`"),
    ],
)
def test_impossible_parameters(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
        Transitions(**settings)


def test_it_is_configured_described_and_sent_to_workers(server: Any, tmp_path: Path) -> None:
    told = {"engine": "openai", "base_url": server.url, "model": "seer", "max_tokens": 50}
    transitions = build(Transitions, told)
    assert transitions == Transitions(
        engine="openai", base_url=server.url, model="seer", max_tokens=50
    )
    there = pickle.loads(pickle.dumps(transitions))
    batch = rows([clip(frame(0), frame(1))])
    assert there(batch).equals(transitions(batch))
    moved = dataclasses.replace(transitions, concurrency=1, cache=str(tmp_path / "a"), timeout_s=9)
    assert canonical(moved) == canonical(transitions)
    for change in ({"max_tokens": 51}, {"prompt": "What happens?"}, {"language": "en"}):
        assert canonical(dataclasses.replace(transitions, **change)) != canonical(transitions)
    relative = Transitions(cache="answers.sqlite")
    assert relative.cache == str(Path.cwd() / "answers.sqlite")


def test_fields_are_those_of_captions() -> None:
    defaults = {f.name: (f.type, f.default) for f in dataclasses.fields(Caption)}
    for field in dataclasses.fields(Transitions):
        if field.name not in ("engine", "prompt", "max_tokens"):
            assert defaults[field.name] == (field.type, field.default)
    assert dataclasses.asdict(Transitions()).keys() <= defaults.keys()


@pytest.mark.slow
def test_transformers_serve_bridges_frames(qwen: tuple[str, str]) -> None:
    base_url, model = qwen
    data = pytest.importorskip("skimage.data")
    names = ("astronaut.png", "coffee.png", "chelsea.png")
    shown = [decode((Path(data.data_dir) / name).read_bytes(), 256).rgb for name in names]
    first, second, third = (encode_jpeg(rgb, 95) for rgb in shown)
    # The model has seen two pictures: another second, or first, one gives other words.
    clips = [clip(first, second, third), clip(first, third), clip(third, second), clip(first)]
    transitions = Transitions(engine="openai", base_url=base_url, model=model, max_tokens=16)
    out = transitions(rows(clips, ["Three pictures."] * 4))
    assert error_types(out) == [None] * 4
    said = texts(out)
    assert [len(some or ()) for some in said] == [2, 1, 1, 0]
    distinct = {text for some in said for text in some or ()}
    assert len(distinct) == 4
    numbers = out["transitions"][0].as_py()
    assert [one["num_tokens"] for one in numbers] == [16, 16]
    caption = Caption(
        engine="openai",
        picture="bytes",
        base_url=base_url,
        model=model,
        max_tokens=1,
        prompt=transitions.prompt.replace("{caption|none was given}", "Three pictures."),
    )
    bytes_ = pa.table({"bytes": pa.array([first], pa.large_binary())})
    alone = caption(bytes_.append_column("error", pa.nulls(1, ERROR_TYPE)))
    tokens = alone["num_prompt_tokens"][0].as_py()
    assert numbers[0]["num_prompt_tokens"] > tokens + 64  # the second picture is counted as well
    assert transitions(rows(clips, ["Three pictures."] * 4)).equals(out)
