"""Scores that a source gives with its samples, in the JSON of their ``metadata``."""

import json
import math

import pyarrow as pa


def given_numbers(batch: pa.Table, key: str) -> list[float | None]:
    """What ``metadata`` says under ``key``: finite numbers, or text that is one, as in CSV.

    None for rows that have failed, say nothing, or say what is no number: those are computed.
    """
    failed = batch["error"].is_valid().to_pylist()
    told = batch["metadata"].to_pylist()
    return [None if bad else _number(text, key) for bad, text in zip(failed, told, strict=True)]


def _number(metadata: str | None, key: str) -> float | None:
    said = json.loads(metadata) if metadata else {}
    value = said.get(key) if isinstance(said, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
