"""A phase is checked before it starts, and knows what its table depends on."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pytest

from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.storage import Storage
from operators.aesthetics import Aesthetics
from pipelines.phase import Operator, Phase, Stage, check_columns, is_transient


@dataclass(frozen=True)
class Input:
    columns: tuple[str, ...] = ("id", "bytes")
    is_remote: bool = False

    def rows(self, storage: Storage, part: int) -> pa.Table:
        raise AssertionError("a check reads nothing")

    def load(self, storage: Storage, rows: pa.Table) -> pa.Table:
        raise AssertionError("a check reads nothing")


@dataclass(frozen=True)
class Decode:
    reads: ClassVar[tuple[str, ...]] = ("bytes",)
    writes: ClassVar[pa.Schema] = pa.schema([("image", pa.large_binary())])
    size: int = 1

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch


@dataclass(frozen=True)
class Measure(Decode):
    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[pa.Schema] = pa.schema([("score", pa.float32())])


RECORD = TableRecord("samples/p", "f", "s", "id", (Part("a", 3),))


def phase(*stages: Stage) -> Phase:
    schema = pa.schema([("id", pa.string()), ("score", pa.float32())])
    return Phase("scores/p/x", "id", schema, Input(), 1, stages, {"group": "x"}, (RECORD,))


def test_columns_are_followed_through_all_stages() -> None:
    check_columns(phase(Stage((Decode(), Measure()))))
    check_columns(phase(Stage((Decode(),)), Stage((Measure(),))))
    with pytest.raises(ConfigError, match=r"scores/p/x: Measure reads `image`, which no earlier"):
        check_columns(phase(Stage((Measure(), Decode()))))


def test_a_head_without_its_tower_is_told() -> None:
    head = Aesthetics("open_clip", "ViT-L-14", "openai", head="head.pth")
    assert head.tower is not None
    other = dataclasses.replace(head.tower, batch_rows=8)

    def check(*operators: Operator) -> None:
        schema = pa.schema([("id", pa.string()), ("aesthetic", pa.float32())])
        columns = Input(("id", "bytes", "error"))
        stage = Stage((Decode(), *operators))
        check_columns(dataclasses.replace(phase(stage), schema=schema, input=columns))

    check(head.tower, head)
    for operators in ((head,), (other, head)):
        with pytest.raises(ConfigError, match="Aesthetics reads `features:ViT-L-14/openai:"):
            check(*operators)


def test_files_pixels_and_features_are_never_stored() -> None:
    assert all(is_transient(name) for name in ("bytes", "image", "features:ViT-L-14/openai"))
    assert not any(is_transient(name) for name in ("features", "topic", "embedding", "image_uri"))


def test_a_column_of_the_table_that_nobody_writes() -> None:
    with pytest.raises(ConfigError, match="scores/p/x: nothing writes its column `score`"):
        check_columns(phase(Stage((Decode(),))))


def test_how_the_work_is_done_is_no_part_of_the_fingerprint() -> None:
    base = phase(Stage((Decode(), Measure())))
    same = (
        phase(Stage((Decode(), Measure()), workers=7, batch_rows=3, num_cpus=0.5)),
        phase(Stage((Decode(),)), Stage((Measure(),))),
        dataclasses.replace(base, unit_rows=3),
    )
    assert {p.fingerprint for p in same} == {base.fingerprint}
    assert phase(Stage((Decode(2), Measure()))).row_spec != base.row_spec
    gated = dataclasses.replace(base, row_filter="score > 1", row_inputs=(RECORD,))
    assert gated.row_spec == base.row_spec
    assert gated.fingerprint != base.fingerprint
