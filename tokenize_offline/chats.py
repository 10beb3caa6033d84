"""The texts of a document as token segments: plain text, messages of a chat, the document's end."""

from typing import Any

from infra.pixels import DecodeError
from tokenize_offline.text import TextTokenizer

ROLES = (None, "system", "user", "assistant")  # of a text; None: no message of a chat


def text_segment(ids: list[int], loss: bool, sample_id: str | None) -> dict[str, Any]:
    """A text as a row of `schema.TOKEN_SEGMENT`."""
    return {
        "kind": "text",
        "loss": loss,
        "text_ids": ids,
        "schedule": -1,
        "num_scales": 0,
        "sample_id": sample_id,
    }


def add_text(
    segments: list[dict[str, Any]],
    tokenizer: TextTokenizer,
    text: str,
    role: str | None,
    loss: bool,
    sample_id: str | None,
) -> None:
    """Append a text to ``segments``; one with a role is a message of a chat, in ChatML.

    A message is header, content and line end (see `TextTokenizer.encode_turn`): only its content
    and end mark may have loss, and neighbours of one sample with equal loss become one segment.
    Raises DecodeError for a message where the vocabulary knows no chats.
    """
    if role is None:
        segments.append(text_segment(tokenizer.encode(text), loss, sample_id))
        return
    if tokenizer.marks is None:
        raise DecodeError("no_turn_marks", "the vocabulary has no marks for the turns of a chat")
    header, content, line_end = tokenizer.encode_turn(role, text)
    for ids, counts in ((header, False), (content, loss), (line_end, False)):
        last = segments[-1] if segments else None
        same = ("text", counts, sample_id)
        if last and (last["kind"], last["loss"], last["sample_id"]) == same:
            last["text_ids"] += ids
        else:
            segments.append(text_segment(ids, counts, sample_id))


def add_end(segments: list[dict[str, Any]], tokenizer: TextTokenizer, is_chat: bool) -> None:
    """End a document: in its last segment if that is a chat's or text with loss, else in its own.

    So the ``<eoi>`` of a last picture has something to predict.
    """
    last = segments[-1]
    if last["kind"] == "text" and (last["loss"] or is_chat):
        last["text_ids"].append(tokenizer.end_of_text)
    else:
        segments.append(text_segment([tokenizer.end_of_text], True, None))
