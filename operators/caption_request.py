"""One question about one picture: the body of a chat completion, and the key of its answer."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.pixels import Pixels, encode_jpeg, resize_crop
from infra.schema import digest

SHORT_SIDE = 512
JPEG_QUALITY = 90
_PICTURE_FORM = f"jpeg q{JPEG_QUALITY}, short side <= {SHORT_SIDE}"


@dataclass(frozen=True)
class Question:
    """``text`` about a picture, with the ``parameters`` of the request (model, max_tokens, …).

    ``asked_of``: what besides them decides the answer, where it is no endpoint's.
    """

    text: str
    picture: Pixels
    parameters: Mapping[str, Any]
    asked_of: tuple[str, ...] = ()

    def key(self, picture_hash: str) -> str:
        """Hash of the whole request; ``picture_hash`` is that of `hash_of`, made once a picture."""
        body = json.dumps(request_body(self.text, self.parameters), sort_keys=True)
        return digest(body, _PICTURE_FORM, picture_hash, *self.asked_of)

    def body(self) -> dict[str, Any]:
        """The request, with the picture as a JPEG of at most `SHORT_SIDE` pixels."""
        return request_body(self.text, self.parameters, _data_url(self.picture))


def request_body(
    text: str, parameters: Mapping[str, Any], picture_url: str | None = None
) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if picture_url is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": picture_url}})
    return {"messages": [{"role": "user", "content": content}], **parameters}


def request_hash(text: str, parameters: Mapping[str, Any], *asked_of: str) -> str:
    """Hash of a request but for its picture."""
    body = json.dumps(request_body(text, parameters), sort_keys=True)
    return digest(body, _PICTURE_FORM, *asked_of)


def hash_of(picture: Pixels) -> str:
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
