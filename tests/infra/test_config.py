"""Recipes: every mistake is named with its key, its value and a remedy, before any work."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from infra.config import ConfigError, as_dict, build, load


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    mode: Literal["fast", "exact"] = "fast"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate}, expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Outer:
    dataset: str
    count: int = 3
    flag: bool = False
    limit: int | None = None
    size: tuple[int, int] = (1, 2)
    shares: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    maybe: Inner | None = None


def test_defaults_yaml_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("dataset: d\ncount: 4\ninner: {rate: 1, names: [a, b]}\nmany: [{rate: 0.25}]\n")
    overrides = ["count=5", "inner.mode=exact", "shares.cats=0.5", "flag=true", "maybe.rate=0"]
    recipe = load(Outer, path, overrides)
    assert recipe == Outer(
        dataset="d",
        count=5,
        flag=True,
        shares={"cats": 0.5},
        inner=Inner(rate=1.0, mode="exact", names=("a", "b")),
        many=(Inner(rate=0.25),),
        maybe=Inner(rate=0.0),
    )
    assert isinstance(recipe.inner.rate, float)
    assert build(Outer, as_dict(recipe)) == recipe


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "`dataset` is missing: add it"),
        ({"datset": "d"}, "unknown key `datset`: did you mean `dataset`"),
        ({"xyzzy": 1}, "unknown key `xyzzy`: known keys: dataset, count"),
        ({"dataset": "d", "inner": {"rat": 1}}, "unknown key `inner.rat`: did you mean `rate`"),
        ({"dataset": "d", "many": [{"rat": 1}]}, r"unknown key `many\[0\].rat`"),
        ({"dataset": 3}, "`dataset` is 3: expected str"),
        ({"dataset": None}, "`dataset` is None: expected str"),
        ({"dataset": "d", "count": True}, "`count` is True: expected int"),
        ({"dataset": "d", "count": 1.5}, "`count` is 1.5: expected int"),
        ({"dataset": "d", "count": "3"}, "`count` is '3': expected int"),
        ({"dataset": "d", "flag": 1}, "`flag` is 1: expected bool"),
        ({"dataset": "d", "limit": "x"}, "`limit` is 'x': expected int"),
        ({"dataset": "d", "size": [1]}, "`size` has 1 values: expected 2"),
        ({"dataset": "d", "size": 3}, "`size` is 3: expected a list"),
        ({"dataset": "d", "size": [1, "x"]}, r"`size\[1\]` is 'x': expected int"),
        ({"dataset": "d", "shares": [1]}, "`shares` is .*: expected `key: value` lines"),
        ({"dataset": "d", "shares": {"a": True}}, "`shares.a` is True: expected float"),
        ({"dataset": "d", "inner": 3}, "`inner` is 3: expected a section"),
        ({"dataset": "d", "inner": {"mode": "slow"}}, "`inner.mode` is 'slow': choose one of fast"),
        ({"dataset": "d", "inner": {"rate": 2}}, "`inner`: rate is 2.0, expected 0 to 1"),
        ({"dataset": "d", "inner": {"names": "ab"}}, "`inner.names` is 'ab': expected a list"),
        ({"dataset": "d", "many": [{}, {"rate": 9}]}, r"`many\[1\]`: rate is 9.0"),
        ({"dataset": "d", "maybe": {"mode": 1}}, "`maybe.mode` is 1: choose one of"),
    ],
)
def test_mistakes(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        build(Outer, tree)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("count", "`count` is not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("cuont=3", "unknown key `cuont`: did you mean `count`"),
        ("count.x=3", "`count` is a value, not a section"),
        ("inner.names=[a", "inner.names"),
    ],
)
def test_mistakes_in_overrides(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text("dataset: d\ncount: 1\n")
    with pytest.raises(ConfigError, match=message) as raised:
        load(Outer, tmp_path / "r.yaml", [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dataset: [", "not readable YAML"),
        (b"\xff\xfe\xfa", "not readable YAML"),
        (b"", "holds NoneType, expected `key: value` lines"),
        (b"- a\n- b\n", "holds list, expected"),
        (b"dataset: a\ncount: 3\ndataset: b\n", "`dataset` stands twice"),
        (b"dataset: a\ninner: {rate: 0, rate: 1}\n", "`rate` stands twice"),
        (b"dataset: !!python/object/apply:os.getcwd []\n", "not readable YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        load(Outer, tmp_path / "r.yaml")
    assert "\n" not in str(raised.value)
    assert "r.yaml" in str(raised.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml does not exist: check the path"):
        load(Outer, tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="not readable"):
        load(Outer, tmp_path)


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "0.001", ".001", "1.0e-3"])
def test_floats_as_people_write_them(tmp_path: Path, number: str) -> None:
    """YAML 1.1 takes 1e-3 for text."""
    (tmp_path / "r.yaml").write_text(f"dataset: d\ninner: {{rate: {number}}}\n")
    assert load(Outer, tmp_path / "r.yaml").inner.rate == 0.001
    assert load(Outer, tmp_path / "r.yaml", [f"shares.a={number}"]).shares == {"a": 0.001}
