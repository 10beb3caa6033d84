"""A question about a picture or several: the body of a chat completion, the key of its answer."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from infra.pixels import Pixels, encode_jpeg, resize_crop
from infra.schema import digest

SHORT_SIDE = 512
JPEG_QUALITY = 90
_PICTURE_FORM = f"jpeg q{JPEG_QUALITY}, short side <= {SHORT_SIDE}"


@dataclass(frozen=True)
class Question:
    """``text`` about pictures, with the ``parameters`` of the request (model, max_tokens, …).

    ``labels``: a text in front of each picture, where there are any. ``asked_of``: what besides all
    this decides the answer, where it is no endpoint's.
    """

    text: str
    pictures: tuple[Pixels, ...]
    parameters: Mapping[str, Any]
    asked_of: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def key(self, *picture_hashes: str) -> str:
        """Hash of the whole request; hashes are those of `hash_of`, made once a picture."""
        body = json.dumps(request_body(self.text, self.parameters, (), self.labels), sort_keys=True)
        return digest(body, _PICTURE_FORM, *picture_hashes, *self.asked_of)

    def body(self) -> dict[str, Any]:
        """The request, with the pictures as JPEGs of at most `SHORT_SIDE` pixels."""
        urls = [_data_url(picture) for picture in self.pictures]
        return request_body(self.text, self.parameters, urls, self.labels)


def request_body(
    text: str,
    parameters: Mapping[str, Any],
    picture_urls: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    for label, url in zip_longest(labels, picture_urls):
        if label is not None:
            content.append({"type": "text", "text": label})
        if url is not None:
            content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": text})
    return {"messages": [{"role": "user", "content": content}], **parameters}


def request_hash(text: str, parameters: Mapping[str, Any], *asked_of: str) -> str:
    """Hash of a request but for its pictures."""
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
