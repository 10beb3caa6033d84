"""Recipes: YAML plus ``key=value`` overrides into frozen dataclasses, strict about every key.

    recipe = load(Recipe, "pipelines/recipes/demo.yaml", ["documents.level=512"])

Precedence is defaults < YAML < overrides. An unknown key, a wrong type or an impossible value stops
the run before any work, with one line that names the key, the value and the remedy.
"""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A mistake of the user's, told in one line: value, place, remedy."""


class _Loader(yaml.SafeLoader):
    """Plain values only; a key that stands twice is a mistake, and 1e-3 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"`{key}` stands twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML recipe into ``cls``; ``overrides`` are dotted ``key=value`` pairs.

    Raises ConfigError for a missing or malformed file and whatever `build` refuses.
    """
    return build(cls, read(path, overrides))


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a YAML recipe with its overrides. Raises ConfigError."""
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"recipe {path} does not exist: check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"recipe {path} is not readable YAML: {_one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe {path} holds {type(tree).__name__}, expected `key: value` lines")
    for override in overrides:
        _apply(tree, override)
    return tree


def build(cls: type[T], tree: Mapping[str, Any], place: str = "") -> T:
    """Make ``cls`` from plain values, checking every key and type on the way.

    ``place`` is the dotted path of ``tree`` for messages. Dataclass fields nest; ``X | None``,
    tuples, dicts with string keys and Literal types are supported. Raises ConfigError.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(fields)}"
            raise ConfigError(f"unknown key `{_join(place, key)}`: {hint}")
    values = {}
    for name, field in fields.items():
        where = _join(place, name)
        if name in tree:
            values[name] = _convert(tree[name], hints[name], where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"`{where}` is missing: add it to the recipe")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:  # range checks in __post_init__ speak of the value, we add where
        raise ConfigError(f"`{place or cls.__name__}`: {error}") from None


def as_dict(config: Any) -> Any:
    """The resolved config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _apply(tree: dict[str, Any], override: str) -> None:
    key, sign, raw = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"override `{override}` is not of the form key=value")
    *parents, leaf = key.split(".")
    node: Any = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override `{override}`: `{parent}` is a value, not a section")
    try:
        node[leaf] = yaml.load(raw, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override `{override}`: {_one_line(error)}") from None


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in args:
            return None
        options = [arg for arg in args if arg is not type(None)]
        errors = []
        for option in options:
            try:
                return _convert(value, option, where)
            except ConfigError as error:
                errors.append(error)
        raise errors[0]
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"`{where}` is {value!r}: choose one of {', '.join(map(str, args))}")
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"`{where}` is {value!r}: expected a section of `key: value` lines")
        return build(typing.cast(type[Any], hint), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"`{where}` is {value!r}: expected a list")
        if args[-1] is Ellipsis:
            return tuple(_convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise ConfigError(f"`{where}` has {len(value)} values: expected {len(args)}")
        return tuple(
            _convert(v, arg, f"{where}[{i}]")
            for i, (v, arg) in enumerate(zip(value, args))  # noqa: B905
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"`{where}` is {value!r}: expected `key: value` lines")
        return {str(k): _convert(v, args[1], _join(where, k)) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4, without a dot, as text
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"`{where}` is {value!r}: expected a number") from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"`{where}` is {value!r}: expected {hint.__name__}")
    return value


def _join(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
