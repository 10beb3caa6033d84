"""Requests about pictures, and keys that earlier caches go on answering to."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from operators.caption_request import SHORT_SIDE, Question, hash_of, request_hash

ASKED = {"model": "seer", "max_tokens": 200, "temperature": 0.0, "seed": 0}


def picture(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def sent(part: dict[str, Any]) -> Image.Image:
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_key_of_a_question_about_a_picture_stays_what_it_was() -> None:
    black = np.zeros((2, 3, 3), np.uint8)
    question = Question("Describe it.", (black,), ASKED)
    assert question.key(hash_of(black)) == "ddcee726eaa3a70060c419ced8170657"


def test_labels_and_pictures_take_turns_before_the_text() -> None:
    pictures = (picture(0, 600, 1200), picture(1, 40, 20))
    body = Question("What happens?", pictures, ASKED, labels=("First:", "Second:")).body()
    [message] = body.pop("messages")
    assert body == ASKED
    assert message["role"] == "user"
    first, one, second, two, text = message["content"]
    assert first == {"type": "text", "text": "First:"}
    assert second == {"type": "text", "text": "Second:"}
    assert text == {"type": "text", "text": "What happens?"}
    assert [sent(part).size for part in (one, two)] == [(2 * SHORT_SIDE, SHORT_SIDE), (20, 40)]
    bare = Question("What happens?", pictures, ASKED).body()["messages"][0]["content"]
    assert [part["type"] for part in bare] == ["image_url", "image_url", "text"]


@pytest.mark.parametrize(
    "change",
    [
        {"text": "What is it?"},
        {"pictures": (1, 0)},
        {"pictures": (0,)},
        {"pictures": (0, 0)},
        {"pictures": (0, 1, 1)},
        {"labels": ("First:", "At 2 s:")},
        {"labels": ()},
        {"parameters": ASKED | {"seed": 1}},
        {"asked_of": ("vllm", "{}")},
    ],
)
def test_all_of_a_request_is_in_its_key(change: dict[str, Any]) -> None:
    def key(text: str, pictures: tuple[int, ...], parameters: Any, **others: Any) -> str:
        shown = tuple(picture(seed) for seed in pictures)
        return Question(text, shown, parameters, **others).key(*map(hash_of, shown))

    plain: dict[str, Any] = {
        "text": "What happens?",
        "pictures": (0, 1),
        "parameters": ASKED,
        "asked_of": (),
        "labels": ("First:", "Second:"),
    }
    assert key(**plain) == key(**plain)
    assert key(**plain) != key(**plain | change)


def test_the_hash_of_a_request_is_of_no_picture() -> None:
    assert request_hash("What?", ASKED) == request_hash("What?", dict(ASKED))
    assert request_hash("What?", ASKED) != request_hash("Who?", ASKED)
    assert request_hash("What?", ASKED) != request_hash("What?", ASKED, "vllm", "{}")


def test_pictures_of_other_shapes_have_other_hashes() -> None:
    flat = picture(0, 4, 6)
    assert hash_of(flat) != hash_of(flat.reshape(6, 4, 3))
    assert hash_of(flat) == hash_of(np.asfortranarray(flat))
