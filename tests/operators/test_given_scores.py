"""Numbers in a sample's metadata, and things that are none."""

import json

import pyarrow as pa
import pytest

from infra.schema import ERROR
from operators.given_scores import given_numbers


def said(*metadata: str | None) -> list[float | None]:
    errors = pa.nulls(len(metadata), ERROR.type)
    batch = pa.table({"metadata": pa.array(metadata, pa.string()), "error": errors})
    return given_numbers(batch, "motion score")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (4.5, 4.5),
        (4, 4.0),
        (0, 0.0),
        (-1.5, -1.5),
        ("4.5", 4.5),
        (" 4.5 ", 4.5),
        ("4,5", None),
        ("", None),
        ("high", None),
        ("nan", None),
        ("inf", None),
        (float("nan"), None),
        (1e400, None),
        (10**400, None),
        (True, None),
        (None, None),
        ([4.5], None),
        ({"mean": 4.5}, None),
    ],
)
def test_numbers_and_what_is_none(value: object, number: float | None) -> None:
    assert said(json.dumps({"motion score": value, "other": 1})) == [number]


def test_rows_that_say_nothing() -> None:
    assert said(None, "{}", '{"other": 1}', "[1]", "1") == [None] * 5
    assert said() == []


def test_failed_rows_are_left_out() -> None:
    failure = {"stage": "probe", "type": "empty", "message": ""}
    batch = pa.table(
        {
            "metadata": pa.array(['{"a": 1}', '{"a": 2}']),
            "error": pa.array([failure, None], ERROR.type),
        }
    )
    assert given_numbers(batch, "a") == [None, 2.0]
