"""Fingerprints change with what determines a table, and with nothing else."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from infra import runs
from infra.runs import Part, TableRecord, canonical, describe, fingerprint, row_spec
from infra.schema import ERROR_TYPE
from infra.storage import Storage


@dataclass(frozen=True)
class Score:
    version: ClassVar[int] = 1
    not_in_output: ClassVar[tuple[str, ...]] = ("timeout_s",)
    size: int = 3
    names: tuple[str, ...] = ("a",)
    timeout_s: float = 1.0


@dataclass(frozen=True)
class Weighted(Score):
    weights: str = "here.safetensors"

    @property
    def identity(self) -> str:
        return "hash of " + self.weights


def record(table: str = "t", finger: str = "f" * 32, **changes: Any) -> TableRecord:
    plain = TableRecord(
        table, finger, "spec of " + table, "id", (Part("v-x/part-00000.parquet", 3),)
    )
    return dataclasses.replace(plain, **changes)


def test_a_description_is_stable_and_complete() -> None:
    assert describe(Weighted()) == {
        "class": "Weighted",
        "version": 1,
        "identity": "hash of here.safetensors",
        "size": 3,
        "names": ["a"],
        "weights": "here.safetensors",
    }
    assert canonical({"b": 1, "a": (1, None, True)}) == canonical({"a": [1, None, True], "b": 1})
    with pytest.raises(TypeError, match="cannot describe PosixPath"):
        describe({"path": Path("x")})


def test_what_changes_a_row_spec() -> None:
    base = row_spec({"operators": [Score()]}, [record()])
    same = [
        row_spec({"operators": (Score(timeout_s=9.0),)}, [record()]),
        # Rows added to an input do not change the values of the others.
        row_spec({"operators": [Score()]}, [record(fingerprint="other")]),
    ]
    other = [
        row_spec({"operators": [Score(size=4)]}, [record()]),
        row_spec({"operators": [Score(), Score()]}, [record()]),
        row_spec({"operators": [Score()], "group": "x"}, [record()]),
        row_spec({"operators": [Score()]}, [record(row_spec="new")]),
        row_spec({"operators": [Score()]}, []),
    ]
    assert set(same) == {base}
    assert len({base, *other}) == 1 + len(other)


def test_a_new_version_or_new_weights_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = row_spec({"operators": [Weighted()]}, [])
    with monkeypatch.context() as patch:
        patch.setattr(Weighted, "version", 2)
        assert row_spec({"operators": [Weighted()]}, []) != before
    with monkeypatch.context() as patch:
        patch.setattr(Weighted, "identity", "other weights in the same file")
        assert row_spec({"operators": [Weighted()]}, []) != before
    assert row_spec({"operators": [Weighted()]}, []) == before


def test_what_changes_a_fingerprint() -> None:
    seen = {
        fingerprint("spec", [record()]),
        fingerprint("spec", [record()], "width > 3"),
        fingerprint("spec", [record(fingerprint="g" * 32)]),
        fingerprint("spec", [record(), record()]),
        fingerprint("other", [record()]),
    }
    assert len(seen) == 5


def test_a_record_comes_back(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert runs.load_record(storage, "a/b") is None
    written = record("a/b", facts={"level": 256, "ids": [1]})
    runs.save_record(storage, written)
    assert runs.load_record(storage, "a/b") == written
    assert written.path(0) == "a/b/v-x/part-00000.parquet"
    assert (written.num_rows, written.num_failed) == (3, 0)


def test_a_new_version_drops_the_old_one_after_it_is_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    old, new = (
        record("t", letter * 32, parts=(Part(f"v-{letter * 12}/part-00000.parquet", 3),))
        for letter in "ab"
    )
    for one in (old, new):
        storage.write(f"t/{runs.version_of(one.fingerprint)}/part-00000.parquet", b"")
    storage.write("t/listing-1/x.parquet", b"")
    runs.save_record(storage, old)
    storage.write(f"t/{runs.version_of(new.fingerprint)}/part-00000.parquet", b"")
    seen = []
    remove = Storage.remove

    def note(self: Storage, path: str) -> None:
        seen.append((path, runs.load_record(self, "t") == new))
        remove(self, path)

    monkeypatch.setattr(Storage, "remove", note)
    runs.save_record(storage, new)
    assert seen == [("t/v-aaaaaaaaaaaa", True)]
    assert storage.names("t") == ["_table.json", "listing-1", "v-bbbbbbbbbbbb"]


def test_parts_of_the_version_before_stay_while_they_are_used(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    parts = [f"v-old/part-0000{n}.parquet" for n in range(3)] + ["v-new/part-00001.parquet"]
    for file in (*parts, "v-half/part-00000.parquet"):
        storage.write(f"t/{file}", b"")
    used = (parts[0], parts[3], parts[2])
    runs.save_record(storage, record("t", parts=tuple(Part(file, 1) for file in used)))
    assert [path for path, *_ in storage.find("t")] == sorted(
        ["t/_table.json", *(f"t/{file}" for file in used)]
    )


def test_which_rows_failed_is_in_the_version_alone() -> None:
    def of(*failed: tuple[str, str]) -> str:
        rows = [
            {"id": id_, "error": {"stage": "s", "type": type_, "message": ""}}
            for id_, type_ in failed
        ]
        schema = pa.schema([("id", pa.string()), ("error", ERROR_TYPE)])
        return runs.failures("id", pa.Table.from_pylist(rows, schema=schema))

    assert of() == ""
    assert of(("a", "t"), ("b", "t")) == of(("b", "t"), ("a", "t"))
    assert len({of(), of(("a", "t")), of(("b", "t")), of(("a", "u"))}) == 4
    whole = record()
    holes = [
        record(parts=(Part("v-x/part-00000.parquet", 3, 1, of((id_, "t"))),)) for id_ in ("a", "b")
    ]
    assert whole.version == whole.fingerprint
    assert len({record.version for record in (whole, *holes)}) == 3
    assert len({fingerprint("spec", [record]) for record in (whole, *holes)}) == 3
    assert len({row_spec({}, [record]) for record in (whole, *holes)}) == 1


def test_a_finished_run_is_told(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    made = record("scores/p/cheap", parts=(Part("v-x/a", 5, 2), Part("v-x/b", 1)))
    runs.finish(
        storage,
        made,
        {"operators": [Score()]},
        [record("samples/p")],
        1_700_000_000.25,
        {"cpu_s": 2.5},
    )
    assert runs.load_record(storage, "scores/p/cheap") == made
    assert storage.names("runs") == ["1700000000250-scores-p-cheap.json"]
    told = storage.read_json("runs/1700000000250-scores-p-cheap.json")
    assert told["cpu_s"] == 2.5
    assert told["inputs"] == ["samples/p"]
    assert (told["rows_in"], told["rows_out"], told["rows_failed"]) == (3, 6, 2)
    assert told["config"]["operators"][0]["size"] == 3
    assert told["duration_s"] > 0
    assert told["versions"]["pyarrow"]
